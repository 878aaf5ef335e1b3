import json

import pytest

from negclip_jax.data.tokenizer import CLIPTokenizer
from quickstart import vocabulary as v
from quickstart.questions import HOLD_OUT, build, read_scenes
from quickstart.tiny_clip import CONTEXT, write_tiny_clip
from quickstart.world import COLOURS, KINDS, WORLDS, make_world


@pytest.fixture(scope="module")
def tokenizer():
    return CLIPTokenizer(*v.vocabulary(), context_length=CONTEXT)


@pytest.mark.parametrize("word", v.words())
def test_words_are_cut_as_documented(tokenizer, word):
    assert len(tokenizer.encode(word.replace("|", ""))) == len(word.split("|"))


def test_world_words_are_single_tokens(tokenizer):
    for word in (*COLOURS, *KINDS):
        assert len(tokenizer.encode(word)) == 1


@pytest.mark.parametrize("name", ["hard", "many"])
def test_the_words_of_a_world_are_single_tokens_in_its_vocabulary(tokenizer, name):
    own = CLIPTokenizer(*v.vocabulary(WORLDS[name].kinds), context_length=CONTEXT)
    assert all(len(own.encode(word)) == 1 for word in (*COLOURS, *WORLDS[name].kinds))
    assert len(tokenizer.encode("hexagon")) > 1


def test_any_text_can_be_tokenized(tokenizer):
    assert tokenizer("Größe 漢字 <|endoftext|> 😀 giraffes!").shape == (1, CONTEXT)


def test_every_question_fits_into_the_context(tokenizer, tmp_path):
    make_world(tmp_path, train=1, heldout=60, seed=0)
    questions = build(read_scenes(tmp_path / "heldout" / "instances.json", 0))
    texts = {text for q in questions for choice in q.choices for text in choice}
    assert max(len(tokenizer.encode(text)) for text in texts) <= CONTEXT - 2
    assert HOLD_OUT


def test_the_tiny_clip_is_read_by_the_package(tmp_path):
    from negclip_jax import CLIP

    write_tiny_clip(tmp_path / "clip", seed=0)
    model = CLIP.from_pretrained(tmp_path / "clip")
    assert model.encode_text(model.tokenize(["a red star", "no star"])).shape == (2, 64)
    config = json.loads((tmp_path / "clip" / "config.json").read_text())
    assert config["text_config"]["eos_token_id"] == config["text_config"]["vocab_size"] - 1


def test_transformers_gives_the_same_ids(tmp_path, tokenizer):
    transformers = pytest.importorskip("transformers")
    write_tiny_clip(tmp_path / "clip", seed=0)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path / "clip")
    for text in ("there isn't a red star", "a picture lacking arrows", "a purple giraffe, too"):
        ids = theirs(text)["input_ids"]
        assert ids[1:-1] == tokenizer.encode(text)
        assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
