"""Word tables: each row whole, each value one that the code knows, each class used."""

import re
import subprocess
import sys

import pytest

from negclip_jax.language import tables

NAMES = sorted(path.stem for path in tables.FOLDER.glob("*.tsv"))
POSITIONS, STYLES = ("after", "before", "alone"), ("natural", "plain", "both")


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_unique_and_the_head_says_what_columns_mean(name):
    text = (tables.FOLDER / f"{name}.tsv").read_text(encoding="utf-8")
    head = [line for line in text.splitlines() if line.startswith("#")]
    for column in head[-1].removeprefix("# ").split("\t"):
        assert any(f"{column}:" in line or f" {column} " in line for line in head[:-1]), column
    rows = tables.rows(name)
    assert len(set(rows)) == len(rows) > 0
    assert not [row for row in rows if any(cell != cell.strip() or "  " in cell for cell in row)]


def test_a_broken_row_is_named(tmp_path):
    (tmp_path / "broken.tsv").write_text("# one. two.\n# one\ttwo\na\tb\nc\n")
    with pytest.raises(ValueError, match=r"broken\.tsv:4"):
        tables.rows("broken", tmp_path)


def test_keys_are_unique():
    for name in ("categories", "compounds", "negation", "templates", "verbs"):
        keys = [row[0] for row in tables.rows(name)]
        assert len(set(keys)) == len(keys), name
    beginnings = " ".join(words for _, words in tables.rows("articles")).split()
    assert len(set(beginnings)) == len(beginnings)


def test_values_are_those_that_the_code_knows():
    assert {article for article, _ in tables.rows("articles")} == {"a", "an"}
    assert {number for *_, number in tables.rows("nouns")} == {
        *("irregular", "mass", "pair", "alone", "counted")
    }
    kinds = {kind for _, kind, *_ in tables.rows("negation")}
    assert kinds == {"noun", "verb", "subject", "people", ""}
    for _, cue, position, style, weight, text, affirmed in tables.rows("templates"):
        assert position in POSITIONS and style in STYLES and weight.isdecimal()
        slots = set(re.findall(r"{(\w+)}", text))
        assert slots <= {*"cposxa", "xs", "some", "is", "are", "isnt", "arent"}
        assert bool(slots & set("cpos")) == (position != "alone")
        # The same words but for the negation: the same caption slot, and none of a negated verb.
        said = set(re.findall(r"{(\w+)}", affirmed))
        assert bool(affirmed) != (cue in ("nobody", "no one"))
        assert not affirmed or said & set("cpos") == slots & set("cpos")
        assert not said & {"a", "isnt", "arent"}


def test_every_class_of_words_is_used_and_every_used_one_is_there():
    root = tables.FOLDER.parents[2]
    code = "".join(
        path.read_text()
        for folder in ("negclip_jax/language", "data_gen", "evals")
        for path in (root / folder).rglob("*.py")
    )
    for name in {name for name, _ in tables.rows("words")}:
        assert f'"{name}"' in code, name
    with pytest.raises(KeyError):
        tables.words("nope")


def test_classes_hold_lower_case_words_once():
    for name in {name for name, _ in tables.rows("words")}:
        listed = " ".join(words for key, words in tables.rows("words") if key == name).split()
        assert len(set(listed)) == len(listed), name
        assert all(word == word.lower() for word in listed)
    assert all(word.endswith("ing") for word in tables.words("ing_noun"))


def test_tables_are_found_beside_the_code_and_need_no_other_package():
    program = (
        "import sys; import negclip_jax.language.foils, negclip_jax.language.questions\n"
        "sys.exit(bool({'numpy', 'jax', 'regex'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
