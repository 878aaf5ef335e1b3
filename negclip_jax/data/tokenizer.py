"""What every tokenizer offers, and the choice of the one that a checkpoint's files describe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from negclip_jax.data.clip_tokens import CLIPTokenizer
from negclip_jax.data.siglip_tokens import SigLIPTokenizer, is_siglip


class Tokenizer(Protocol):
    """From captions to token ids.

    Attributes:
      context_length: positions of the text tower, T.
      vocab_size: number of ids.
      eos_id: id of the end token.
    """

    context_length: int
    vocab_size: int
    eos_id: int

    def encode(self, text: str) -> list[int]:
        """Ids of one caption, without special tokens and without truncation."""

    def encode_ragged(self, texts: str | Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all captions one after the other, int32, and their offsets int64 `[N + 1]`."""

    def __call__(self, texts: str | Sequence[str], length: int | None = None) -> np.ndarray:
        """Padded ids int32 `[N, length]`, by default `[N, T]`; longer captions are truncated."""


def load_tokenizer(directory: str | Path, context_length: int = 77) -> Tokenizer:
    """The tokenizer of a checkpoint directory: CLIP's or SigLIP's, without network.

    Raises TokenizerError if there is none or the files are unusable.
    """
    kind = SigLIPTokenizer if is_siglip(Path(directory)) else CLIPTokenizer
    return kind.from_directory(directory, context_length)
