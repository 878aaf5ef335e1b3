"""Loading every kind of file, and writing what transformers reads back without a loss."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from interop import tiny
from safetensors import safe_open
from safetensors.torch import load_file

from negclip_jax.interop import huggingface
from negclip_jax.interop.huggingface import CheckpointError
from negclip_jax.interop.writing import copy_non_weights

HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A checkpoint as transformers saves it, with the files that a repository holds."""
    directory = tiny.saved(tmp_path_factory.mktemp("base") / "base")
    (directory / "README.md").write_text("# clip\r\n")
    (directory / "vocab.json").write_text("{}")
    (directory / "preprocessor_config.json").write_bytes(b'{"crop_size":16} ')
    (directory / ".gitattributes").write_text("*.bin filter=lfs")
    (directory / "docs").mkdir()
    (directory / "docs" / "picture.png").write_bytes(b"\x89PNG")
    for weights in ("flax_model.msgpack", "pytorch_model.bin.index.json", "onnx/model.onnx"):
        (directory / weights).parent.mkdir(exist_ok=True)
        (directory / weights).write_text("old")
    (directory / ".git").mkdir()
    (directory / ".git" / "config").touch()
    return directory


@pytest.fixture(scope="module")
def loaded(base):
    return tiny.load(base)


def assert_equal_params(ours, expected):
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


def rounded(params, dtype):
    """float32 values that went through a half type once."""
    return jax.tree.map(lambda x: torch.tensor(x).to(HALVES[dtype]).float().numpy(), params)


def copy_of(base, directory, **changes):
    """The base's config and weights; `changes` go to config.json."""
    directory.mkdir()
    for name in ("config.json", "model.safetensors"):
        (directory / name).write_bytes((base / name).read_bytes())
    tiny.edit_config(directory, **changes)
    return directory


def half(directory, dtype, only=""):
    """Rounds the weights whose name contains `only` in the file itself."""

    def edit(tensors):
        for name in tensors:
            if only in name:
                tensors[name] = tensors[name].to(HALVES[dtype])

    tiny.edit_weights(directory, edit)
    return directory


@pytest.mark.parametrize("dtype", HALVES)
def test_loads_half_precision_exactly(dtype, base, loaded, tmp_path):
    directory = tmp_path / "half"
    model = transformers.CLIPModel.from_pretrained(base, dtype=HALVES[dtype])
    tiny.saved(directory, model)
    config, params = tiny.load(directory)
    assert config == loaded[0]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    assert_equal_params(params, rounded(loaded[1], dtype))


def test_loads_shards(base, loaded, tmp_path):
    tiny.saved(tmp_path, transformers.CLIPModel.from_pretrained(base), max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_equal_params(huggingface.load_params(tmp_path, loaded[0]), loaded[1])


def test_loads_transformers_4_files_with_position_ids_and_1d_scale(base, loaded, tmp_path):
    directory = copy_of(base, tmp_path / "old", transformers_version="4.16.0.dev0")

    def edit(tensors):
        tensors["text_model.embeddings.position_ids"] = torch.arange(12)[None]
        tensors["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
        tensors["logit_scale"] = tensors["logit_scale"][None]

    tiny.edit_weights(directory, edit)
    assert_equal_params(huggingface.load_params(directory, loaded[0]), loaded[1])
    out = huggingface.save(tmp_path / "out", *loaded, base=directory)
    assert load_file(out / "model.safetensors")["logit_scale"].shape == ()


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_loads_pickle(dtype, base, loaded, tmp_path):
    state = load_file(base / "model.safetensors")
    state["text_model.embeddings.position_ids"] = torch.arange(12)[None]
    if dtype:
        state = {k: v.to(HALVES[dtype]) if v.is_floating_point() else v for k, v in state.items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    expected = rounded(loaded[1], dtype) if dtype else loaded[1]
    assert_equal_params(huggingface.load_params(tmp_path, loaded[0]), expected)


def test_all_problems_are_listed_at_once(base, tmp_path):
    directory = copy_of(base, tmp_path / "bad")

    def edit(tensors):
        del tensors["logit_scale"]
        for layer in range(2):
            del tensors[f"text_model.encoder.layers.{layer}.mlp.fc1.bias"]
        tensors["classifier.weight"] = torch.zeros(2)
        tensors["text_projection.weight"] = torch.zeros(24, 33)
        tensors["visual_projection.weight"] = torch.zeros(24, 40, dtype=torch.int8)
        tensors["text_model.final_layer_norm.bias"][3] = float("nan")
        tensors["vision_model.encoder.layers.1.mlp.fc2.weight"][:, 0] = float("-inf")

    tiny.edit_weights(directory, edit)
    with pytest.raises(CheckpointError) as caught:
        tiny.load(directory)
    assert str(caught.value).splitlines()[:5] == [
        f"{directory} cannot be used:",
        "  missing (3): logit_scale, text_model.encoder.layers.0.mlp.fc1.bias, "
        "text_model.encoder.layers.1.mlp.fc1.bias",
        "  unknown (1): classifier.weight",
        "  wrong shape or type (2): text_projection.weight is float32[24, 33], config.json asks "
        "for float[24, 32], visual_projection.weight is I8[24, 40], config.json asks for "
        "float[24, 40]",
        "  with NaN or infinity (2): text_model.final_layer_norm.bias (1 of 32 values), "
        "vision_model.encoder.layers.1.mlp.fc2.weight (40 of 2240 values)",
    ]


def test_huge_finite_values_are_not_called_infinite(base, tmp_path):
    directory = copy_of(base, tmp_path / "huge")

    def edit(tensors):
        tensors["text_projection.weight"][:] = 3e38  # the sum overflows, no value does

    tiny.edit_weights(directory, edit)
    tiny.load(directory)


def test_bare_text_tower_names_are_missing_not_random(base, loaded, tmp_path):
    """What a fresh CLIPTextModel of transformers >= 5.6 writes: no `text_model.` prefix."""
    tiny.saved(tmp_path, transformers.CLIPTextModel(transformers.CLIPTextConfig(**tiny.TEXT)))
    with pytest.raises(CheckpointError, match=r"missing \(\d+\): logit_scale.* and \d+ more"):
        huggingface.load_params(tmp_path, loaded[0])


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "mixed"])
def test_untouched_export_is_bit_equal(kind, base, tmp_path):
    directory = copy_of(base, tmp_path / "base")
    if kind in HALVES:
        half(directory, kind)
    if kind == "mixed":
        half(half(directory, "float16", "text_model."), "bfloat16", "visual_projection")
    out = huggingface.save(tmp_path / "out", *tiny.load(directory), base=directory)
    ours, theirs = (load_file(d / "model.safetensors") for d in (out, directory))
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and ours[name].shape == tensor.shape, name
        same = ours[name].view(torch.uint8) if tensor.ndim else ours[name]
        assert torch.equal(same, tensor.view(torch.uint8) if tensor.ndim else tensor), name
    stated = json.loads((out / "config.json").read_text())
    assert stated["dtype"] == ("float32" if kind == "mixed" else kind)
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("kind", HALVES)
def test_trained_export_of_a_half_base_is_float32(kind, base, tmp_path):
    half_text = tiny.TEXT | {"dtype": kind}
    changes = {"torch_dtype": kind, "dtype": kind, "text_config": half_text}
    directory = half(copy_of(base, tmp_path / "base", **changes), kind)
    config, params = tiny.load(directory)
    params["text"]["ln_final"]["bias"] = params["text"]["ln_final"]["bias"] + np.float32(1e-6)
    out = huggingface.save(tmp_path / "out", config, params, base=directory)
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.float32}
    stated = json.loads((out / "config.json").read_text())
    assert stated["dtype"] == stated["torch_dtype"] == "float32"
    assert stated["text_config"]["dtype"] == "float32"
    assert_equal_params(huggingface.load_params(out, config), params)
    assert transformers.CLIPModel.from_pretrained(out).dtype == torch.float32


def test_dtype_can_be_chosen(base, loaded, tmp_path):
    out = huggingface.save(tmp_path / "out", *loaded, base=base, dtype="bfloat16")
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert transformers.CLIPTextModel.from_pretrained(out).dtype == torch.bfloat16
    with pytest.raises(CheckpointError, match="'float64' is not one of float32"):
        huggingface.save(tmp_path / "other", *loaded, base=base, dtype="float64")


def test_value_that_the_chosen_dtype_cannot_hold(base, tmp_path):
    config, params = tiny.load(base)
    params["text"]["token_embedding"][0, 0] = 1e6
    with pytest.raises(CheckpointError, match=r"token_embedding.*float16 cannot"):
        huggingface.save(tmp_path / "out", config, params, base=base, dtype="float16")
    assert not (tmp_path / "out").exists()


def test_what_belongs_to_the_model_is_copied_and_nothing_else(base, loaded, tmp_path):
    """Not what happened to lie there: the base has docs/picture.png and .gitattributes too."""
    (base / "golden.npz").write_bytes(b"x" * 100)
    out = huggingface.save(tmp_path / "out", *loaded, base=base)
    found = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    copied = {"README.md", "vocab.json", "preprocessor_config.json", "config.json"}
    assert found == copied | {"model.safetensors"}
    for name in copied:
        assert (out / name).read_bytes() == (base / name).read_bytes(), name


def test_base_without_weights(base, loaded, tmp_path):
    copy_non_weights(base, tmp_path / "base")
    out = huggingface.save(tmp_path / "out", *loaded, base=tmp_path / "base")
    assert_equal_params(huggingface.load_params(out, loaded[0]), loaded[1])


def test_base_of_another_size(base, loaded, tmp_path):
    other = copy_of(base, tmp_path / "base", projection_dim=25)
    with pytest.raises(CheckpointError, match=r"config\.json does not describe the model"):
        huggingface.save(tmp_path / "out", *loaded, base=other)


CLASSES = ["CLIPModel", "CLIPTextModel", "CLIPTextModelWithProjection"]
CLASSES += ["CLIPVisionModel", "CLIPVisionModelWithProjection"]


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("name", CLASSES)
def test_transformers_finds_every_key(name, sharded, tmp_path):
    """From a base like LAION's: other projection sizes in its towers than the real one."""
    wrong = {"projection_dim": 7}
    model = tiny.torch_clip(wrong, wrong, projection_dim=20)
    directory = tiny.saved(tmp_path / "base", model)
    shards = {"shard_bytes": 20_000} if sharded else {}
    out = huggingface.save(tmp_path / "out", *tiny.load(directory), base=directory, **shards)
    assert (len(list(out.glob("*.safetensors"))) > 2) == sharded
    cls = getattr(transformers, name)
    loaded, info = cls.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    if name == "CLIPModel":
        assert not info["unexpected_keys"]
    pixels, ids = tiny.inputs(huggingface.read_config(out))
    image, text = tiny.torch_features(model, pixels, ids)
    with torch.no_grad():
        if name == "CLIPTextModelWithProjection":
            assert torch.equal(loaded(torch.tensor(ids)).text_embeds, torch.tensor(text))
        if name == "CLIPVisionModelWithProjection":
            nchw = torch.tensor(pixels).permute(0, 3, 1, 2)
            assert torch.equal(loaded(nchw).image_embeds, torch.tensor(image))


def test_save_without_a_base(tiny_config, tiny_checkpoint):
    assert huggingface.read_config(tiny_checkpoint) == tiny_config
    _, info = transformers.CLIPModel.from_pretrained(tiny_checkpoint, output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_parameters_that_do_not_fit_are_not_written(base, loaded, tmp_path):
    config, params = tiny.load(base)
    params["text"]["ln_final"]["bias"][0] = np.nan
    with pytest.raises(CheckpointError, match=r"NaN.*text_model\.final_layer_norm\.bias \(1 of 32"):
        huggingface.save(tmp_path / "out", config, params, base=base)
    del params["logit_scale"]
    params["extra"] = np.zeros(3)
    params["text_projection"] = np.zeros((3, 4))
    with pytest.raises(CheckpointError) as caught:
        huggingface.save(tmp_path / "out", config, params, base=base)
    for line in ("missing (1): logit_scale", "unknown (1): extra", "is (3, 4), not (32, 24)"):
        assert line in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "model.clip."])
def test_weights_of_a_wrapped_model_in_a_directory(wrapper, tmp_path):
    """As a trainer saves a compiled or parallel model, or one that is an attribute of its own."""
    directory = tiny.saved(tmp_path / "saved")
    expected = tiny.load(directory)[1]

    def wrap(tensors):
        for name in list(tensors):
            tensors[wrapper + name] = tensors.pop(name)

    tiny.edit_weights(directory, wrap)
    tiny.assert_equal_params(tiny.load(directory)[1], expected)
