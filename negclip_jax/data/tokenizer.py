"""What every tokenizer offers, and the choice of the one that a checkpoint's files describe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from negclip_jax.common.strict_json import read_json
from negclip_jax.data.clip_tokens import CLIPTokenizer, TokenizerError
from negclip_jax.data.siglip_tokens import SigLIPTokenizer, is_siglip


class Tokenizer(Protocol):
    """From captions to token ids.

    Attributes:
      context_length: positions of the text tower, T.
      vocab_size: number of ids.
      eos_id: id of the end token.
      special_tokens: positions of a caption that the start and end token take.
    """

    context_length: int
    special_tokens: int
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

    Raises TokenizerError if there is none, the files are unusable, or a configuration of open_clip
    beside them says that captions are cleaned in another way first.
    """
    directory = Path(directory)
    if is_siglip(directory):
        return SigLIPTokenizer.from_directory(directory, context_length)
    path = directory / "open_clip_config.json"
    if path.is_file():
        raw = read_json(path, dict, TokenizerError)
        model = raw.get("model_cfg", raw)
        text = model.get("text_cfg") if isinstance(model, dict) else None
        keys = ("tokenizer_kwargs", "tokenizer_mode")
        said = [f"{key} {text[key]!r}" for key in keys if isinstance(text, dict) and text.get(key)]
        if said:
            raise TokenizerError(
                f"{path}: text_cfg has {' and '.join(said)}, which this tokenizer does not do: "
                "tokenize with open_clip and give the ids."
            )
    return CLIPTokenizer.from_directory(directory, context_length)
