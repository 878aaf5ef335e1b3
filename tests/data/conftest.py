"""Loaders of the tiny pairs."""

import functools

import pytest
from tiny_batches import BATCH

from negclip_jax.data.examples import Examples, tokenize_pairs
from negclip_jax.data.images import ImageDirectory, Preprocessor
from negclip_jax.data.loader import PairLoader
from negclip_jax.data.pairs import read_pairs
from negclip_jax.data.tokenizer import load_tokenizer


@pytest.fixture(scope="session")
def pairs(tiny_pairs):
    return read_pairs(tiny_pairs / "pairs.json")


@pytest.fixture(scope="session")
def tokenizer(tiny_vocabulary):
    return load_tokenizer(tiny_vocabulary, context_length=24)


@pytest.fixture(scope="session")
def make_loader(tiny_pairs, pairs, tokenizer):
    """Function of PairLoader's arguments, and of those of tokenize_pairs."""

    @functools.cache
    def examples(captions: str, foils: int) -> Examples:
        images = sorted({pair.image for pair in pairs})
        return tokenize_pairs(pairs, images, tokenizer, caption_mode=captions, foils=foils)

    def make(captions: str = "mix", foils: int = 1, **arguments) -> PairLoader:
        settings = {
            "examples": examples(captions, foils),
            "images": ImageDirectory(tiny_pairs / "images"),
            "preprocess": Preprocessor(size=32, resize=32),
            "batch_size": BATCH,
            "seed": 5,
            "threads": 2,
            "original_fraction": 0.5 if captions == "mix" else 0.0,
        }
        return PairLoader(**(settings | arguments))

    return make
