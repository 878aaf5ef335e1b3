"""The choice of a tokenizer by a directory's files."""

import json

import pytest

from negclip_jax.data.tokenizer import CLIPTokenizer, TokenizerError, load_tokenizer


def test_a_directory_gives_the_tokenizer_of_its_files(tiny_vocabulary, tmp_path):
    assert isinstance(load_tokenizer(tiny_vocabulary, context_length=24), CLIPTokenizer)
    settings = tmp_path / "tokenizer_config.json"
    for kind in ("SiglipTokenizer", "GemmaTokenizerFast"):
        settings.write_text(json.dumps({"tokenizer_class": kind}))
        with pytest.raises(TokenizerError, match=r"put SigLIP's tokenizer\.json or spiece\.model"):
            load_tokenizer(tmp_path)
    settings.write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    with pytest.raises(TokenizerError, match=r"put CLIP's vocab\.json and merges\.txt"):
        load_tokenizer(tmp_path)
