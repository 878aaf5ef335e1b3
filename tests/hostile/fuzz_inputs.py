"""Good files of every kind of untrusted input, small, and what reads them: for `fuzz.py`."""

import io
import json
import random
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Kind(NamedTuple):
    """A sort of file: its name, good contents of it, and what reads it."""

    file: str
    samples: list[bytes]
    read: Callable[[Path], object]


CAPTION = "A caf\u00e9 with \u201cno\u201d cat, don't."
_COCO = {
    "images": [
        {"id": i, "file_name": f"a/{i}.jpg", "width": 64, "height": 48} for i in range(1, 4)
    ],
    "annotations": [
        {
            "id": i,
            "image_id": i,
            "caption": CAPTION,
            "updated_caption": "There is no dog.",
            "foils": ["A dog."],
            "category_id": 1,
            "bbox": [1, 2, 30, 40],
            "area": 1200.5,
            "iscrowd": 0,
        }
        for i in range(1, 4)
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
}
_RECORD = {"image": "a/1.jpg", "caption": CAPTION, "negated": "No dog.", "foils": ["A dog."]}
_KARPATHY = {
    "images": [
        {"split": "test", "filename": "1.jpg", "filepath": "val2014", "sentences": [{"raw": "x"}]}
    ]
}
_CSV = 'filepath,image_id,captions\na/1.jpg,1,"[\'A cat.\', \'No ""dog"".\']"\nb.jpg,2,"[\'x\']"\n'
_TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}
_CONFIG = {
    "model_type": "clip",
    "projection_dim": 24,
    "text_config": _TOWER | {"max_position_embeddings": 12, "eos_token_id": 97},
    "vision_config": {"image_size": 16, "patch_size": 4, "hidden_act": "gelu"},
}
_PIPELINE = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.1, 0.2, 0.3],
    "resample": 3,
}


def _json(content: object) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()


def _photos() -> dict[str, list[bytes]]:
    """Small photos of every format, some of them in odd modes."""
    from PIL import Image

    rng = random.Random(0)
    pixels = Image.frombytes("RGB", (24, 16), rng.randbytes(24 * 16 * 3))
    modes = {
        "jpeg": ("RGB", "L", "CMYK"),
        "png": ("RGB", "RGBA", "P", "1", "I;16", "LA"),
        "webp": ("RGB", "RGBA"),
        "gif": ("P",),
        "bmp": ("RGB", "P"),
        "tiff": ("RGB", "F", "I;16", "CMYK"),
        "ppm": ("RGB", "L"),
    }
    made: dict[str, list[bytes]] = {}
    for form, kinds in modes.items():
        for mode in kinds:
            image = pixels.convert("L").convert(mode) if ";" in mode else pixels.convert(mode)
            buffer = io.BytesIO()
            image.save(buffer, form)
            made.setdefault(form, []).append(buffer.getvalue())
    buffer = io.BytesIO()
    exif = pixels.getexif()
    exif[0x0112] = 6
    pixels.save(buffer, "jpeg", progressive=True, exif=exif.tobytes())
    made["jpeg"].append(buffer.getvalue())
    return made


def _tables() -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([_RECORD | {"image_id": str(i)} for i in range(5)])
    made = []
    for options in ({}, {"compression": "zstd"}, {"use_dictionary": False}):
        buffer = io.BytesIO()
        pq.write_table(table, buffer, **options)
        made.append(buffer.getvalue())
    return made


def _weights() -> tuple[list[bytes], list[bytes], list[bytes]]:
    """Safetensors, files of torch.save in both layouts, and a TorchScript archive."""
    import numpy as np
    import torch
    from safetensors.numpy import save

    arrays = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float16)}
    state = {name: torch.tensor(array) for name, array in arrays.items()}
    pickled = []
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
        pickled.append(buffer.getvalue())
    buffer = io.BytesIO()  # of a training script
    transposed = torch.nn.Parameter(torch.ones(4, 2).bfloat16().t())
    beside = {"epoch": 1, "args": {"seen": {1, 2}}, "raw": b"abc"}
    torch.save(beside | {"model": {"module.a": transposed}}, buffer)
    pickled.append(buffer.getvalue())
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    return [save(arrays)], pickled, [buffer.getvalue()]


def _features() -> dict[str, list[bytes]]:
    """Image features of two images, in every form that lies in one file."""
    import numpy as np
    from safetensors.numpy import save

    from negclip_jax.data import feature_files

    rows, names = np.arange(1, 7, dtype=np.float32).reshape(2, 3), ["a/1.jpg", "b.jpg"]
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in (np.float32, np.float16):
            feature_files.write(Path(folder) / "f.parquet", names, rows.astype(kind), "x")
            tables.append((Path(folder) / "f.parquet").read_bytes())
    made = save({"features": rows}, {"names": json.dumps(names), "model": "x"})
    buffer = io.BytesIO()
    np.save(buffer, rows)
    said = _json({"names": names, "model": "x"})
    made = {".parquet": tables, ".safetensors": [made], ".npy": [buffer.getvalue()]}
    return made | {".json": [said]}


def _vocabulary() -> bytes:
    from negclip_jax.data.tokenizer import byte_symbols

    symbols = list(byte_symbols().values())
    vocab = [*symbols, *(s + "</w>" for s in symbols), "ca", "<|startoftext|>", "<|endoftext|>"]
    model = {"vocab": {token: i for i, token in enumerate(vocab)}, "merges": ["c a"]}
    return _json({"model": model, "added_tokens": [{"id": 514, "content": "<|endoftext|>"}]})


def _read_all(path: Path) -> None:
    """Tensors are opened lazily: a file is good when all of them were read."""
    from negclip_jax.interop.tensors import open_file

    for tensor in open_file(path)[0].values():
        tensor.read()


def annotation_kinds() -> dict[str, Kind]:
    """Annotation files, and the JSON files of checkpoints."""
    from data_gen.annotations import InstanceVerifier
    from data_gen.stages.ingest import read_captions
    from evals import reading
    from evals.benchmarks.karpathy_retrieval import read_captions as read_captioned
    from negclip_jax.data.images import Preprocessor
    from negclip_jax.data.pairs import read_pairs
    from negclip_jax.data.tokenizer import load_tokenizer
    from negclip_jax.interop.config import read_config, settings_of

    def csv(path: Path) -> None:
        fields = reading.Fields(path)
        for i, row in enumerate(reading.read_csv(path, ("captions", "image_id"))):
            fields.texts(row, "captions", f"row {i}")
            fields.number(row, "image_id", f"row {i}")
        fields.done()

    coco, line = _json(_COCO), _json(_RECORD)
    return {
        "pairs, COCO": Kind("p.json", [coco], read_pairs),
        "pairs, lines": Kind("p.jsonl", [line + b"\n" + line], read_pairs),
        "pairs, Parquet": Kind("p.parquet", _tables(), read_pairs),
        "captions": Kind("c.json", [coco], lambda path: read_captions(str(path))),
        "instances": Kind("i.json", [coco], lambda path: InstanceVerifier(path).verdict(1, "cat")),
        "benchmark, CSV": Kind("b.csv", [_CSV.encode()], csv),
        "benchmark, captions": Kind(
            "k.json",
            [_json(_KARPATHY), coco, _json([_RECORD | {"caption": ["x", "y"]}])],
            lambda path: read_captioned(path, "test"),
        ),
        "config.json": Kind("config.json", [_json(_CONFIG)], lambda path: read_config(path.parent)),
        "preprocessing": Kind(
            "preprocessor_config.json",
            [_json(_PIPELINE)],
            lambda path: Preprocessor(**settings_of(path.parent)),
        ),
        "tokenizer": Kind(
            "tokenizer.json",
            [_vocabulary()],
            lambda path: load_tokenizer(path.parent)(CAPTION),
        ),
    }


def binary_kinds() -> dict[str, Kind]:
    """Weights, images and their features."""
    from negclip_jax.data.feature_files import ImageFeatures
    from negclip_jax.data.images import Preprocessor, decode

    def image(path: Path) -> None:
        for exact in (True, False):
            Preprocessor(size=32, resize=32, exif=True, exact=exact).uint8(decode(path))

    kept = _features()

    def features(path: Path) -> None:
        beside = {".npy": ".json", ".json": ".npy"}.get(path.suffix)
        if beside:
            path.with_suffix(beside).write_bytes(kept[beside][0])
        try:
            ImageFeatures(str(path.with_suffix(".npy") if beside else path))
        finally:
            if beside:
                path.with_suffix(beside).unlink()

    safetensors, pickled, scripts = _weights()
    kinds = {
        "safetensors": Kind("m.safetensors", safetensors, _read_all),
        "torch": Kind("m.pt", pickled, _read_all),
        "TorchScript": Kind("s.pt", scripts, _read_all),
    }
    for form, samples in kept.items():
        kinds[f"features, {form}"] = Kind(f"f{form}", samples, features)
    return kinds | {form: Kind(f"a.{form}", samples, image) for form, samples in _photos().items()}
