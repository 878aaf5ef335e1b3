"""A SigLIP from its directory through training and back to transformers, by the usual commands."""

import json
import shutil

import numpy as np
import pytest
import transformers
from interop import tiny
from PIL import Image
from tiny_runs import use_one_device

from negclip_jax.common.errors import InputError
from negclip_jax.interop import export
from negclip_jax.interop.readers import read_any
from negclip_jax.pretrained import CLIP
from negclip_jax.training.loop import train

RUN = {"data.foils": 1, "train.anchor_weight": 1.0}
TYPED = {"data.packing": False, "optim.freeze": ("vision/.*", "text/ln_final/.*")}
RUN |= {"train.total": "4 steps", "eval.every": "2 steps", "optim.lr": 1e-3}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A SigLIP 2 with its kind of tokenizer; 16 positions for captions."""
    symbols = [chr(i) for i in range(97, 123)] + [str(i) for i in range(10)] + ["\u2581"]
    vocab = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *symbols]
    vocab += [f"<0x{byte:02X}>" for byte in range(256)]
    text = {"max_position_embeddings": 16, "vocab_size": len(vocab)}
    folder = tiny.saved(tmp_path_factory.mktemp("siglip") / "tiny", tiny.torch_siglip(text))
    transformers.Siglip2Tokenizer(
        vocab={token: i for i, token in enumerate(vocab)}, merges=[], padding_side="right"
    ).save_pretrained(folder)
    size = {"height": 16, "width": 16}
    transformers.SiglipImageProcessorPil(size=size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(base, make_config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "siglip"
    with pytest.MonkeyPatch.context() as patch:
        use_one_device(patch)
        train(make_config(RUN | {"model.checkpoint": str(base)}), str(workdir))
    return workdir


def test_the_loss_is_siglips_and_falls(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["val/loss"] for row in rows if "val/loss" in row]
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert any("foil_accuracy" in row for row in rows)


def test_what_is_not_set_follows_from_the_family(run, base, make_config, tmp_path, one_device):
    """By the log and config.json; who typed the flags of earlier versions gets the same run."""
    line = "train.objective=sigmoid, data.packing=False, optim.freeze=('vision/.*', 'text/ln_final"
    log = (run / "train.log").read_text()
    assert f"{line}/.*'), as follows from the model, a SigLIP" in log
    recorded = json.loads((run / "config.json").read_text())
    assert recorded["data"]["packing"] is False and recorded["train"]["objective"] == "sigmoid"
    assert recorded["optim"]["freeze"] == ["vision/.*", "text/ln_final/.*"]
    typed = tmp_path / "typed"
    shutil.copytree(run, typed)
    train(make_config(RUN | TYPED | {"model.checkpoint": str(base)}), str(typed))
    train(make_config(RUN | TYPED | {"model.checkpoint": str(base)}), str(tmp_path / "afresh"))
    assert (tmp_path / "afresh/metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    train(make_config(RUN | {"model.checkpoint": str(base)}), str(tmp_path / "afresh"))


@pytest.mark.slow
def test_the_run_is_exported_to_transformers(run, base, tmp_path, capsys):
    out = tmp_path / "out"
    assert export.main([f"--workdir={run}", "--step=last", f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    assert "AutoProcessor, SiglipModel" in printed and "at most 0.0e+00" in printed
    names = {}
    exec(printed.split("load it with\n\n")[1], names)
    config, params, info = read_any(out)
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((2, 16, 16, 3)).astype(np.float32)
    ids = rng.integers(0, config.text.vocab_size, (3, 16))
    expected = tiny.torch_features(names["model"].eval(), pixels, ids)
    assert tiny.difference(tiny.our_features(config, params, pixels, ids), expected) < 1e-5
    before = read_any(base)[1]
    tiny.assert_equal_params(params["vision"], before["vision"])
    assert not np.array_equal(params["text"]["token_embedding"], before["text"]["token_embedding"])
    assert params["logit_bias"] != before["logit_bias"]
    assert info.pooling == "the last position, padding included"
    assert info.preprocessor.squash and info.tokenizer == out


def test_three_lines(base):
    """Pictures and captions through the family's own preprocessing and tokenizer."""
    model = CLIP.from_pretrained(base)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8))
    processor = transformers.SiglipImageProcessorPil.from_pretrained(base)
    words = transformers.AutoTokenizer.from_pretrained(base)
    texts = ["a dog", "no dog"]
    ids = [row + [1] + (15 - len(row)) * [0] for row in words(texts)["input_ids"]]
    pixels = processor(picture, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    theirs = tiny.torch_features(
        transformers.SiglipModel.from_pretrained(base).eval(), pixels, np.array(ids)
    )
    image, text = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in theirs)
    assert tiny.difference(model.similarity(picture, texts), image @ text.T) < 1e-5


def test_packing_is_refused_in_a_sentence(base, make_config, tmp_path, one_device):
    changes = RUN | {"model.checkpoint": str(base), "data.packing": True}
    with pytest.raises(InputError, match=r"set data\.packing=False"):
        train(make_config(changes), str(tmp_path / "run"))


def test_other_layouts_refuse_the_run(run, tmp_path, capsys):
    for layout in ("openai", "open_clip", "diffusers"):
        out = tmp_path / layout
        assert export.main([f"--workdir={run}", f"--layout={layout}", f"--out={out}"]) == 1
        assert "this is a SigLIP: write it with" in capsys.readouterr().err
        assert not out.exists()
    shutil.rmtree(run / "base")
    assert export.main([f"--workdir={run}", f"--out={tmp_path / 'x'}"]) == 1
    assert "has no base/" in capsys.readouterr().err
