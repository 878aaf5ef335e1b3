"""One function reads every layout and says what it took the model to be."""

import numpy as np
import pytest
from interop import tiny

from negclip_jax.checkpoints import restore
from negclip_jax.common.errors import InputError
from negclip_jax.interop import huggingface, open_clip, openai, readers
from negclip_jax.interop.readers import read_any


@pytest.fixture(scope="module")
def directory(tmp_path_factory, tiny_vocabulary):
    """A Hugging Face directory whose towers have different activations."""
    path = tiny.saved(
        tmp_path_factory.mktemp("hf") / "tiny", tiny.torch_clip({"hidden_act": "gelu"})
    )
    for name in ("vocab.json", "merges.txt"):
        (path / name).write_bytes((tiny_vocabulary / name).read_bytes())
    return path


@pytest.fixture
def workdir(directory, tmp_path, monkeypatch):
    """A training run without the training: parameters whose scale is the step."""
    path = tmp_path / "run"
    huggingface.copy_non_weights(directory, path / "base")
    (path / "checkpoints").mkdir()
    _, params = tiny.load(directory)

    def restore_params(workdir, step="best", *, ema=False):
        number = {"best": 20, "last": 30}.get(step) or int(step)
        return params | {"logit_scale": np.float32(number + 0.5 * ema)}, number

    monkeypatch.setattr(restore, "restore_params", restore_params)
    return path


def test_hugging_face_directory(directory):
    config, params, info = read_any(directory)
    assert (config, info.path, info.layout) == (tiny.load(directory)[0], directory, "huggingface")
    tiny.assert_equal_params(params, tiny.load(directory)[1])
    assert info.activation == "gelu in the text tower, quick_gelu in the vision tower"
    assert info.activation_source == f"hidden_act in {directory / 'config.json'}"
    assert info.pooling == "the first token with id 97"
    assert info.tokenizer == directory and info.base == directory
    assert info.preprocessor.size == 16 and info.preprocessor_source == "CLIP's own"


@pytest.mark.parametrize(
    ("suffix", "ema", "scale"),
    [("", False, 20), ("@best", False, 20), ("@last", False, 30), ("@7", True, 7.5)],
)
def test_workdir(suffix, ema, scale, workdir):
    _, params, info = read_any(f"{workdir}{suffix}", ema=ema)
    assert float(params["logit_scale"]) == scale
    assert info.layout == "workdir" and info.step == int(scale) and info.path == workdir
    assert info.label.startswith(f"step {int(scale)} of {workdir}")
    assert info.tokenizer == workdir / "base"


def test_files_of_another_model_beside_one_of_open_clip(layouts, tmp_path):
    """open_clip does not read config.json, so that it may say anything."""
    for path in (layouts / "open_clip").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert read_any(tmp_path)[2].base == tmp_path
    tiny.edit_config(tmp_path, projection_dim=7)
    config, params, info = read_any(tmp_path)
    assert config == read_any(layouts / "open_clip")[0] and info.base is None
    huggingface.save(tmp_path / "out", config, params, base=info.base)
    tiny.edit_config(tmp_path, text_config={"hidden_act": "relu"})
    assert read_any(tmp_path)[2].base is None


def test_at_sign_in_a_directory_name(directory, tmp_path):
    link = tmp_path / "me@home"
    link.symlink_to(directory)
    assert read_any(link)[2].label == str(link)


def test_pooling_of_old_configurations(tmp_path):
    tiny.saved(tmp_path, tiny.torch_clip({"eos_token_id": 2}))
    assert "largest token id" in read_any(tmp_path)[2].pooling
    assert read_any(tmp_path)[2].tokenizer is None


@pytest.mark.parametrize(
    ("path", "ema", "reason"),
    [
        ("{hf}@500", False, r"is not the --workdir of one"),
        ("{hf}", True, r"is not the --workdir of one"),
        ("{tmp}/gone", False, "there is no checkpoint directory"),
        ("{tmp}", False, r"has no config\.json"),
    ],
)
def test_errors_are_sentences(path, ema, reason, directory, tmp_path):
    with pytest.raises(InputError, match=reason):
        read_any(path.format(hf=directory, tmp=tmp_path), ema=ema)


def test_a_directory_without_base_is_no_run(tmp_path):
    with pytest.raises(InputError, match="has no base/"):
        readers.read_workdir(tmp_path)


@pytest.fixture(scope="module")
def layouts(tmp_path_factory, tiny_vocabulary):
    """One model in OpenAI's and in open_clip's layout, in one folder each."""
    folder = tmp_path_factory.mktemp("layouts")
    model = tiny.torch_clip(tiny.OPENAI_TEXT, tiny.OPENAI_VISION)
    config, params = tiny.load(tiny.saved(folder / "hf", model))
    openai.save(folder / "openai", config, params, tokenizer=tiny_vocabulary)
    open_clip.save(folder / "open_clip", config, params, tokenizer=tiny_vocabulary)
    return folder


def test_directories_of_other_layouts(layouts):
    for name in ("openai", "open_clip"):
        config, params, info = read_any(layouts / name)
        assert config == read_any(layouts / "hf")[0]
        tiny.assert_equal_params(params, read_any(layouts / "hf")[1])
        assert (info.layout, info.tokenizer, info.base) == (name, layouts / name, layouts / name)


def test_a_directory_with_several_layouts_is_read_as_transformers_reads_it(layouts, tmp_path):
    """LAION's repositories hold both."""
    for source in ("open_clip", "hf"):
        for path in (layouts / source).iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert read_any(tmp_path)[2].layout == "huggingface"
    info = read_any(tmp_path / "open_clip_model.safetensors")[2]
    assert info.layout == "open_clip" and info.activation_source.endswith("open_clip_config.json")


def test_repositories_of_the_hub(layouts, tmp_path, monkeypatch):
    """open_clip's, with a classifier of timm in the files that transformers would take."""
    for path in (layouts / "open_clip").iterdir():
        if path.name != "config.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text('{"architecture": "vit_base_patch32_clip_224"}')
    (tmp_path / "model.safetensors").write_bytes(b"of timm")
    monkeypatch.setattr(huggingface, "resolve", lambda name: tmp_path)
    _, params, info = read_any("timm/vit_base_patch32_clip_224.openai")
    assert info.layout == "open_clip" and info.base is None
    assert info.label == "timm/vit_base_patch32_clip_224.openai"
    tiny.assert_equal_params(params, read_any(layouts / "hf")[1])
    monkeypatch.setattr(huggingface, "resolve", lambda name: layouts / "hf")
    assert read_any("openai/clip")[2].layout == "huggingface"


def test_files_that_need_a_word_of_the_person(layouts, tmp_path):
    with pytest.raises(InputError, match=r"is read with its config\.json: give"):
        read_any(layouts / "hf" / "model.safetensors")
    weights = layouts / "openai" / "model.pt"
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).write_bytes(weights.read_bytes())
    with pytest.raises(InputError, match=r"several checkpoints \(a\.pt, b\.pt\): give one"):
        read_any(tmp_path)
    assert read_any(tmp_path / "a.pt")[2].layout == "openai"
    (tmp_path / "b.pt").unlink()
    assert read_any(tmp_path)[2].path == tmp_path / "a.pt"
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"notes\.txt is no weight file"):
        read_any(tmp_path / "notes.txt")


def test_safetensors_alone_do_not_say_their_activation(layouts, tmp_path):
    """OpenAI never released safetensors, so nothing can be assumed of them."""
    weights = layouts / "open_clip" / "open_clip_model.safetensors"
    (tmp_path / "x.safetensors").write_bytes(weights.read_bytes())
    with pytest.raises(InputError, match="does not say its activation"):
        read_any(tmp_path / "x.safetensors")
    config, _, info = read_any(tmp_path / "x.safetensors", activation="quick_gelu")
    assert config.text.hidden_act == "quick_gelu" and info.activation_source == "given"
