"""Captions to token ids: CLIP's byte-pair tokenizer, SigLIP's two, and whose a directory holds.

OpenAI's `clip.simple_tokenizer` cleans text with ftfy, which transformers 5 does not: on curly
quotes, HTML entities and mojibake the two give different ids. `CLIPTokenizer` follows OpenAI, with
one deliberate deviation: a literal ``<|startoftext|>`` or ``<|endoftext|>`` in a caption is
tokenized as the characters that it is. Captions come from files that others wrote, and CLIP
reads its text feature at the end token: a caption must not be able to place one.

SigLIP's are SentencePiece for the first and Gemma's byte-pair model for the second. Both put an end
token after the text and pad to the model's full length, and the model reads the padding: rows are
always whole. A caption cannot place a special token there either.

Shape letters: N texts with I tokens in all, of which one shows up to L.
"""

import copy
import hashlib
import html
import json
import re
import string
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import ftfy
import numpy as np
import regex
from jaxtyping import Int32, Int64

from negclip_jax.common import extras
from negclip_jax.common.errors import InputError
from negclip_jax.common.provenance import package_versions
from negclip_jax.common.strict_json import read_json, read_text

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"

_MOST_IDS = 2**31  # ids are int32
_ALGORITHM = 1  # changes with the code, where that changes the ids of any text
# Bounds of the word cache: at most ~30 MB, and no word long enough to matter alone.
_CACHED_WORDS, _CACHED_WORD_LENGTH = 100_000, 64
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_OTHER_MODELS = ("Unigram", "WordPiece", "WordLevel")  # than byte pairs, in a tokenizer.json
_OTHER_KEYS = ("tokenizer_kwargs", "tokenizer_mode")  # of open_clip: captions are cleaned otherwise

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
    shown = {
        byte: chr(byte) for byte in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 256))
    }
    hidden = [byte for byte in range(256) if byte not in shown]
    return shown | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


def _whitespace(text: str) -> str:
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def clean(text: str) -> str:
    """OpenAI's cleaning: ftfy, HTML entities twice, single spaces, lower case."""
    return _whitespace(text).lower()


def _without_punctuation(text: str) -> str:
    """big_vision's canonical text: lower case, no ASCII punctuation, single spaces."""
    return " ".join(text.lower().translate(_PUNCTUATION).split())


def _canonicalized(text: str) -> str:
    return _without_punctuation(_whitespace(text).replace("_", " "))


# What open_clip does to captions before a tokenizer of transformers, by its `clean`. The names of
# these functions are part of fingerprints: prepared pairs are known by them.
_CLEANINGS = {"whitespace": _whitespace, "lower": clean, "canonicalize": _canonicalized}


def split_words(text: str) -> list[str]:
    """Cleans a caption and cuts it into the words that byte-pair merges work in.

    ftfy and `html.unescape` change nothing in printable ASCII without an ampersand, and the
    pattern skips white space: such text, nearly every caption, only needs lower case.
    """
    if text.isascii() and "&" not in text and text.strip().isprintable():
        return _ASCII_WORDS.findall(text.lower())
    return _WORDS.findall(clean(text))


class Tokenizer:
    """From captions to token ids.

    Attributes:
      context_length: positions of the text tower, T: 77 for CLIP, 64 for SigLIP.
      vocab_size: number of ids, 49,408 for CLIP.
      eos_id, pad_id: ids of the end token and of what fills up a row.
      special_tokens: positions of a caption that the start and end token take.
      always_pads: whether captions are filled up to the context length, for models that read it.
      fingerprint: changes with whatever changes the ids of a text; what was tokenized is kept by
        it.
    """

    context_length: int
    vocab_size: int
    eos_id: int
    pad_id: int = 0
    special_tokens: int
    fingerprint: str
    always_pads = False
    _start: tuple[int, ...] = ()

    def encode(self, text: str) -> list[int]:
        """Ids of one caption, without special tokens and without truncation."""
        if not isinstance(text, str):
            raise TokenizerError(f"A caption must be a string, got {type(text).__name__}: {text!r}")
        return self._encode(text)

    def encode_ragged(
        self, texts: str | Sequence[str], length: int | None = None
    ) -> tuple[Int32[np.ndarray, " I"], Int64[np.ndarray, " N_plus_1"]]:
        """Ids of all captions one after the other, and their offsets.

        Caption i is `ids[offsets[i] : offsets[i + 1]]`, special tokens included, of SigLIP padding
        as well. It is cut before its end token where it is longer than `length`, T by default.
        """
        length = self.context_length if length is None else length
        self._check_length(length)
        flat: list[int] = []
        offsets = [0]
        for text in [texts] if isinstance(texts, str) else texts:
            flat += self._start
            flat += self.encode(text)[: length - self.special_tokens]
            flat.append(self.eos_id)
            if self.always_pads:
                flat += [self.pad_id] * (offsets[-1] + length - len(flat))
            offsets.append(len(flat))
        return np.array(flat, np.int32), np.array(offsets, np.int64)

    def padding(self) -> Self:
        """The same, with every caption padded to the context length."""
        padded = copy.copy(self)
        padded.always_pads = True
        padded.fingerprint = _digest("padded", self.fingerprint)
        return padded

    def __call__(
        self, texts: str | Sequence[str], length: int | None = None
    ) -> Int32[np.ndarray, "N L"]:
        """Padded ids; L is `length`, by default the context length T. Longer captions are cut.

        Raises TokenizerError for a text that is not a string, and for a length outside 2..T, of
        SigLIP for any other than T.
        """
        flat, offsets = self.encode_ragged(texts, length)
        counts = np.diff(offsets)
        shape = (len(counts), self.context_length if length is None else length)
        ids = np.full(shape, self.pad_id, np.int32)
        ids[np.arange(shape[1]) < counts[:, None]] = flat
        return ids


class CLIPTokenizer(Tokenizer):
    """CLIP's tokenizer, OpenAI's ids for every caption; `bos_id` is the id of its start token."""

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
        from tokenizers.models import BPE  # transformers' engine; a tenth of a second to import

        _check_vocabulary(vocab, merges, (start, end), source)
        self.context_length = context_length
        self._check_length(context_length)
        self.vocab_size = max(vocab.values()) + 1
        self.bos_id, self.eos_id = vocab[start], vocab[end]
        self._start = (self.bos_id,)
        self._vocab, self._source = vocab, source
        self.fingerprint = _digest("clip", context_length, start, end, vocab, list(merges))
        # Merges in O(n log n), where OpenAI's own code needs seconds for a word of 20,000 letters.
        self._bpe = BPE(vocab=vocab, merges=list(merges), end_of_word_suffix=WORD_END)
        self._words: dict[str, list[int]] = {}

    @classmethod
    def from_directory(cls, directory: str | Path, context_length: int = 77) -> "CLIPTokenizer":
        """Reads the vocabulary of a checkpoint directory, without network.

        From `vocab.json` and `merges.txt`, or, where transformers 5 saved only that, from
        `tokenizer.json`. Raises TokenizerError if there is none or the files are unusable.
        """
        directory = Path(directory)
        path, merges_file = directory / "vocab.json", directory / "merges.txt"
        if path.is_file() and merges_file.is_file():
            vocab = read_json(path, dict, TokenizerError)
            lines = read_text(merges_file, TokenizerError).split("\n")
            # Only the first line can be a comment: "#" is a symbol like any other after it.
            first = 1 if lines[0].startswith("#version") else 0
            merges = {
                f"{merges_file}, line {number}": line.rstrip("\r")
                for number, line in enumerate(lines[first:], first + 1)
                if line.strip()
            }
        elif (path := directory / "tokenizer.json").is_file():
            vocab, merges = _read_tokenizer_json(path)
        else:
            raise TokenizerError(
                f"{directory} has no tokenizer: put CLIP's vocab.json and merges.txt, or a "
                "tokenizer.json, beside the weights."
            )
        for symbol, i in vocab.items():
            if type(i) is not int or not 0 <= i < _MOST_IDS:
                raise TokenizerError(f"{path}: the id of {symbol!r} is {i!r}, not a number.")
        if len(set(vocab.values())) < len(vocab):
            raise TokenizerError(f"{path}: two symbols share one id.")
        merges = [_merge_pair(merge, where) for where, merge in merges.items()]
        settings = _settings(directory)
        marks = {"start": _name(settings, "bos_token", START)}
        marks |= {"end": _name(settings, "eos_token", END)}
        return cls(vocab, merges, context_length=context_length, source=str(directory), **marks)

    def _encode(self, text: str) -> list[int]:
        known, ids = self._words, []
        for word in split_words(text):
            word_ids = known.get(word)
            ids += self._encode_word(word) if word_ids is None else word_ids
        return ids

    def _encode_word(self, word: str) -> list[int]:
        symbols = byte_symbols()
        letters = "".join(symbols[byte] for byte in word.encode("utf-8"))
        for part in (*letters[:-1], letters[-1] + WORD_END):
            if part not in self._vocab:  # the engine would leave it out
                raise TokenizerError(
                    f"The vocabulary of {self._source} has no symbol {part!r}, needed for the word "
                    f"{word[:40]!r}: use the vocabulary that the checkpoint was trained with."
                )
        ids = [token.id for token in self._bpe.tokenize(letters)]
        if len(word) <= _CACHED_WORD_LENGTH:
            if len(self._words) >= _CACHED_WORDS:
                self._words.clear()
            self._words[word] = ids
        return ids

    def _check_length(self, length: int) -> None:
        if not 2 <= length <= self.context_length:
            raise TokenizerError(
                f"A token length of {length} cannot be used: it must hold the start and the end "
                f"token and be at most the context length, {self.context_length}."
            )


def _digest(*parts: object) -> str:
    """Of what decides the ids of a text, with the versions of what cleans and cuts it."""
    versions = package_versions(("ftfy", "regex", "tokenizers", "sentencepiece"))
    described = json.dumps([_ALGORITHM, sys.version_info[:2], versions, parts], default=str)
    return hashlib.sha256(described.encode("utf-8", "surrogatepass")).hexdigest()[:24]


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


def _json_of(directory: Path) -> tuple[dict, str]:
    """What a folder's tokenizer.json holds, and the type of its model, as text."""
    content = read_json(directory / "tokenizer.json", dict, TokenizerError)
    model = content.get("model")
    return content, str(model.get("type")) if isinstance(model, dict) else ""


def _merge_pair(merge, where: str) -> tuple[str, str]:
    given = merge.split(" ") if isinstance(merge, str) else merge
    pair = tuple(given) if isinstance(given, list) else ()
    if len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
        raise TokenizerError(f"{where}: {str(merge)[:80]!r} is not a merge of two symbols.")
    return pair


def _read_tokenizer_json(path: Path) -> tuple[dict, dict]:
    """Vocabulary, and merges by their place in the file."""
    content, kind = _json_of(path.parent)
    if kind in _OTHER_MODELS:
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
    return vocab, {f"{path}, merge {i}": merge for i, merge in enumerate(merges)}


class JsonTokenizer(Tokenizer):
    """Any other tokenizer (SentencePiece's, BERT's), as its `tokenizer.json` describes it.

    The special tokens before and after a caption are those of the file's own template, and the
    padding that of the settings beside it. A caption cannot place one.
    """

    def __init__(
        self,
        directory: str | Path,
        context_length: int,
        clean: Callable[[str], str] = str,
        *,
        strips_separator: bool = False,
    ):
        """Reads a checkpoint directory, without network, for captions of `context_length` tokens.

        `clean` is what is done to a caption first: nothing in transformers, more in open_clip. With
        `strips_separator` 0 stands for the last special token (`strip_sep_token`).

        Raises TokenizerError for a file that is no tokenizer, or one that ends captions with no
        token.
        """
        directory, settings = Path(directory), _settings(Path(directory))
        path, tokenizer = directory / "tokenizer.json", _open_json(directory)
        self.context_length, self.vocab_size = context_length, tokenizer.get_vocab_size()

        def ids_of(text: str, *, special: bool) -> list[int]:
            return tokenizer.encode(text, add_special_tokens=special).ids

        plain, whole = ids_of("a", special=False), ids_of("a", special=True)
        found = [i for i in range(len(whole)) if whole[i : i + len(plain)] == plain]
        before, after = whole[: found[0]], whole[found[0] + len(plain) :]
        # Transformers' classes for Llama and Gemma add these two themselves.
        for key, name, place in (("bos", "<s>", before), ("eos", "</s>", after)):
            token = tokenizer.token_to_id(_name(settings, f"{key}_token", name))
            if settings.get(f"add_{key}_token") is True and token not in (None, *place):
                place.append(token)
            elif settings.get(f"add_{key}_token") is False and token in place:
                place.remove(token)
        if len(after) != 1:
            raise TokenizerError(f"{path} ends captions with {len(after)} special tokens, not one.")
        pad = tokenizer.token_to_id(_name(settings, "pad_token", "<pad>"))
        specials = {*before, *after, pad}
        if strips_separator:
            after[-1] = 0
        self._start, self.eos_id, self.pad_id = tuple(before), after[-1], pad or 0
        self.special_tokens = len(before) + len(after)
        self._check_length(context_length)
        read = hashlib.sha256(path.read_bytes()).hexdigest()
        name = getattr(clean, "__name__", "")
        self.fingerprint = _digest("json", context_length, before, after, self.pad_id, name, read)
        # Unigrams have their special tokens among the pieces that a text is cut into.
        self._encode = lambda text: [
            i for i in ids_of(clean(text), special=False) if i not in specials
        ]

    def _check_length(self, length: int) -> None:
        if not self.special_tokens < length <= self.context_length:
            raise TokenizerError(
                f"A token length of {length} cannot be used: it must hold {self.special_tokens} "
                f"special tokens and be at most the context length, {self.context_length}."
            )


def _open_json(directory: Path) -> Any:
    """The tokenizer of the package tokenizers that a folder's `tokenizer.json` describes."""
    import tokenizers  # transformers' engine; a tenth of a second to import

    path = directory / "tokenizer.json"
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception for every bad file
        raise TokenizerError(f"{path} cannot be read: {error}.") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # captions come from files that others wrote
    return tokenizer


class SigLIPTokenizer(Tokenizer):
    """SigLIP's tokenizer."""

    special_tokens, always_pads = 1, True

    def __init__(self, directory: str | Path, context_length: int = 64):
        """Reads a checkpoint directory, without network.

        SigLIP: `spiece.model`, with the package sentencepiece; captions lose their punctuation.
        SigLIP 2, and SigLIP where a `tokenizer.json` came along: that file. Captions become lower
        case in both, as in training (big_vision's `canonicalize_text`; transformers'
        `SiglipTokenizer` and `Siglip2Tokenizer`). Raises TokenizerError if neither is there.
        """
        if context_length < 1:
            raise TokenizerError(f"context_length is {context_length}: it must be at least 1.")
        self.context_length, directory = context_length, Path(directory)
        _require_padding_at_the_end(directory)
        if (directory / "tokenizer.json").is_file():
            self._read_json(directory)
        elif (directory / "spiece.model").is_file():
            self._read_sentencepiece(directory / "spiece.model")
        else:
            raise TokenizerError(
                f"{directory} has no tokenizer: put SigLIP's tokenizer.json or spiece.model beside "
                "the weights."
            )

    def _read_json(self, directory: Path) -> None:
        path, settings = directory / "tokenizer.json", _settings(directory)
        tokenizer = _open_json(directory)
        is_first = str(settings.get("tokenizer_class", "")).startswith("SiglipTokenizer")
        clean = _without_punctuation if is_first else str.lower
        names = [_name(settings, key, "</s>") for key in ("eos_token", "pad_token")]
        self.eos_id, self.pad_id = ids = [tokenizer.token_to_id(name) for name in names]
        if None in ids:
            missing = names[ids.index(None)]
            raise TokenizerError(f"{path} has no token {missing!r}, which its settings name.")
        self.vocab_size = tokenizer.get_vocab_size()
        read = hashlib.sha256(path.read_bytes()).hexdigest()
        self.fingerprint = _digest("siglip", self.context_length, is_first, names, read)
        self._encode = lambda text: tokenizer.encode(clean(text), add_special_tokens=False).ids

    def _read_sentencepiece(self, path: Path) -> None:
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
        self.vocab_size = model.get_piece_size()
        read = hashlib.sha256(path.read_bytes()).hexdigest()
        self.fingerprint = _digest("siglip", self.context_length, read)
        self.eos_id = self.pad_id = model.eos_id()  # SigLIP pads with its end token
        self._encode = lambda text: model.encode(_without_punctuation(text))

    def _check_length(self, length: int) -> None:
        if length != self.context_length:
            raise TokenizerError(
                f"length is {length}: SigLIP reads rows of exactly {self.context_length} tokens."
            )


def _settings(directory: Path) -> dict:
    path = directory / "tokenizer_config.json"
    return read_json(path, dict, TokenizerError) if path.is_file() else {}


def _name(settings: dict, key: str, default: str) -> str:
    value = settings.get(key) or default
    name = value.get("content") if isinstance(value, dict) else value
    if not isinstance(name, str):
        raise TokenizerError(f"tokenizer_config.json: {key} is {value!r}, not the name of a token.")
    return name


def load_tokenizer(
    directory: str | Path, context_length: int = 77, *, always_pads: bool = False
) -> Tokenizer:
    """The tokenizer of a checkpoint directory: CLIP's, SigLIP's or its own, without network.

    `always_pads` fills each caption up to `context_length`, for models that read the padding.

    Raises TokenizerError if there is none, the files are unusable, or a configuration of open_clip
    beside them says that captions are cleaned in a way that is not known.
    """
    directory, said = Path(directory), _said_by_open_clip(Path(directory))
    path, options = directory / "open_clip_config.json", dict(said.get("tokenizer_kwargs") or {})
    read = {"clean", "strip_sep_token"} if said.get("hf_tokenizer_name") else set()
    clean, strips = options.get("clean", "whitespace"), options.get("strip_sep_token", False)
    if options.keys() - read or said.get("tokenizer_mode") or clean not in _CLEANINGS:
        unread = [f"{key} {said[key]!r}" for key in _OTHER_KEYS if said.get(key)]
        raise TokenizerError(
            f"{path}: text_cfg has {' and '.join(unread)}, which this tokenizer does not do: "
            "tokenize with open_clip and give the ids."
        )
    is_json = (directory / "tokenizer.json").is_file()
    kind = str(_settings(directory).get("tokenizer_class", ""))
    if is_json and said.get("hf_tokenizer_name") and not kind.startswith("CLIP"):
        clean = _CLEANINGS[clean]
        tokenizer = JsonTokenizer(directory, context_length, clean, strips_separator=bool(strips))
    elif options:
        raise TokenizerError(
            f"{path}: text_cfg has tokenizer_kwargs {options!r}, which belong to the tokenizer "
            f"{said.get('hf_tokenizer_name')!r}: put its tokenizer.json into the folder."
        )
    elif kind.startswith(("Siglip", "Gemma")) or (directory / "spiece.model").is_file():
        return SigLIPTokenizer(directory, context_length)
    elif is_json and _json_of(directory)[1] in _OTHER_MODELS:
        tokenizer = JsonTokenizer(directory, context_length)
    else:
        tokenizer = CLIPTokenizer.from_directory(directory, context_length)
    if not always_pads:
        return tokenizer
    _require_padding_at_the_end(directory)
    return tokenizer.padding()


def _require_padding_at_the_end(directory: Path) -> None:
    """Raises TokenizerError where a caption of a model that reads its padding follows it."""
    if (side := _settings(directory).get("padding_side", "right")) != "right":
        raise TokenizerError(
            f"{directory / 'tokenizer_config.json'}: padding_side is {side!r}, and this model "
            "reads its padding, which is put behind captions here: tokenize with transformers and "
            "give the ids."
        )


def _said_by_open_clip(directory: Path) -> dict:
    """What a configuration of open_clip, if there is one, says of the text side."""
    path = directory / "open_clip_config.json"
    raw = read_json(path, dict, TokenizerError) if path.is_file() else {}
    model = raw.get("model_cfg", raw)
    text = model.get("text_cfg") if isinstance(model, dict) else None
    text = text if isinstance(text, dict) else {}
    if not isinstance(text.get("tokenizer_kwargs") or {}, dict):
        raise TokenizerError(f"{path}: text_cfg.tokenizer_kwargs is not an object.")
    return text
