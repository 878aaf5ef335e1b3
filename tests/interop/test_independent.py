"""The second reading sees what the readers themselves cannot."""

import json

import numpy as np
import pytest
import transformers
from interop import libraries, tiny

from negclip_jax.interop import export, independent, open_clip, openai
from negclip_jax.interop.files import CheckpointError


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """One model in three layouts, and its inputs and features."""
    folder = tmp_path_factory.mktemp("layouts")
    model = tiny.torch_clip(tiny.OPENAI_TEXT, tiny.OPENAI_VISION)
    config, params = tiny.load(tiny.saved(folder / "huggingface", model))
    openai.save(folder / "openai", config, params)
    open_clip.save(folder / "open_clip", config, params)
    inputs = tiny.inputs(config)
    return folder, inputs, tiny.torch_features(model, *inputs)


def without_torch(why):
    raise CheckpointError("not installed")


@pytest.mark.parametrize("layout", ["huggingface", "openai", "open_clip"])
@pytest.mark.parametrize("by_hand", [False, True], ids=["library", "NumPy"])
def test_both_readings_are_the_model(layout, by_hand, layouts, monkeypatch):
    libraries.load("open_clip")
    folder, inputs, expected = layouts
    if by_hand:
        monkeypatch.setattr(independent, "import_torch", without_torch)
    before = transformers.utils.logging.get_verbosity()
    found, reader = independent.features(folder / layout, *inputs)
    assert transformers.utils.logging.get_verbosity() == before, "its warnings are the user's"
    library = "transformers" if layout == "huggingface" else "open_clip"
    # OpenAI's code is for its own sizes.
    assert reader.startswith("NumPy" if by_hand or layout == "openai" else library)
    for ours, theirs in zip(found, expected, strict=True):
        assert tiny.difference(ours, theirs) < 1e-5 * np.abs(theirs).max()


def test_what_cannot_be_computed(layouts, tmp_path, monkeypatch):
    _, inputs, _ = layouts
    with pytest.raises(LookupError, match="no weights"):
        independent.features(tmp_path, *inputs)
    monkeypatch.setattr(independent, "import_torch", without_torch)
    with pytest.raises(LookupError, match="one tower"):
        independent.features(tmp_path, *inputs, architecture="CLIPTextModel")


@pytest.mark.parametrize("by_hand", [False, True], ids=["library", "NumPy"])
def test_a_misreading_does_not_confirm_itself(by_hand, layouts, tmp_path, monkeypatch, capsys):
    """As MetaCLIP 2 was once read: the export read back with a difference of 0.0."""
    folder, *_ = layouts
    if by_hand:
        monkeypatch.setattr(independent, "import_torch", without_torch)
    flags = [f"--model={folder / 'open_clip' / 'open_clip_model.safetensors'}"]
    flags += ["--layout=open_clip", f"--out={tmp_path / 'out'}"]
    assert export.main(flags) == 0
    printed = capsys.readouterr().out
    reader = r"NumPy, straight from the files" if by_hand else "open_clip 3"
    assert f"the source as {reader}" in printed and f"the export as {reader}" in printed
    text = json.loads((tmp_path / "out" / open_clip.CONFIG).read_text())["model_cfg"]["text_cfg"]
    assert text["pool_type"] == "eos"
    monkeypatch.setattr(open_clip, "_POOLINGS", dict.fromkeys(open_clip._POOLINGS, "argmax"))
    monkeypatch.setattr(open_clip, "agree", lambda *_: False)
    assert export.main([*flags, "--overwrite"]) == 1
    assert "reads the source as another model: features differ" in capsys.readouterr().err
