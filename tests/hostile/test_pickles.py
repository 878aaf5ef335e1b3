"""A pickle put in the place of any file that strangers send is refused, and does not run."""

import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import child
from hostile.evil import Evil

from data_gen.annotations import InstanceVerifier
from data_gen.stages.ingest import read_captions
from evals import reading
from negclip_jax.common.errors import InputError
from negclip_jax.data.images import Preprocessor, decode
from negclip_jax.data.pairs import read_pairs
from negclip_jax.data.tokenizer import load_tokenizer
from negclip_jax.interop.config import read_config, settings_of
from negclip_jax.interop.readers import read_any
from negclip_jax.interop.tensors import open_file, open_weights
from negclip_jax.interop.torch_archives import torchscript_tensors


def in_folder(reader):
    return lambda path: reader(path.parent)


DOORS = {
    "pairs.json": read_pairs,
    "pairs.jsonl": read_pairs,
    "pairs.parquet": read_pairs,
    "captions.json": lambda path: read_captions(str(path)),
    "instances.json": InstanceVerifier,
    "benchmark.json": lambda path: reading.read_json(path, (list, dict)),
    "benchmark.jsonl": reading.read_json_lines,
    "benchmark.csv": lambda path: reading.read_csv(path, ("captions",)),
    "ccneg_preprocessed.pt": read_pairs,
    "photo.jpg": decode,
    "config.json": in_folder(read_config),
    "preprocessor_config.json": in_folder(lambda folder: Preprocessor(**settings_of(folder))),
    "tokenizer.json": in_folder(load_tokenizer),
    "spiece.model": in_folder(load_tokenizer),
    "model.safetensors": in_folder(open_weights),
    "pytorch_model.bin": in_folder(open_weights),
    "pytorch_model.bin.index.json": in_folder(open_weights),
    "state.pt": open_file,
    "state.ckpt": open_file,
    "model.pt": read_any,
}


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", DOORS)
def test_a_pickle_is_refused_at_every_door(name, protocol, tmp_path):
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Evil(tmp_path / "ran"), protocol))
    with pytest.raises(InputError):
        DOORS[name](path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_among_tensors_is_refused(zipped, tmp_path):
    state = {"a": torch.zeros(2), "b": Evil(tmp_path / "ran")}
    torch.save(state, tmp_path / "state.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"asks for something else than tensors \(posix\.mkdir\)"):
        open_file(tmp_path / "state.pt")
    assert not (tmp_path / "ran").exists()


def test_an_array_of_objects_is_refused(tmp_path):
    """The cache of image features is memory-mapped by numpy, which can unpickle."""
    np.save(tmp_path / "a.npy", np.array([Evil(tmp_path / "ran")], object), allow_pickle=True)
    with pytest.raises(ValueError, match="object"):
        np.load(tmp_path / "a.npy", mmap_mode="r")
    assert not (tmp_path / "ran").exists()


def archive(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED, **files) -> Path:
    """A TorchScript archive around a `data.pkl`."""
    with zipfile.ZipFile(path, "w", compression) as out:
        out.writestr("m/constants.pkl", b"\x80\x02).")
        out.writestr("m/data.pkl", pickled)
        for name, content in files.items():
            out.writestr(f"m/data/{name}", content)
    return path


def module(*attributes: tuple[str, bytes]) -> bytes:
    """Opcodes of a compiled module with these attributes."""
    items = b"".join(b"X" + len(k).to_bytes(4, "little") + k.encode() + v for k, v in attributes)
    return b"c__torch__.M\nM\n)\x81}(" + items + b"ub"


STORAGE = b"((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0aX\x03\0\0\0cpuK\x04tQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n" + STORAGE + b"K\0K\x04\x85K\x01\x85\x89NtR"


def test_the_archives_of_these_tests_are_read(tmp_path):
    path = archive(tmp_path / "m.pt", module(("w", TENSOR)) + b".", a=np.arange(4.0, dtype="<f4"))
    np.testing.assert_array_equal(torchscript_tensors(path)["w"].read(), [0, 1, 2, 3])


CLASS, FUNCTION = b"c__torch__.M\nM\n", b"ctorch._utils\n_rebuild_tensor_v2\n"
BACKWARDS = TENSOR.replace(b"K\x01\x85\x89", b"J\xff\xff\xff\xff\x85\x89")
NO_STORAGE = TENSOR.replace(b"ctorch\nFloatStorage\n", b"K\x01")
REFUSED = {
    "a class": b"cposix\nsystem\n(X\x04\0\0\0truetR.",
    "a builtin": b"cbuiltins\neval\n(X\x01\0\0\x001tR.",
    "attributes of a class": CLASS + b"N}X\x07\0\0\0__doc__X\x01\0\0\0xs\x86b.",
    "attributes of a function": FUNCTION + b"N}X\x0c\0\0\0__defaults__)s\x86b.",
    "another storage": module(("w", NO_STORAGE)) + b".",
    "negative strides": module(("w", BACKWARDS)) + b".",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_archive_that_asks_for_more_than_tensors(kind, tmp_path):
    with pytest.raises(InputError, match=r"m\.pt is refused"):
        torchscript_tensors(archive(tmp_path / "m.pt", REFUSED[kind], a=bytes(16)))


def test_a_shared_module_is_no_exponential_walk(tmp_path):
    shared = module(("w", b"N")) + b"q\x01"
    for i in range(2, 60):
        both = b"".join(b"X\x01\0\0\0" + name + b"h" + bytes([i - 1]) for name in (b"a", b"b"))
        shared += b"0c__torch__.M\nM\n)\x81}(" + both + b"ubq" + bytes([i])
    with pytest.raises(InputError, match="too many modules"):
        torchscript_tensors(archive(tmp_path / "m.pt", b"\x80\x02" + shared + b"."))


def test_packed_tensors_are_not_unpacked(tmp_path):
    path = archive(
        tmp_path / "m.pt", module(("w", TENSOR)) + b".", zipfile.ZIP_DEFLATED, a=bytes(16)
    )
    with pytest.raises(InputError, match=r"compressed parts: m/data\.pkl, m/data/a"):
        torchscript_tensors(path)
    torch.save({"a": torch.zeros(1000)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as old,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert open_file(tmp_path / "plain.pt")[0]["a"].shape == (1000,)
    with pytest.raises(InputError, match="compressed parts"):
        open_file(tmp_path / "packed.pt")


def test_a_large_pickle_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.pt", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("m/constants.pkl", b"")
        out.writestr("m/data.pkl", bytes(2**26 + 1))
    with pytest.raises(InputError, match="larger than 67,108,864 bytes"):
        torchscript_tensors(tmp_path / "m.pt")


def test_a_number_in_an_archive_takes_no_memory(tmp_path):
    path = archive(tmp_path / "m.pt", b"\x80\x02Nr\xff\xff\xff\x3f.")
    setup = "from negclip_jax.interop.torch_archives import torchscript_tensors; import pathlib"
    code = f"result = len(torchscript_tensors(pathlib.Path({str(path)!r})))"
    result, before, after = child.measured(setup, code)
    assert result == 0 and after - before < 20


KINDS = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "meta": lambda: torch.zeros(3, device="meta"),
    "quantized": lambda: torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8),
    "number": lambda: 3,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_without_plain_elements_are_named(kind, tmp_path):
    torch.save({"good": torch.zeros(1), "odd": KINDS[kind]()}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"holds values that are not tensors: odd"):
        open_file(tmp_path / "a.pt")


def test_a_run_of_a_stranger_holds_no_pickle_that_runs(finished_run, tmp_path):
    """Each file of a workdir in turn becomes a pickle; orbax and tensorstore unpickle nothing."""
    workdir = tmp_path / "run"
    shutil.copytree(finished_run.workdir, workdir)
    step = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    folders = [workdir / "checkpoints" / str(step), workdir / "frozen", workdir / "base"]
    files = [p for folder in folders for p in sorted(folder.rglob("*")) if p.is_file()]
    names = {}
    for path in files:  # one of each name: data files are many and alike
        names.setdefault("d" if path.parent.name == "d" else path.name, path)
    assert {"_METADATA", "config.json"} <= set(names)
    evil = pickle.dumps(Evil(tmp_path / "ran"))
    for path in names.values():
        original = path.read_bytes()
        path.write_bytes(evil)
        try:
            read_any(f"{workdir}@{step}")
        except Exception as error:  # whatever is said of the damage, nothing was run
            assert not isinstance(error, FileExistsError)
        path.write_bytes(original)
        assert not (tmp_path / "ran").exists(), path
    read_any(f"{workdir}@{step}")


def test_the_pickles_of_these_tests_would_run(tmp_path):
    pickle.loads(pickle.dumps(Evil(tmp_path / "ran")))
    assert (tmp_path / "ran").is_dir() and "torch" in sys.modules
