"""The door of the engine without a model: what it offers, and what it does not need."""

import subprocess
import sys

from data_gen import grammar


def test_three_functions_of_one_caption():
    caption = "A man with a dog."
    text, template = grammar.rewrite_by_template(caption, "cat", "7")
    assert "man with a dog" in text and "cat" in text.lower() and template
    assert grammar.foil(caption, "dog", "7") == "A man without a dog."
    assert "not raining" in grammar.merge_question(caption, "Is it raining?")


def test_language_audit_and_report_need_neither_jax_nor_models():
    program = (
        "import sys\n"
        "for name in ('jax', 'flax', 'torch', 'transformers', 'ml_collections', 'aiohttp'):\n"
        "    sys.modules[name] = None\n"  # an import of it fails
        "import data_gen.grammar, data_gen.rules, data_gen.cooccurrence, data_gen.audit\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
