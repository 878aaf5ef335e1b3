"""Batches and fingerprints are those of earlier versions: a run that they began can resume.

The digests were written by the version that held all pairs and tokens in memory.
"""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from etils import epath

from negclip_jax.data.images import Preprocessor
from negclip_jax.data.loader import CachedFeatures
from negclip_jax.data.tokenizer import load_tokenizer
from negclip_jax.training.inputs import fingerprint, loaders

MISSING = (7, 50, 119)
BASE = {
    "sources": "",
    "fields": "",
    "caption_mode": "negated",
    "original_fraction": 0.5,
    "foils": 0,
    "statements": None,
    "text_nouns": None,
    "true_texts": 1,
    "false_texts": 3,
    "truncated": "drop_lost",
    "validation_fraction": 0.2,
    "split_by": "image",
    "split_seed": 42,
    "max_bad_images": 0.1,
    "packing": True,
    "workers": 0,
    "threads": 2,
    "kept_pixels_mib": 0.0,
    "seed": 3,
    "keeps_originals": False,
    "batch_sizes": (24, 16),
    "shards": 2,
}
# Changes of `BASE`.
RUNS = {
    "negated": {},
    "original": {"caption_mode": "original", "split_by": "caption"},
    "mix": {"caption_mode": "mix", "foils": 2, "truncated": "keep", "original_fraction": 0.3},
    "padded": {"caption_mode": "mix", "foils": 1, "packing": False, "truncated": "drop"},
    "beside": {"keeps_originals": True, "foils": 3, "split_seed": -1},
    "statements": {"statements": True, "foils": 1, "caption_mode": "mix"},
    "all": {"validation_fraction": 0.0, "seed": 2**40},
}
# Of training and validation: examples, fingerprint, digest of batches.
DIGESTS = {
    "negated": ["338 8196ac4d380e4315 2b61a4747608586a", "86 965e2bd0059c130c 9cfbc2e37f5edb99"],
    "original": ["374 aea42d544f892833 7463b5889f636436", "94 f7e58c00ee3fe5b2 89a989b306bc47b6"],
    "mix": ["376 d40701de8a9c234e 85fd74c37e154c4f", "92 652b34f79272a71a a0a90eb0e9676c61"],
    "padded": ["338 c3a8615c6cbc927d 213d9143237e396e", "86 de7d88d9c35a5917 9fad825806de562b"],
    "beside": ["338 3ec3d124a56aebf3 69e2868ef4fbf9b4", "86 9eba7f86f4b3e440 a72fabdc921d171d"],
    "statements": ["338 8f18ea2f0c0a532a a3ed144515354d39", "86 e0bf3493a8f156ed 9211ccfa0706c6d6"],
    "all": ["424 d17ac90c750e0379 1fa0932e94f4fcac"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pairs of 120 images, some of which share an id, lack a file or have long captions."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path_factory.mktemp("unchanged")
    (path / "images").mkdir()
    rng, rows, said = np.random.Generator(np.random.Philox(key=7)), [], []
    for i in range(120):
        name = f"{i * 37 % 120:03d}.jpg" if i % 5 else f"part/{i:03d}.jpg"
        (path / "images" / name).parent.mkdir(exist_ok=True)
        if i not in MISSING:
            (path / "images" / name).touch()
        for j in range(4):
            numbers = rng.integers(0, 99, 4).tolist()
            many = " " + "and a dog " * (3 * (numbers[0] < 8))
            record = {
                "image": f"./{name}" if j == 1 else name,
                "caption": f"thing {i} {numbers[1]}",
                "negated": f"{i % 30}{many}no cat {numbers[2]}",
                "foils": [f"no {i % 9} {numbers[3]}", f"{j}", "not"][: numbers[3] % 4],
            }
            if i % 3 == 0:
                record["image_id"] = i // 2 if i % 2 else f"x{i}"
            rows.append(record)
            for truth in (True, False) if numbers[1] % 2 else (True,):
                text = f"{'no' if truth else 'a'} {numbers[2]}"
                row = {"image": name, "text": f"{i} {text}", "truth": truth}
                said.append(row | {"polarity": "denies" if truth else "affirms", "unit": str(j)})
    (path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(said), path / "statements.parquet")
    return path


def made(folder, tokenizer, changes: dict):
    settings = BASE | changes
    if settings["statements"]:
        settings["statements"] = str(folder / "statements.parquet")
    settings |= {"pairs": str(folder / "pairs.jsonl"), "images": str(folder / "images")}
    settings["examples_dir"] = epath.Path(folder / "examples")
    return loaders(**settings, tokenizer=tokenizer, preprocess=Preprocessor(size=8, resize=8))


def digest(loader) -> str:
    """Of batches in two epochs, with features for images, some of which cannot be read."""
    count = len(loader.examples.images)
    features = np.arange(count, dtype=np.float32)[:, None]
    cached = CachedFeatures(features, np.arange(count) % 17 == 3)
    loader = dataclasses.replace(loader, cached=cached, max_bad_images=1.0, images=Unopened())
    sha = hashlib.sha256()
    for batch in loader.batches(0, 2 * loader.steps_per_epoch):
        for name, value in sorted({**batch, **(batch["text"] if loader.packing else {})}.items()):
            if not isinstance(value, dict):
                sha.update(f"{name} {value.dtype} {value.shape}".encode())
                sha.update(np.ascontiguousarray(value).data)
    return sha.hexdigest()[:16]


class Unopened:
    """Images that are only ever opened to say why they are bad."""

    def open(self, name: str) -> None:
        return None


@pytest.mark.parametrize("name", RUNS)
def test_batches_are_those_of_earlier_versions(folder, tiny_vocabulary, name):
    tokenizer = load_tokenizer(tiny_vocabulary, context_length=24)
    train, held = made(folder, tokenizer, RUNS[name])
    every = [train, *held.values()]
    found = [f"{len(x.examples)} {fingerprint(x.examples)} {digest(x)}" for x in every]
    assert found == DIGESTS[name]
