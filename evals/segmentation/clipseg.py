"""CLIPSeg of transformers, with its own text tower or another in its place.

What steers the decoder is one vector a phrase, so a phrase is encoded once for each text tower,
and vision tower and decoder, which the exchange does not touch, are run by all of them together:
the vision tower once for a photo, whatever the number of phrases and models.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evals import models
from evals.models import Model
from negclip_jax.common import extras
from negclip_jax.common.errors import InputError
from negclip_jax.data.tokenizer import Tokenizer, load_tokenizer
from negclip_jax.embeddings.store import EmbeddingStore, key
from negclip_jax.interop import clipseg
from negclip_jax.interop.config import tokenizer_beside
from negclip_jax.interop.files import resolve
from negclip_jax.interop.tensors import open_weights
from negclip_jax.runtime import console

SIZE = 352  # pixels, of the published evaluation
# ImageNet's: timojl/clipseg, datasets/phrasecut.py.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_TEXTS, _MASKS = 256, 32  # at once


class CLIPSeg:
    """A pretrained CLIPSeg.

    `config` is its text tower (`interop.clipseg.read_config`), `size` the side of what it reads and
    draws in pixels, `fingerprint` of its weights.
    """

    def __init__(self, path: str, *, size: int = SIZE, device: str = "cpu"):
        """Reads a directory or hub name. Raises InputError, also where torch is missing."""
        self._torch = extras.require("torch", extra="torch", why="segmentation with CLIPSeg")
        self._directory = resolve(path)
        self.config, self.size = clipseg.read_config(self._directory), size
        stored = open_weights(self._directory)
        digest = hashlib.sha256()
        for name in sorted(stored):
            digest.update(name.encode() + np.ascontiguousarray(stored[name].read()).tobytes())
        self.fingerprint = digest.hexdigest()[:24]
        self._model = self._load(self._directory, device)
        patch = self._model.config.vision_config.patch_size
        if size % patch or size <= 0:
            raise InputError(
                f"--size={size} is no multiple of {patch}, the patch size of {path}: "
                f"{max(1, round(size / patch)) * patch} is the nearest"
            )
        names = [n for n in self._model.state_dict() if n.startswith(clipseg.TEXT_PREFIXES)]
        self._own = {n: self._model.state_dict()[n].clone() for n in names}

    def _load(self, directory: Path, device: str) -> Any:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        try:
            model, report = transformers.CLIPSegForImageSegmentation.from_pretrained(
                directory, output_loading_info=True, local_files_only=True
            )
        except Exception as error:  # transformers and torch raise nearly every type
            raise InputError(f"{directory} cannot be read as CLIPSeg: {_first(error)}") from error
        missing = sorted(report["missing_keys"])
        if missing:
            raise InputError(
                f"{directory} lacks {len(missing)} tensors of CLIPSeg ({missing[0]} is the first), "
                "which would be random: get the checkpoint again"
            )
        try:
            return model.float().eval().to(device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"--device={device} cannot be used: {_first(error)}") from error

    def tokenizer(self, fallback: Tokenizer) -> Tokenizer:
        """Its own, or `fallback` where its directory has none. Raises InputError."""
        beside = tokenizer_beside(self._directory)
        length = self.config.text.context_length
        found = load_tokenizer(beside, context_length=length) if beside else fallback
        models.check_end_token(self.config, found, str(self._directory))
        return found

    def check(self, model: Model) -> str:
        """A warning where a model's tower fits and was trained apart from CLIPSeg's, else "".

        Raises InputError where it does not fit.
        """
        clipseg.check_fits(self.config, model.config, model.name)
        if clipseg.is_related(self._own[clipseg.POSITIONS].cpu().numpy(), model.params):
            return ""
        return (
            f"The text tower of {model.name} was not fine-tuned from CLIPSeg's own (OpenAI's "
            "ViT-B/16): the decoder cannot read its space, and masks mean nothing."
        )

    def embed(
        self,
        texts: Sequence[str],
        tokenizer: Tokenizer,
        model: Model | None = None,
        *,
        store: EmbeddingStore | None = None,
    ) -> np.ndarray:
        """What phrases tell the decoder: projected, unnormalised, float32 `[N, D]`.

        The text tower of a `model` takes the place of CLIPSeg's own. What `store`, of this tower,
        holds is not computed again.
        """
        torch = self._torch
        store = EmbeddingStore(None, self.config.projection_dim) if store is None else store
        ids = tokenizer(texts).astype(np.int64)
        keys = [key(row.tobytes()) for row in ids]
        left = list({k: i for i, k in enumerate(keys) if k not in store}.values())
        if left:  # the model's text tower and projection, or CLIPSeg's own, into place
            tower = self._own
            if model is not None:
                tensors = clipseg.text_tensors(model.config, model.params)
                tower = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
            wrong = self._model.load_state_dict(tower, strict=False).unexpected_keys
            lacking = self._own.keys() - tower.keys()
            assert not wrong and not lacking, f"the exchange is not whole: {wrong} {lacking}"
        label = f"{model.name if model else 'CLIPSeg'}: phrases encoded"
        with console.Bar(label, len(left)) as bar, torch.inference_mode():
            for start in range(0, len(left), _TEXTS):
                part = left[start : start + _TEXTS]
                rows = torch.from_numpy(ids[part]).to(self._model.device)
                found = self._model.clip.get_text_features(rows)
                found = getattr(found, "pooler_output", found)
                store.add([keys[i] for i in part], found.cpu().numpy())
                bar.advance(len(part))
        return store.rows(keys)

    def pixels(self, image: Image.Image) -> np.ndarray:
        """A photo as it is evaluated, float32 `[3, size, size]`: squashed, not cropped.

        Bilinear with the corners' centres in place, on floats, then ImageNet's mean and std.
        """
        torch = self._torch
        values = torch.from_numpy(np.asarray(image.convert("RGB"), np.float32)).permute(2, 0, 1)
        squashed = torch.nn.functional.interpolate(
            values[None], (self.size, self.size), mode="bilinear", align_corners=True
        )[0]
        scaled = squashed.numpy() / 255
        return (scaled - np.float32(_MEAN)[:, None, None]) / np.float32(_STD)[:, None, None]

    def masks(self, pixels: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
        """Probabilities of the foreground in one photo, float32 `[N, size, size]`.

        `pixels` as `pixels` makes them; `embeddings` of N phrases are float32 `[N, D]`.
        """
        torch, model = self._torch, self._model
        device, found = model.device, []
        with torch.inference_mode():
            seen = model.clip.vision_model(
                torch.from_numpy(pixels)[None].to(device),
                output_hidden_states=True,
                interpolate_pos_encoding=True,
            ).hidden_states
            activations = [seen[i + 1] for i in model.extract_layers]
            for start in range(0, len(embeddings), _MASKS):
                steer = torch.from_numpy(embeddings[start : start + _MASKS]).to(device)
                repeated = [a.expand(len(steer), -1, -1) for a in activations]
                logits = model.decoder(tuple(repeated), steer).logits
                drawn = torch.sigmoid(logits)
                if drawn.shape[-1] != self.size:  # not as published: resized as photos are
                    drawn = torch.nn.functional.interpolate(
                        drawn[:, None], (self.size, self.size), mode="bilinear", align_corners=True
                    )[:, 0]
                found.append(drawn.cpu().numpy())
        return np.concatenate(found)


def _first(error: Exception) -> str:
    """The first line of what a library says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
