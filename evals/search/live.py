"""What the live page asks for: photos of a text, captions of a photo, mixtures of two models.

Nothing here is compiled after the start: texts are padded to one of two lengths and, several at a
time, to batches of 8; of photos one is encoded at a time. A mixture has interpolated weights, not
interpolated scores (`evals.interpolate`). They are made once a step of alpha and kept; where the
vision towers differ, the folder's photos are encoded by them, and the embeddings stay in the cache
as those of any other model do.
"""

import dataclasses
import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from evals.interpolate import Mixtures, row_name
from evals.models import Model
from evals.search import ranking
from evals.search.ranking import Photos
from negclip_jax.common.decoding import decode
from negclip_jax.common.errors import InputError, one_line
from negclip_jax.data.packing import Ragged
from negclip_jax.embeddings.encoder import Encoder, compiled
from negclip_jax.embeddings.inputs import EncodeImages, EncodeTexts, truncated
from negclip_jax.interop.parameters import interpolate
from negclip_jax.models import clip
from negclip_jax.models.normalisation import l2_normalise
from negclip_jax.runtime import console

STEPS = 20  # of alpha between 0 and 1
_SHORT = 24  # tokens: what nearly all queries need
_ROWS = 8  # of a batch of captions
_VECTORS, _UPLOADS = 8192, 32  # that are kept
_MIXTURE_BYTES = 2**31  # of kept mixtures


class Gone(InputError):
    """An uploaded photo that is not kept any more."""


@dataclasses.dataclass(eq=False)
class Weights:
    """What one column is computed with: a model, or a mixture of the first model and another."""

    key: tuple[int, int]  # place of the model, and alpha in steps; `STEPS` for the model itself
    model: Model  # with its parameters on the device
    # Unit features of the photos, float32 `[photos, D]`; None until all are encoded.
    images: np.ndarray | None = None
    encoder: Encoder | None = None  # encodes those that are left
    own: dict[str, Any] = dataclasses.field(default_factory=dict)  # parameters that no model has


class Live:
    """Models, the first of which others are compared and mixed with, and photos; for one thread."""

    def __init__(self, models: Sequence[Model], folder: Photos, *, cache: Path):
        """Encodes the photos that `cache` lacks and compiles. Raises InputError."""
        self.models, self.folder, self._cache = models, folder, cache
        # Places in `folder.refs` of the photos that can be read.
        self.kept, features = ranking.encoded(models, folder, [], cache=cache)
        self.unmixable: dict[str, str] = {}  # why there is no mixture with the first, by name
        first = jax.device_put(models[0].params)
        self._weights: dict[tuple[int, int], Weights] = {}
        self._changed: list[list[str]] = []  # of each model, parts that differ from the first's
        for place, model in enumerate(models):
            try:
                Mixtures(models[0], model, (0.0, 1.0))
                same = jax.tree.map(np.array_equal, model.params, models[0].params)
                changed = [name for name, part in same.items() if not jax.tree.all(part)]
                params = first | jax.device_put({name: model.params[name] for name in changed})
            except InputError as error:
                self.unmixable[model.name] = str(error)
                changed, params = list(model.params), jax.device_put(model.params)
            self._changed.append(changed)
            on_device, key = dataclasses.replace(model, params=params), (place, STEPS)
            self._weights[key] = Weights(key, on_device, features[model.name][0])
        self._mixtures: dict[tuple[int, int], Weights] = {}  # the newest last
        self._vectors: dict[tuple[tuple[int, int], str, str], np.ndarray] = {}
        self._uploads: dict[str, list[np.ndarray]] = {}
        self._compile()

    def search(self, query: str, alphas: Sequence[int], top: int) -> dict[str, Any]:
        """The first `top` photos of each model.

        `alphas` are of each model but the first, in steps; `STEPS` is the model itself. Returns
        `columns`, of each model its `name`, `alpha` and `rows` as `ranking.shown` has them; `cut`,
        whether the text is longer than a model reads. As long as a mixture has not encoded all
        photos, `pending` instead, with how many are `done` of `of`: one more batch was encoded, ask
        again.
        """
        chosen = self._chosen(alphas)
        if isinstance(chosen, dict):
            return chosen
        scores = {
            model.name: weights.images @ self._texts(weights, [query])[0]
            for model, weights in zip(self.models, chosen, strict=True)
        }
        shown = ranking.shown(self.folder, self.kept, scores, top)
        for row in (row for rows in shown.values() for row in rows):
            row["name"] = one_line(row["name"])
        return self._columns(shown, alphas, [query])

    def captions(
        self, photo: int | str, captions: Sequence[str], alphas: Sequence[int]
    ) -> dict[str, Any]:
        """Captions, all different, of a photo in the order of their similarity under each model.

        `photo` is its place in `folder.refs`, or what `upload` returned. Returns as `search`; a row
        has the `caption`'s place, its cosine as `score`, its `share`, the softmax over the captions
        at the model's own temperature, `rank`, and `was`. Raises Gone for a photo that is not kept
        any more.
        """
        chosen = self._chosen(alphas)
        if isinstance(chosen, dict):
            return chosen
        scores, shares = {}, {}
        for model, weights in zip(self.models, chosen, strict=True):
            scores[model.name] = cosines = self._texts(weights, captions) @ self._photo(
                weights, photo
            )
            logits = np.exp(float(weights.model.params["logit_scale"])) * cosines.astype(np.float64)
            powers = np.exp(logits - logits.max())
            shares[model.name] = powers / powers.sum()
        shown = {
            name: [{"caption": i, "share": float(shares[name][i])} | row for i, row in rows]
            for name, rows in ranking.ordered(scores).items()
        }
        return self._columns(shown, alphas, captions)

    def upload(self, data: bytes) -> str:
        """Decodes a photo's bytes and keeps its pixels; returns a name. Other threads may call it.

        Raises ImageError, and InputError where features of photos were given, as it has none.
        """
        if self.folder.given:
            raise InputError("features of --features rank captions of the listed photos alone")
        image = decode(data, "this file")
        made = {repr(m.preprocess): m.preprocess for m in self.models}
        pixels = {text: preprocess.uint8(image) for text, preprocess in made.items()}
        name = secrets.token_urlsafe(12)
        self._uploads[name] = [pixels[repr(model.preprocess)] for model in self.models]
        _bound(self._uploads, _UPLOADS)
        return name

    def close(self) -> None:
        """Ends threads that decode."""
        for weights in self._mixtures.values():
            if weights.encoder:
                weights.encoder.close()

    def _chosen(self, alphas: Sequence[int]) -> list[Weights] | dict[str, Any]:
        """The weights of each column; how far they are where photos have to be encoded."""
        chosen = []
        for place, (model, alpha) in enumerate(zip(self.models, (STEPS, *alphas), strict=True)):
            if alpha != STEPS and model.name in self.unmixable:
                raise InputError(self.unmixable[model.name])
            key = (place, alpha) if alpha else (0, STEPS)
            weights = self._weights.get(key) or self._mixture(key)
            if (encoder := weights.encoder) is not None:
                if encoder.images.pending:
                    encoder.images.encode_next()
                if pending := encoder.images.pending:
                    count = len(self.kept)
                    return {"pending": {"done": count - pending, "of": count}}
                refs = [self.folder.refs[i] for i in self.kept]
                weights.images, _ = encoder.features(refs, [])
                encoder.close()
                weights.encoder = None
            chosen.append(weights)
        return chosen

    def _mixture(self, key: tuple[int, int]) -> Weights:
        if key in self._mixtures:
            self._mixtures[key] = found = self._mixtures.pop(key)
            return found
        for other in [k for k, weights in self._mixtures.items() if weights.encoder]:
            self._mixtures.pop(other).encoder.close()  # the slider moved on; its rows are kept
        place, step = key
        base, tuned = self.models[0], self.models[place]
        parts = ({name: m.params[name] for name in self._changed[place]} for m in (base, tuned))
        changed = jax.device_put(interpolate(*parts, step / STEPS))
        params = self._weights[0, STEPS].model.params | changed
        mixed = dataclasses.replace(tuned, name=row_name(step / STEPS), params=params)
        weights = Weights(key, mixed, own=changed)
        if self.folder.given or {"vision", "visual_projection"}.isdisjoint(changed):
            weights.images = self._weights[0, STEPS].images
        else:
            refs = [self.folder.refs[i] for i in self.kept]
            weights.encoder = Encoder(mixed, refs, [], self.folder, cache=self._cache)
        self._mixtures[key] = weights
        while len(self._mixtures) > 1 and _bytes(self._mixtures) > _MIXTURE_BYTES:
            del self._mixtures[next(iter(self._mixtures))]
        return weights

    def _columns(
        self, shown: Mapping[str, list], alphas: Sequence[int], texts: Sequence[str]
    ) -> dict[str, Any]:
        named = zip(shown.items(), (None, *(step / STEPS for step in alphas)), strict=True)
        columns = [
            {"name": one_line(n), "alpha": alpha, "rows": rows} for (n, rows), alpha in named
        ]
        return {"columns": columns, "cut": any(truncated(texts, m.tokenizer) for m in self.models)}

    def _texts(self, weights: Weights, texts: Sequence[str]) -> np.ndarray:
        """Unit features `[N, D]`."""
        new = [t for t in dict.fromkeys(texts) if (weights.key, "text", t) not in self._vectors]
        rows = 1 if len(new) == 1 else _ROWS
        for start in range(0, len(new), rows):
            part = new[start : start + rows]
            tokens = Ragged(*weights.model.tokenizer.encode_ragged(part))
            length = next(n for n in _lengths(weights.model) if n >= tokens.lengths.max())
            ids = tokens.padded(np.minimum(np.arange(rows), len(part) - 1), length)
            features = _run(weights.model, ids)[: len(part)]
            self._keep(weights, "text", part, features)
        found = [self._vectors[weights.key, "text", text] for text in texts]
        _bound(self._vectors, _VECTORS)
        return np.stack(found)

    def _photo(self, weights: Weights, photo: int | str) -> np.ndarray:
        """Unit features `[D]`."""
        if isinstance(photo, int):
            return weights.images[self.kept.index(photo)]
        if (weights.key, "image", photo) not in self._vectors:
            if photo not in self._uploads:
                raise Gone("this photo is not kept any more: drop it again")
            pixels = self._uploads[photo][weights.key[0]]
            self._keep(weights, "image", [photo], _run(weights.model, pixels[None]))
        return self._vectors[weights.key, "image", photo]

    def _keep(
        self, weights: Weights, kind: str, items: Sequence[str], features: np.ndarray
    ) -> None:
        if not (np.isfinite(features).all() and features.any(axis=1).all()):
            raise InputError(
                f"{weights.model.name} gives no usable features for this {kind}: not finite, or 0"
            )
        for item, vector in zip(items, l2_normalise(features), strict=True):
            self._vectors[weights.key, kind, item] = vector

    def _compile(self) -> None:
        """Runs every shape of every architecture once."""
        programs = {
            (repr(model.config), model.dtype, inputs.shape, repr(model.preprocess)): (model, inputs)
            for model in (weights.model for weights in self._weights.values())
            for inputs in _shapes(model, with_photos=not self.folder.given)
        }
        logging.info("compiling %s programs: no query will wait for that", len(programs))
        with console.Bar("compiling", len(programs)) as bar:
            for model, inputs in programs.values():
                _run(model, inputs)
                bar.advance(1)


def _shapes(model: Model, *, with_photos: bool) -> Iterator[np.ndarray]:
    for length in _lengths(model):
        for rows in (1, _ROWS):
            yield np.full((rows, length), model.tokenizer.eos_id, np.int32)
    if with_photos:
        size = model.preprocess.size
        yield np.zeros((1, size, size, 3), np.uint8)


def _lengths(model: Model) -> list[int]:
    """Texts are padded to these; where a model reads the padding, to its context alone."""
    full = model.config.text.context_length
    short = [] if model.tokenizer.always_pads else [_SHORT]
    return [n for n in short if 2 * n < full] + [full]


def _run(model: Model, inputs: np.ndarray) -> np.ndarray:
    """Features `[B, D]` of token ids `[B, T]` or of pixels uint8 `[B, H, W, 3]`."""
    graphdef, _ = clip.abstract(model.config, dtype=model.dtype)
    if inputs.ndim == 2:
        encode, batch = EncodeTexts(packed=False), {"ids": inputs}
    else:
        encode = EncodeImages(tuple(model.preprocess.mean), tuple(model.preprocess.std))
        batch = {"pixels": inputs, "bad": np.zeros(len(inputs), bool)}
    return np.asarray(compiled(encode, graphdef)(model.params, batch))


def _bytes(mixtures: Mapping[Any, Weights]) -> int:
    return sum(leaf.nbytes for m in mixtures.values() for leaf in jax.tree.leaves(m.own))


def _bound(kept: dict, most: int) -> None:
    """Forgets what came first."""
    while len(kept) > most:
        kept.pop(next(iter(kept)), None)
