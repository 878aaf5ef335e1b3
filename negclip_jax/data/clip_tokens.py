"""CLIP's byte-pair tokenizer in plain Python: OpenAI's ids for every caption.

OpenAI's `clip.simple_tokenizer` cleans text with ftfy, which transformers 5 does not: on curly
quotes, HTML entities and mojibake the two give different ids. This module follows OpenAI, with
one deliberate deviation: a literal ``<|startoftext|>`` or ``<|endoftext|>`` in a caption is
tokenized as the characters that it is. Captions come from files that others wrote, and CLIP
reads its text feature at the end token: a caption must not be able to place one.
"""

import html
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import ftfy
import numpy as np
import regex

from negclip_jax.common.errors import InputError
from negclip_jax.common.strict_json import read_json, read_text
from negclip_jax.data import bpe

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"

_MOST_IDS = 2**31  # ids are int32
# Bounds of the word cache: at most ~30 MB, and no word long enough to matter alone.
_CACHED_WORDS, _CACHED_WORD_LENGTH = 100_000, 64

# OpenAI's pattern without its two special tokens (see above). IGNORECASE on lower-cased text is
# not idle: it lets a long s (U+017F) match `'s`, as it does for OpenAI.
_WORDS = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)
# The same on lower-case ASCII, where the standard library's `re` is enough and faster.
_ASCII_WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+")


class TokenizerError(InputError):
    """A vocabulary that cannot be used, or a text that it cannot express."""


@lru_cache(1)
def byte_symbols() -> dict[int, str]:
    """The printable character that stands for each byte value in CLIP's (GPT-2's) vocabulary."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    return {byte: chr(byte) for byte in shown} | {
        byte: chr(256 + i) for i, byte in enumerate(hidden)
    }


def clean(text: str) -> str:
    """OpenAI's cleaning: ftfy, HTML entities twice, single spaces, lower case."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def split_words(text: str) -> list[str]:
    """Cleans a caption and cuts it into the words that byte-pair merges work in.

    ftfy and `html.unescape` change nothing in printable ASCII without an ampersand, and the
    pattern skips white space: such text, nearly every caption, only needs lower case.
    """
    if text.isascii() and "&" not in text and text.strip().isprintable():
        return _ASCII_WORDS.findall(text.lower())
    return _WORDS.findall(clean(text))


class CLIPTokenizer:
    """CLIP's tokenizer.

    Attributes:
      context_length: positions of the text tower, 77 for CLIP.
      vocab_size: number of ids, 49,408 for CLIP.
      bos_id, eos_id: ids of the start and end token.
      special_tokens: how many of a caption's positions they take.
    """

    special_tokens = 2

    def __init__(
        self,
        vocab: dict[str, int],
        merges: Sequence[tuple[str, str]],
        *,
        context_length: int = 77,
        start: str = START,
        end: str = END,
        source: str = "vocabulary",
    ):
        """From a symbol-to-id table and merges in order of rank.

        `source` names the vocabulary in messages. Raises TokenizerError if the two do not fit
        together, a special token is missing or `context_length` leaves no room for two tokens.
        """
        _check_vocabulary(vocab, merges, (start, end), source)
        _check_length(context_length, context_length)
        self.context_length = context_length
        self.vocab_size = max(vocab.values()) + 1
        self.bos_id, self.eos_id = vocab[start], vocab[end]
        self._vocab, self._source = vocab, source
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._words: dict[str, list[int]] = {}

    @classmethod
    def from_directory(cls, directory: str | Path, context_length: int = 77) -> "CLIPTokenizer":
        """Reads the vocabulary of a checkpoint directory, without network.

        From `vocab.json` and `merges.txt`, or, where transformers 5 saved only that, from
        `tokenizer.json`. Raises TokenizerError if there is none or the files are unusable.
        """
        directory = Path(directory)
        vocab_file, merges_file = directory / "vocab.json", directory / "merges.txt"
        if vocab_file.is_file() and merges_file.is_file():
            vocab = _vocab_table(read_json(vocab_file, dict, TokenizerError), vocab_file)
            merges = _merges(merges_file)
        elif (directory / "tokenizer.json").is_file():
            vocab, merges = _read_tokenizer_json(directory / "tokenizer.json")
        else:
            raise TokenizerError(
                f"{directory} has no tokenizer: put CLIP's vocab.json and merges.txt, or a "
                "tokenizer.json, beside the weights."
            )
        start, end = _special_tokens(directory / "tokenizer_config.json")
        return cls(
            vocab,
            merges,
            context_length=context_length,
            start=start,
            end=end,
            source=str(directory),
        )

    def encode(self, text: str) -> list[int]:
        """Ids of one caption, without start and end token and without truncation."""
        if not isinstance(text, str):
            raise TokenizerError(f"A caption must be a string, got {type(text).__name__}: {text!r}")
        known, ids = self._words, []
        for word in split_words(text):
            word_ids = known.get(word)
            ids += self._encode_word(word) if word_ids is None else word_ids
        return ids

    def __call__(self, texts: str | Sequence[str], length: int | None = None) -> np.ndarray:
        """Token ids int32 `[N, length]` (`context_length` if None), zero after the end token.

        A longer caption is cut so that its last id is the end token. Raises TokenizerError for a
        text that is not a string and for a length outside 2..context_length.
        """
        flat, offsets = self._ragged(texts, length)
        counts = np.diff(offsets)
        ids = np.zeros((len(counts), length or self.context_length), np.int32)
        ids[np.arange(ids.shape[1]) < counts[:, None]] = flat
        return ids

    def encode_ragged(self, texts: str | Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids without padding: int32 `[sum of lengths]` and offsets int64 `[N + 1]`.

        Caption i is `ids[offsets[i] : offsets[i + 1]]`, start and end token included, at most
        `context_length` long.
        """
        return self._ragged(texts, None)

    def _ragged(self, texts, length):
        length = self.context_length if length is None else length
        _check_length(length, self.context_length)
        flat: list[int] = []
        offsets = [0]
        for text in [texts] if isinstance(texts, str) else texts:
            ids = self.encode(text)
            flat.append(self.bos_id)
            flat += ids if len(ids) <= length - 2 else ids[: length - 2]
            flat.append(self.eos_id)
            offsets.append(len(flat))
        return np.array(flat, np.int32), np.array(offsets, np.int64)

    def _encode_word(self, word: str) -> list[int]:
        symbols = byte_symbols()
        parts = [symbols[byte] for byte in word.encode("utf-8")]
        parts[-1] += WORD_END
        try:
            ids = [self._vocab[part] for part in bpe.merge(parts, self._ranks)]
        except KeyError as error:
            raise TokenizerError(
                f"The vocabulary of {self._source} has no symbol {error.args[0]!r}, needed for "
                f"the word {word[:40]!r}: use the vocabulary that the checkpoint was trained with."
            ) from None
        if len(word) <= _CACHED_WORD_LENGTH:
            if len(self._words) >= _CACHED_WORDS:
                self._words.clear()
            self._words[word] = ids
        return ids


def _check_length(length: int, context_length: int) -> None:
    if not 2 <= length <= context_length:
        raise TokenizerError(
            f"A token length of {length} cannot be used: it must hold the start and the end token "
            f"and be at most the context length, {context_length}."
        )


def _check_vocabulary(vocab, merges, specials, source) -> None:
    """Raises TokenizerError, naming the first misfits, if vocabulary and merges do not agree."""
    missing = [token for token in specials if token not in vocab]
    if missing:
        raise TokenizerError(
            f"The vocabulary of {source} lacks {', '.join(missing)}: not a CLIP vocabulary."
        )
    if not any(symbol.endswith(WORD_END) for symbol in vocab):
        raise TokenizerError(
            f'The vocabulary of {source} has no symbol that ends in "{WORD_END}": it belongs to '
            "another byte-pair tokenizer (GPT-2, RoBERTa), not to CLIP."
        )
    unfit = [pair for pair in merges if not all(s in vocab for s in (*pair, "".join(pair)))]
    if unfit:
        shown = ", ".join(" ".join(pair) for pair in unfit[:5])
        raise TokenizerError(
            f"The merges and the vocabulary of {source} do not fit together: {len(unfit)} of "
            f"{len(merges)} merges use a symbol without an id ({shown}). Copy both files from the "
            "same checkpoint."
        )


def _vocab_table(vocab, path: Path) -> dict[str, int]:
    if not isinstance(vocab, dict):
        raise TokenizerError(f"{path} does not hold a table of symbols and their ids.")
    bad = [s for s, i in vocab.items() if type(i) is not int or not 0 <= i < _MOST_IDS]
    if bad:
        raise TokenizerError(f"{path}: the id of {bad[0]!r} is {vocab[bad[0]]!r}, not a number.")
    if len(set(vocab.values())) < len(vocab):
        raise TokenizerError(f"{path}: two symbols share one id.")
    return vocab


def _merges(path: Path) -> list[tuple[str, str]]:
    lines = read_text(path, TokenizerError).split("\n")
    # Only the first line can be a comment: "#" is a symbol like any other after it.
    first = 1 if lines[0].startswith("#version") else 0
    return [
        _merge_pair(line.rstrip("\r"), f"{path}, line {number}")
        for number, line in enumerate(lines[first:], first + 1)
        if line.strip()
    ]


def _merge_pair(merge, where: str) -> tuple[str, str]:
    given = merge.split(" ") if isinstance(merge, str) else merge
    pair = tuple(given) if isinstance(given, list) else ()
    if len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
        raise TokenizerError(f"{where}: {str(merge)[:80]!r} is not a merge of two symbols.")
    return pair


def _read_tokenizer_json(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    content = read_json(path, dict, TokenizerError)
    kind = content["model"].get("type") if isinstance(content.get("model"), dict) else None
    if kind in ("Unigram", "WordPiece", "WordLevel"):
        raise TokenizerError(
            f"{path} is a {kind} tokenizer, and only byte-pair ones as CLIP's are read: tokenize "
            "with transformers' AutoTokenizer and give the ids."
        )
    try:
        vocab, merges = dict(content["model"]["vocab"]), list(content["model"]["merges"])
        vocab |= {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
    except (KeyError, TypeError, ValueError):
        raise TokenizerError(
            f"{path} has no byte-pair model (model.vocab and model.merges) as CLIP's tokenizer "
            "has: copy the tokenizer files from the checkpoint that the weights came from."
        ) from None
    merges = [_merge_pair(m, f"{path}, merge {i}") for i, m in enumerate(merges)]
    return _vocab_table(vocab, path), merges


def _special_tokens(path: Path) -> tuple[str, str]:
    """Names of start and end token from `tokenizer_config.json`, CLIP's where it says nothing."""
    config = read_json(path, dict, TokenizerError) if path.is_file() else {}
    values = (config.get("bos_token") or START, config.get("eos_token") or END)
    start, end = (v.get("content") if isinstance(v, dict) else v for v in values)
    if not (isinstance(start, str) and isinstance(end, str)):
        raise TokenizerError(f"{path}: bos_token and eos_token must be names of tokens.")
    return start, end
