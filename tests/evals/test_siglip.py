"""A SigLIP is evaluated like a CLIP: whole rows instead of packed ones, no projection."""

import numpy as np
import pytest
import transformers
from interop import tiny

from evals import models
from evals.images import DataRoots
from negclip_jax.embeddings.encoder import Encoder
from negclip_jax.pretrained import CLIP

TEXTS = ["no cat", "a cat no dog", "x" * 40]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A SigLIP 2 with random weights and its kind of tokenizer; 16 positions for captions."""
    symbols = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *map(chr, range(97, 123)), "\u2581"]
    vocab = {token: i for i, token in enumerate(symbols)}
    text = {"max_position_embeddings": 16, "vocab_size": len(vocab)}
    path = tiny.saved(tmp_path_factory.mktemp("siglip") / "tiny", tiny.torch_siglip(text))
    tokenizer = transformers.Siglip2Tokenizer(vocab=vocab, merges=[], padding_side="right")
    tokenizer.save_pretrained(path)
    size = {"height": 16, "width": 16}
    transformers.SiglipImageProcessorPil(size=size).save_pretrained(path)
    return path


@pytest.mark.slow
def test_features_and_facts(checkpoint, photos, tmp_path, one_device_mesh):
    model, roots = models.load(str(checkpoint)), DataRoots((photos.data,))
    assert "both sides to 16 px by Pillow" in model.facts["preprocessing"]
    encoder = Encoder(model, photos.refs, TEXTS, roots, cache=tmp_path)
    assert encoder.truncated == TEXTS[2:]
    found = encoder.features(photos.refs, TEXTS)
    alone = CLIP.from_pretrained(checkpoint)
    pixels = alone.preprocess([ref.open(roots) for ref in photos.refs])
    expected = alone.encode_image(pixels), alone.encode_text(alone.tokenize(TEXTS))
    for ours, theirs in zip(found, map(np.asarray, expected), strict=True):
        unit = theirs / np.linalg.norm(theirs, axis=1, keepdims=True)
        np.testing.assert_allclose(ours, unit, atol=2e-6)
