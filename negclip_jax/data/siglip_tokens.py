"""SigLIP's tokenizers: SentencePiece for the first, Gemma's byte-pair model for the second.

Both put an end token after the text and pad to the model's full length, and the model reads the
padding: rows are always whole. A caption cannot place a special token; it is tokenized as the
characters that it is.
"""

import string
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from negclip_jax.common import extras
from negclip_jax.common.strict_json import read_json
from negclip_jax.data.clip_tokens import TokenizerError

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def is_siglip(directory: Path) -> bool:
    """Whether a directory's tokenizer is SigLIP's, by its class or its SentencePiece file."""
    kind = str(_settings(directory).get("tokenizer_class", ""))
    return kind.startswith(("Siglip", "Gemma")) or (directory / "spiece.model").is_file()


class SigLIPTokenizer:
    """SigLIP's tokenizer, see `data.tokenizer.Tokenizer`.

    Attributes:
      context_length: positions of the text tower, 64 for SigLIP: the length of every row.
      vocab_size: number of ids.
      eos_id, pad_id: ids of the end token and of padding.
      special_tokens: how many of a caption's positions the end token takes.
    """

    special_tokens = 1

    def __init__(
        self,
        encode: Callable[[str], list[int]],
        *,
        vocab_size: int,
        eos_id: int,
        pad_id: int,
        context_length: int = 64,
    ):
        """`encode` gives the ids of a caption, without special tokens."""
        if context_length < 1:
            raise TokenizerError(f"context_length is {context_length}: it must be at least 1.")
        self._encode, self.vocab_size = encode, vocab_size
        self.eos_id, self.pad_id, self.context_length = eos_id, pad_id, context_length

    @classmethod
    def from_directory(cls, directory: str | Path, context_length: int = 64) -> "SigLIPTokenizer":
        """Reads a checkpoint directory, without network.

        SigLIP: `spiece.model`, with the package sentencepiece; captions lose their punctuation.
        SigLIP 2, and SigLIP where a `tokenizer.json` came along: that file. Captions become lower
        case in both, as in training (big_vision's `canonicalize_text`; transformers'
        `SiglipTokenizer` and `Siglip2Tokenizer`). Raises TokenizerError if neither is there.
        """
        directory = Path(directory)
        if (directory / "tokenizer.json").is_file():
            return cls(**_from_json(directory), context_length=context_length)
        if (directory / "spiece.model").is_file():
            return cls(**_from_sentencepiece(directory), context_length=context_length)
        raise TokenizerError(
            f"{directory} has no tokenizer: put SigLIP's tokenizer.json or spiece.model beside the "
            "weights."
        )

    def encode(self, text: str) -> list[int]:
        """Ids of one caption, without end token and without truncation."""
        if not isinstance(text, str):
            raise TokenizerError(f"A caption must be a string, got {type(text).__name__}: {text!r}")
        return self._encode(text)

    def __call__(self, texts: str | Sequence[str], length: int | None = None) -> np.ndarray:
        """Token ids int32 `[N, context_length]`; a longer caption is cut before its end token.

        Raises TokenizerError for another length: the padding is part of the model's input.
        """
        if length not in (None, self.context_length):
            raise TokenizerError(
                f"length is {length}: SigLIP reads rows of exactly {self.context_length} tokens."
            )
        texts = [texts] if isinstance(texts, str) else texts
        rows = np.full((len(texts), self.context_length), self.pad_id, np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = [*self.encode(text)[: self.context_length - 1], self.eos_id]
            row[: len(ids)] = ids
        return rows

    def encode_ragged(self, texts: str | Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Rows of `__call__` one after the other, int32, and their offsets int64 `[N + 1]`."""
        rows = self(texts)
        return rows.reshape(-1), np.arange(len(rows) + 1, dtype=np.int64) * self.context_length


def _from_json(directory: Path) -> dict:
    from tokenizers import Tokenizer  # transformers' engine; a tenth of a second to import

    path, settings = directory / "tokenizer.json", _settings(directory)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception for every kind of bad file
        raise TokenizerError(f"{path} cannot be read: {error}.") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # captions come from files that others wrote
    is_first = str(settings.get("tokenizer_class", "")).startswith("SiglipTokenizer")
    clean = _without_punctuation if is_first else str.lower

    def encode(text: str) -> list[int]:
        return tokenizer.encode(clean(text), add_special_tokens=False).ids

    names = {"eos_id": ("eos_token", "</s>"), "pad_id": ("pad_token", "</s>")}
    ids = {k: tokenizer.token_to_id(_name(settings, *name)) for k, name in names.items()}
    missing = [_name(settings, *names[k]) for k, found in ids.items() if found is None]
    if missing:
        raise TokenizerError(f"{path} has no token {missing[0]!r}, which its settings name.")
    return {"encode": encode, "vocab_size": tokenizer.get_vocab_size(), **ids}


def _from_sentencepiece(directory: Path) -> dict:
    path = directory / "spiece.model"
    try:
        import sentencepiece
    except ImportError:
        raise TokenizerError(
            f"{path} needs the package sentencepiece: {extras.install('siglip')}, or put the "
            "checkpoint's tokenizer.json beside it."
        ) from None
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}.") from None
    # SigLIP pads with its end token.
    return {
        "encode": lambda text: model.encode(_without_punctuation(text)),
        "vocab_size": model.get_piece_size(),
        "eos_id": model.eos_id(),
        "pad_id": model.eos_id(),
    }


def _without_punctuation(text: str) -> str:
    """big_vision's canonical text: lower case, no ASCII punctuation, single spaces."""
    return " ".join(text.lower().translate(_PUNCTUATION).split())


def _settings(directory: Path) -> dict:
    path = directory / "tokenizer_config.json"
    return read_json(path, dict, TokenizerError) if path.is_file() else {}


def _name(settings: dict, key: str, default: str) -> str:
    value = settings.get(key) or default
    name = value.get("content") if isinstance(value, dict) else value
    if not isinstance(name, str):
        raise TokenizerError(f"tokenizer_config.json: {key} is {value!r}, not the name of a token.")
    return name
