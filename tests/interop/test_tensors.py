"""Opening the tensors of files that others made, and refusing the bad ones."""

import json
import os

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from negclip_jax.interop import tensors
from negclip_jax.interop.files import CheckpointError
from negclip_jax.interop.tensors import open_weights

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.tensor([1.5, -0.0, 3e38]).to(torch.bfloat16),
    "c": torch.tensor([1.0, 6e-8], dtype=torch.float16),
    "s": torch.tensor(2.5),
}


def write(path, tensors):
    if path.suffix == ".bin":
        torch.save(tensors, path)
    else:
        save_file(tensors, path, metadata={"format": "pt"})


def write_shards(directory, stem, suffix):
    """Two shards of TENSORS with their index; returns the index's path."""
    names = {f"{stem}-0000{i}-of-00002.{suffix}": keys for i, keys in ((1, "ab"), (2, "cs"))}
    for file, keys in names.items():
        write(directory / file, {key: TENSORS[key] for key in keys})
    weight_map = {key: file for file, keys in names.items() for key in keys}
    index = directory / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize(
    "layout", ["safetensors", "safetensors shards", "bin", "bin shards", "bin before 1.6"]
)
def test_every_layout_gives_the_same_tensors(layout, tmp_path):
    stem, suffix = ("pytorch_model", "bin") if "bin" in layout else ("model", "safetensors")
    if "shards" in layout:
        write_shards(tmp_path, stem, suffix)
    elif "before" in layout:
        torch.save(TENSORS, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    else:
        write(tmp_path / f"{stem}.{suffix}", TENSORS)
    opened = open_weights(tmp_path)
    assert set(opened) == set(TENSORS)
    for name, tensor in TENSORS.items():
        array = opened[name].read()
        assert opened[name].shape == array.shape == tuple(tensor.shape)
        assert opened[name].dtype == array.dtype.name == str(tensor.dtype).split(".")[1]
        exact = array.astype(np.float32)
        assert exact.tobytes() == tensor.float().numpy().tobytes()
    assert opened["b"].read().dtype == ml_dtypes.bfloat16


def test_safetensors_are_preferred(tmp_path):
    write(tmp_path / "model.safetensors", {"right": torch.zeros(1)})
    write(tmp_path / "pytorch_model.bin", {"wrong": torch.zeros(1)})
    assert set(open_weights(tmp_path)) == {"right"}


def test_parameters_that_require_gradients(tmp_path):
    torch.save({"a": torch.nn.Parameter(torch.ones(2))}, tmp_path / "pytorch_model.bin")
    np.testing.assert_array_equal(open_weights(tmp_path)["a"].read(), [1, 1])


# Names of a whole CLIP, or a tower of one, as each library has them.
LAYOUTS = {
    "OpenAI": ("positional_embedding", "ln_final.weight", "visual.proj"),
    "CustomTextCLIP": ("logit_scale", "text.ln_final.weight", "visual.trunk.stem.weight"),
    "transformers": (
        "logit_scale",
        "text_model.final_layer_norm.weight",
        "visual_projection.weight",
    ),
    "text tower": ("text_model.final_layer_norm.weight", "text_projection.weight"),
    "text tower of transformers 5.6": (
        "encoder.layers.0.layer_norm1.weight",
        "embeddings.token_embedding.weight",
    ),
}
PREFIXES = (
    "",
    "module.",
    "_orig_mod.",
    "model.",
    "clip_model.",
    "module._orig_mod.",
    "model.clip.",
)
SHAPES = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state},
    "model": lambda state: {"model": state, "optimizer": {"state": {0: {"m": torch.ones(2)}}}},
    "model_state_dict": lambda state: {"model_state_dict": state, "loss": torch.tensor(1.0)},
    "epoch": lambda state: {"epoch_5": state},
    "both": lambda state: {"model": {"state_dict": state}, "model_ema": {"x": torch.ones(1)}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_prefix_in_every_shape(shape, layout, tmp_path):
    names = LAYOUTS[layout]
    for prefix in PREFIXES:
        state = {f"{prefix}{name}": torch.full((2,), i) for i, name in enumerate(names)}
        torch.save(SHAPES[shape](state), tmp_path / "a.pth")
        opened, origin = tensors.open_file(tmp_path / "a.pth")
        assert [opened[name].read()[0] for name in names] == list(range(len(names))), prefix
        assert set(opened) == set(names)
        assert origin == ("bare" if (prefix, shape) == ("", "bare") else "wrapped")


class Evil:
    """Unpickling it would create a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_with_code_is_refused_and_not_run(zipped, tmp_path):
    marker = tmp_path / "ran"
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": Evil(marker)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"refused.*could run code.*safetensors"):
        open_weights(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [([torch.zeros(1)], "holds a list, not"), ({"a": 1}, "not tensors: a")],
    ids=["list", "number"],
)
def test_pickle_of_something_else(content, reason, tmp_path):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=reason):
        open_weights(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("kept", [0, 7, 300, -5])
def test_truncated_file(name, kept, tmp_path):
    path = tmp_path / name
    write(path, TENSORS)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=rf"{name}.*\((\d+|refused)"):
        open_weights(tmp_path)


def test_git_lfs_pointer(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 605157884\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    with pytest.raises(CheckpointError, match=r"Git LFS pointer.*git lfs pull"):
        open_weights(tmp_path)


def test_file_without_permission(tmp_path, monkeypatch):
    write(tmp_path / "model.safetensors", TENSORS)

    def safe_open(path, framework):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(tensors, "safe_open", safe_open)
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read: Permission"):
        open_weights(tmp_path)


def test_no_weights_names_what_there_is(tmp_path):
    (tmp_path / "flax_model.msgpack").touch()
    (tmp_path / "tf_model.h5").touch()
    with pytest.raises(CheckpointError, match=r"no weights.*holds flax_model\.msgpack, tf_model"):
        open_weights(tmp_path)


def test_missing_shard(tmp_path):
    write_shards(tmp_path, "model", "safetensors")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"missing shards \(1\): model-00002-of-00002"):
        open_weights(tmp_path)


def test_index_of_other_shards(tmp_path):
    index = write_shards(tmp_path, "model", "safetensors")
    weight_map = json.loads(index.read_text())["weight_map"]
    weight_map["a"], weight_map["gone"] = weight_map["s"], weight_map["s"]
    index.write_text(json.dumps({"weight_map": weight_map}))
    found = r"does not hold \(2\): a \(in model-00002-of-00002\.safetensors\), gone"
    with pytest.raises(CheckpointError, match=found):
        open_weights(tmp_path)


@pytest.mark.parametrize("prefix", ["./", ".//", "sub/../"])
def test_other_spellings_of_shards_inside(prefix, tmp_path):
    index = write_shards(tmp_path, "model", "safetensors")
    weight_map = json.loads(index.read_text())["weight_map"]
    weight_map = {name: prefix + file for name, file in weight_map.items()}
    index.write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "sub").symlink_to("/")  # not followed
    assert set(open_weights(tmp_path)) == set(TENSORS)


def test_a_whole_model_is_refused_in_own_words(tmp_path):
    """torch's text has escape codes and advises to load the file all the same."""
    torch.save(torch.nn.Linear(2, 2), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError) as caught:
        open_weights(tmp_path)
    said = str(caught.value)
    assert "(torch.nn.modules.linear.Linear)" in said and "save its state dict alone" in said
    assert "\x1b" not in said and "can still be loaded" not in said and "\n" not in said


def test_index_that_leaves_the_directory(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    write(tmp_path / "model.safetensors", TENSORS)
    index = {"weight_map": {"a": "../model.safetensors"}}
    (inside / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside the directory"):
        open_weights(inside)


@pytest.mark.parametrize("text", ['{"weight_', "{}", '{"weight_map": []}'])
def test_broken_index(text, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json (is not valid JSON|has no weight_map)"):
        open_weights(tmp_path)


def test_a_file_without_tensors_ends(tmp_path):
    torch.save({}, tmp_path / "empty.pt")
    assert tensors.open_file(tmp_path / "empty.pt") == ({}, "wrapped")


def test_names_that_would_become_one_stay(tmp_path):
    content = {"module.a.b": torch.zeros(1), "a.b": torch.ones(1)}
    torch.save(content, tmp_path / "both.pt")
    assert set(tensors.open_file(tmp_path / "both.pt")[0]) == set(content)
