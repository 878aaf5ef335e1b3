"""torch's files are read as torch reads them, without torch and without running them."""

import argparse
import os
import pickle
import sys
import tarfile
import zipfile
from collections import Counter, OrderedDict, defaultdict

import ml_dtypes
import numpy as np
import pytest
import torch
from interop import libraries, tiny

from negclip_jax.interop import openai
from negclip_jax.interop.files import CheckpointError
from negclip_jax.interop.readers import read_any
from negclip_jax.interop.tensors import open_file
from negclip_jax.interop.torch_archives import (
    is_torchscript,
    saved_content,
    torchscript_tensors,
)


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
    with pytest.raises(CheckpointError, match=r"broken\.pt .*is (damaged|refused)"):
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


def saved_tensors():
    """A tensor of every type and layout that a state dict may hold."""
    torch.manual_seed(0)
    grid = torch.arange(24.0).reshape(4, 6)
    kinds = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
    kinds += [torch.int8, torch.int16, torch.int32, torch.complex64]
    state = {f"{kind}": (torch.randn(3, 2) * 3).to(kind) for kind in kinds}
    state |= {"grid": grid, "transposed": grid.t(), "part": grid[1:, 1::2], "row": grid[2]}
    state |= {"repeated": torch.ones(1, 3).expand(4, 3), "empty": torch.zeros(0, 3)}
    state |= {"scalar": torch.tensor(4.6052), "parameter": torch.nn.Parameter(torch.randn(2))}
    return OrderedDict(state)


@pytest.mark.parametrize(
    "options", [{}, {"pickle_protocol": 4}, {"pickle_protocol": 5}, "before 1.6"]
)
def test_a_state_dict_is_equal_to_torchs_reading(options, tmp_path, monkeypatch):
    path = tmp_path / "state.bin"
    old = options == "before 1.6"
    torch.save(
        saved_tensors(), path, **({"_use_new_zipfile_serialization": False} if old else options)
    )
    expected = torch.load(path, weights_only=False)  # which knows protocols above 2 otherwise not
    monkeypatch.setitem(sys.modules, "torch", None)
    found, origin = open_file(path)
    assert list(found) == list(expected) and origin == "bare"
    for name, tensor in expected.items():
        ours, bits = found[name].read(), tensor.detach().contiguous().view(-1)
        assert found[name].shape == ours.shape == tuple(tensor.shape)
        assert f"torch.{found[name].dtype}" == str(tensor.dtype)
        raw = bits.view(torch.uint8) if bits.numel() else bits
        assert np.ascontiguousarray(ours).tobytes() == raw.numpy().tobytes(), name


def test_types_that_stand_apart_from_their_storage(tmp_path):
    state = {
        "unsigned": torch.arange(5).to(torch.uint16),
        "eight": torch.ones(3).to(torch.float8_e5m2),
    }
    torch.save(state, tmp_path / "a.pt")
    found, _ = open_file(tmp_path / "a.pt")
    np.testing.assert_array_equal(found["unsigned"].read(), np.arange(5, dtype=np.uint16))
    assert found["eight"].read().dtype == ml_dtypes.float8_e5m2


def test_what_stands_beside_a_state_dict(tmp_path):
    """An optimizer, a schedule, counters, arguments and what has no plain elements."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 2)).sum().backward()
    optimizer.step()
    content = {
        "epoch": 3, "model_state_dict": model.state_dict(), "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1).state_dict(),
        "args": argparse.Namespace(lr=1e-3, betas=(0.9, 0.98)), "best": np.float64(0.5),
        "rng": torch.get_rng_state(), "sparse": torch.eye(2).to_sparse(), "size": torch.Size([2]),
        "kind": torch.float16, "device": torch.device("cpu"), "raw": b"abc", "set": {1, 2},
        "counts": Counter("aab"), "lists": defaultdict(list, a=[1]),
    }  # fmt: skip
    torch.save(content, tmp_path / "epoch.ckpt")
    found, origin = open_file(tmp_path / "epoch.ckpt")
    assert origin == "wrapped" and list(found) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(found[name].read(), tensor.numpy())
    again = saved_content(tmp_path / "epoch.ckpt")
    assert again["raw"] == b"abc" and again["set"] == {1, 2} and again["kind"] == "float16"


def test_files_of_other_machines_and_times(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "little.pt")
    with (
        zipfile.ZipFile(tmp_path / "little.pt") as old,
        zipfile.ZipFile(tmp_path / "big.pt", "w") as new,
    ):
        for name in old.namelist():
            new.writestr(name, b"big" if name.endswith("byteorder") else old.read(name))
    with pytest.raises(CheckpointError, match="was written on a big-endian machine"):
        open_file(tmp_path / "big.pt")
    with tarfile.open(tmp_path / "old.pt", "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.add(__file__, "storages")
    with pytest.raises(CheckpointError, match="is a tar that PyTorch wrote before 2018: load it"):
        open_file(tmp_path / "old.pt")


def test_shared_storages_are_not_copied(tmp_path):
    """A thousand views of one storage take no more than the file."""
    big = torch.zeros(1000, 1000)
    torch.save({f"{i}": big[i] for i in range(1000)}, tmp_path / "views.pt")
    found = open_file(tmp_path / "views.pt")[0]
    arrays = [tensor.read() for tensor in found.values()]
    places = [array.__array_interface__["data"][0] for array in arrays]
    assert set(np.diff(places)) == {4000}
    assert (tmp_path / "views.pt").stat().st_size < 5_000_000
