"""TorchScript archives are read as torch reads them, without torch and without running them."""

import os
import pickle
import sys
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
import torch
from interop import libraries, tiny

from negclip_jax.interop import openai
from negclip_jax.interop.files import CheckpointError
from negclip_jax.interop.readers import read_any
from negclip_jax.interop.tensors import open_file
from negclip_jax.interop.torchscript import is_torchscript, torchscript_tensors


class Compiled(torch.nn.Module):
    """Every type, a view into a larger storage, a scalar, nesting, and what is no tensor."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        grid = torch.arange(24.0).reshape(4, 6)
        self.view = torch.nn.Parameter(grid.t()[1:, 1:3])
        self.half_ = torch.nn.Parameter(torch.randn(3).half())
        self.brain = torch.nn.Parameter(torch.randn(2, 2).bfloat16())
        self.double_ = torch.nn.Parameter(torch.randn(2).double())
        self.scale = torch.nn.Parameter(torch.tensor(4.6052))
        self.register_buffer("input_resolution", torch.tensor(224))
        self.register_buffer("nothing", torch.zeros(0, 3))
        self.blocks = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
        self.sizes = [1, 2]

    def forward(self, x):
        return self.blocks(x)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    path = tmp_path_factory.mktemp("jit") / "compiled.pt"
    torch.jit.script(Compiled()).save(path)
    return path


def test_equal_to_torch_without_torch(compiled, monkeypatch):
    expected = torch.jit.load(compiled).state_dict()
    monkeypatch.setitem(sys.modules, "torch", None)
    tensors, origin = open_file(compiled)
    assert set(tensors) == set(expected) and origin == "bare"
    for name, tensor in expected.items():
        ours = tensors[name].read()
        assert tensors[name].shape == tuple(tensor.shape) and ours.shape == tuple(tensor.shape)
        assert f"torch.{tensors[name].dtype}" == str(tensor.dtype), name
        np.testing.assert_array_equal(ours.astype(np.float64), tensor.double().numpy())
    assert tensors["brain"].read().dtype == ml_dtypes.bfloat16


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_compiled_model_of_openai(dtype, tmp_path):
    """As the released files: traced, and in float16."""
    model = tiny.torch_clip(tiny.OPENAI_TEXT, tiny.OPENAI_VISION)
    config, params = tiny.load(tiny.saved(tmp_path / "hf", model))
    out = openai.save(tmp_path / "out", config, params, dtype=dtype)
    theirs, _ = libraries.load("clip").load(str(out / "model.pt"), device="cpu")
    state = torch.load(out / "model.pt", weights_only=True)
    theirs.float().load_state_dict(state)
    pixels, ids = tiny.inputs(config)
    batch = (torch.tensor(pixels).permute(0, 3, 1, 2), torch.tensor(ids))
    traced = torch.jit.trace(theirs, batch)
    if dtype == "float16":
        traced = traced.half()
    traced.save(tmp_path / "ViT.pt")
    _, read, info = read_any(tmp_path / "ViT.pt")
    tiny.assert_equal_params(read, read_any(out)[1])
    assert info.activation_source == "the code in the archive" and info.layout == "openai"


ACTIVATIONS = {
    "gelu": torch.nn.GELU(),
    "gelu_pytorch_tanh": torch.nn.GELU("tanh"),
    "bare": torch.nn.ReLU(),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "compile_it", [torch.jit.script, lambda m: torch.jit.trace(m, torch.ones(2))]
)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_code_says_its_activation(name, compile_it, tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), ACTIVATIONS[name])
    compile_it(model).save(tmp_path / "m.pt")
    assert open_file(tmp_path / "m.pt")[1] == name
    wrapped = torch.nn.Sequential(OrderedDict(module=model))
    compile_it(wrapped).save(tmp_path / "wrapped.pt")
    names, origin = open_file(tmp_path / "wrapped.pt")
    assert set(names) == {"0.weight", "0.bias"}
    assert origin == ("wrapped" if name == "bare" else name)


def test_other_files_are_no_archives(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "zip.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "empty.pt").touch()
    assert not any(is_torchscript(tmp_path / f"{name}.pt") for name in ("zip", "old", "empty"))


def rewritten(source, target, pickled):
    """The archive with another `data.pkl`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("/data.pkl") else old.read(name))
    return target


class Evil:
    """Unpickling it would create a directory."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_code_is_refused_and_not_run(compiled, tmp_path):
    evil = rewritten(compiled, tmp_path / "evil.pt", pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(CheckpointError, match=r"refused.*else than tensors \(posix\.mkdir\)"):
        open_file(evil)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("pickled", [b"", b"\x80\x02.", pickle.dumps(3)[:3]])
def test_damaged_archives(pickled, compiled, tmp_path):
    broken = rewritten(compiled, tmp_path / "broken.pt", pickled)
    with pytest.raises(CheckpointError, match=r"broken\.pt is (damaged|refused)"):
        open_file(broken)


def test_tensor_outside_of_its_storage(compiled, tmp_path):
    with zipfile.ZipFile(compiled) as archive:
        name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
        # The view's first size, 5 of 6 columns, becomes 95.
        pickled = archive.read(name).replace(b"(K\x05K\x02", b"(K\x5fK\x02")
    broken = rewritten(compiled, tmp_path / "broken.pt", pickled)
    tensors = torchscript_tensors(broken)
    assert tensors["view"].shape == (95, 2)
    with pytest.raises(CheckpointError, match="outside of its storage"):
        tensors["view"].read()
