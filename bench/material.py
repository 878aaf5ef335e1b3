"""What the benchmarks run on: photos, negated captions and random weights, made from a seed.

Real photos and pairs can be given instead (`--pairs`, `--images`); speed depends on the size of
photos and the length of captions only, and the made ones are sized like COCO's: 640 x 480 JPEGs of
about 160 kB, five captions each, 22 tokens on average as NegBench's negated captions have.
"""

import dataclasses
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from PIL import Image

from negclip_jax.common.provenance import cores
from negclip_jax.data.examples import Examples
from negclip_jax.data.images import ImageSource, Preprocessor
from negclip_jax.data.loader import PairLoader
from negclip_jax.data.packing import Ragged
from negclip_jax.interop import huggingface
from negclip_jax.models import clip
from quickstart.tiny_clip import write_tokenizer
from quickstart.vocabulary import AFFIRMATIVE
from quickstart.world import COLOURS, KINDS

_DISTINCT = 256  # made photos
# One token each: what the vocabulary cuts into pieces is left out.
_WORDS = [*COLOURS, *KINDS, *(word for word in AFFIRMATIVE.split() if "|" not in word)]
_VIT_L_14 = clip.CLIPConfig(
    text=clip.TextConfig(width=768, heads=12, mlp_width=3072),
    vision=clip.VisionConfig(width=1024, layers=24, heads=16, mlp_width=4096, patch_size=14),
    projection_dim=768,
)
_AT_336 = dataclasses.replace(_VIT_L_14.vision, image_size=336)
ARCHITECTURES = {
    "vit_b_32": clip.CLIPConfig(),
    "vit_b_16": clip.CLIPConfig(vision=clip.VisionConfig(patch_size=16)),
    "vit_l_14": _VIT_L_14,
    "vit_l_14_336": dataclasses.replace(_VIT_L_14, vision=_AT_336),
    # Two blocks of width 64: for the tests of the benchmarks themselves.
    "tiny": clip.CLIPConfig(
        text=clip.TextConfig(width=64, layers=2, heads=2, mlp_width=128),
        vision=clip.VisionConfig(
            width=64, layers=2, heads=2, mlp_width=128, image_size=64, patch_size=16
        ),
        projection_dim=64,
    ),
}


def random_checkpoint(out: Path, architecture: str, *, tokenizer: Path | None = None) -> None:
    """Writes a Hugging Face directory of one of `ARCHITECTURES` with random weights.

    `tokenizer`: directory with CLIP's `vocab.json` and `merges.txt`; default the quickstart's small
    vocabulary, so that nothing has to be downloaded. The embedding table keeps CLIP's size.
    """
    config = ARCHITECTURES[architecture]
    with tempfile.TemporaryDirectory() as small:
        if tokenizer is None:
            end = write_tokenizer(Path(small)) - 1
            text = dataclasses.replace(config.text, eos_token_id=end)
            config = dataclasses.replace(config, text=text)
        _, params = clip.split(clip.CLIP(config, rngs=nnx.Rngs(0)))
        huggingface.save(out, config, params, tokenizer=tokenizer or small)


def write_pairs(out: Path, pairs: int, photos: int) -> tuple[Path, Path]:
    """Writes photos and negation pairs; returns the pairs file and the image directory.

    Photos beyond the first few hundred are copies with other trailing bytes: other files, which
    take as long to read, to decode and to encode.
    """
    rng, path, images = np.random.default_rng(0), out / "pairs.jsonl", out / "images"
    images.mkdir(parents=True)
    made = [photo_bytes(rng) for _ in range(min(photos, _DISTINCT))]
    for i in range(photos):
        (images / f"{i:06d}.jpg").write_bytes(made[i % len(made)] + i.to_bytes(4, "big"))
    with path.open("w") as file:
        for i in range(pairs):
            caption = negated_caption(rng)
            record = {"image": f"{i % photos:06d}.jpg", "caption": caption, "negated": caption}
            file.write(json.dumps(record) + "\n")
    return path, images


def photo_loader(images: ImageSource, names: list[str], batch_size: int, **how: Any) -> PairLoader:
    """A loader of photos by all cores; `how`: more of its options."""
    n = len(names)  # a loader wants captions: each is a start and an end token here
    texts = Ragged(np.zeros(2 * n, np.int32), 2 * np.arange(n + 1))
    return PairLoader(
        examples=Examples.of_captions(names, np.arange(n), texts),
        images=images,
        preprocess=Preprocessor(exact=False),
        batch_size=batch_size,
        threads=cores(),
        **how,
    )


def photo_bytes(rng: np.random.Generator, quality: int = 88, **how: Any) -> bytes:
    """A JPEG of `photo`, by default as large as COCO's."""
    encoded = io.BytesIO()
    photo(rng, **how).save(encoded, "JPEG", quality=quality)
    return encoded.getvalue()


def photo(rng: np.random.Generator, size: tuple[int, int] = (640, 480)) -> Image.Image:
    """An RGB image of `size` (width, height) with the spectrum of a photo: amplitude 1 / frequency.

    Natural images have this spectrum (Field, 1987), so JPEG spends on it what it spends on them.
    """
    width, height = size
    x, y = np.fft.rfftfreq(width), np.fft.fftfreq(height)[:, None]
    amplitude = 1 / np.maximum(np.hypot(x, y), 1 / max(size))
    noise = rng.standard_normal((3, height, width))
    channels = np.fft.irfft2(np.fft.rfft2(noise) * amplitude, s=(height, width))
    channels[1:] = channels[:1] + 0.3 * channels[1:]  # colours vary less than brightness
    scaled = 128 + 55 * channels / channels.std(axis=(1, 2), keepdims=True)
    return Image.fromarray(np.clip(scaled, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def caption_lengths(rng: np.random.Generator, count: int) -> np.ndarray:
    """Tokens of captions with their start and end token, int64 `[count]`: NegBench's negated ones.

    Those have 22.4 on average and a standard deviation of 3.6.
    """
    return np.clip(np.round(rng.gamma(39, 22.4 / 39, count)), 8, 60).astype(np.int64)


def random_captions(rng: np.random.Generator, count: int, text: clip.TextConfig) -> Ragged:
    """Captions of `caption_lengths`, random tokens and the end token last."""
    lengths = np.minimum(caption_lengths(rng, count), text.context_length)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(1, text.eos_token_id, offsets[-1]).astype(np.int32)
    ids[offsets[1:] - 1] = text.eos_token_id
    return Ragged(ids, offsets)


def negated_caption(rng: np.random.Generator) -> str:
    """Words of the quickstart's world, as many as tokens of NegBench's negated captions."""
    tokens = int(caption_lengths(rng, 1)[0])
    words = [_WORDS[i] for i in rng.integers(len(_WORDS), size=tokens - 4)]
    return " ".join([*words, "no", "circle"])
