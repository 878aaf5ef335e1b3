"""Tokenized pairs: everything about the examples but their pixels, in arrays.

Shape letters: N examples of U images, each with C captions and K fixed texts; B examples of a
batch, which show M texts each; L lengths.
"""

import bisect
import dataclasses
import functools
import itertools
import logging
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int, Int8, Int64, UInt8, UInt64

from negclip_jax.common.errors import InputError
from negclip_jax.data.order import MOST_KEPT, random_bits
from negclip_jax.data.packing import Ragged
from negclip_jax.data.records import JoinedNames, Pair
from negclip_jax.data.statements import Statements
from negclip_jax.data.tokenizer import Tokenizer
from negclip_jax.language.negation import find_cues
from negclip_jax.language.text import tokenize

_log = logging.getLogger(__name__)

CAPTION_MODES = ("negated", "original", "mix")
TRUNCATED = ("drop_lost", "drop", "keep")
_SHORT_PAIRS, _SHORT_SHARE = 8, 0.02
_SAMPLE = 10_000  # examples
_LOST_SHOWN = 20  # texts that lose a negation, of which one may be shown
_OPPOSITES = 2**32  # first random number of an example that chooses images, not texts
_BLOCK = 2**18  # examples whose lengths are looked at together


@dataclasses.dataclass(frozen=True, repr=False)
class Shown:
    """The texts that examples show, M each: caption, fixed texts, true and false statements.

    Attributes:
      index_BxM: index into `Examples.tokens`.
      truth_BxM: true (1) or false (-1) of the example's image, else 0: there is no text, or
        it has no part in the loss.
      holds_caption_BxM: holds a caption of the image, and so is false of other images.
      is_affirmative_BxM: is the original caption.
      opposite_BxM: for a statement an image of which it has the other truth; -1 where none
        is known, and for other texts.
    """

    index_BxM: Int64[np.ndarray, "B M"]
    truth_BxM: Int8[np.ndarray, "B M"]
    holds_caption_BxM: Bool[np.ndarray, "B M"]
    is_affirmative_BxM: Bool[np.ndarray, "B M"]
    opposite_BxM: Int64[np.ndarray, "B M"]


@dataclasses.dataclass(frozen=True, repr=False)
class Examples:
    """N examples of U distinct images. An example shows one of its C captions, and other texts.

    All texts of an example lie one after the other in `tokens`; which of them it shows is the same
    for all. So 100 M examples are no more arrays than the three below, and the tokens may be mapped
    from a file.

    Attributes:
      images: names of distinct images, U.
      image_of: the image of each example.
      tokens: token ids of all texts; one of no token at all stands for a foil that there is not.
      first_text: the first text of each example.
      captions: which of its texts an example may show as its caption, C: one or (negated,
        original).
      fixed: which of its texts it shows besides, K: foils, then the original caption where it is
        shown beside a negated one.
      original: which of the captions is the original, or C where it is the last of the fixed texts;
        None where it is not shown.
      empty: index of the empty text.
      statements: of which an example shows some, others in each epoch.
      first_statement: index of their first text in `tokens`.
      stand_ins: how many of the images, the last ones, are no photos, see `stand_in_text`.
      digest: of the names and tokens of the file that they were prepared from.
    """

    images: Sequence[str]
    image_of: Int[np.ndarray, " N"]
    tokens: Ragged
    first_text: Int[np.ndarray, " N"]
    captions: tuple[int, ...] = (0,)
    fixed: tuple[int, ...] = ()
    original: int | None = None
    empty: int = 0
    statements: Statements | None = None
    first_statement: int = 0
    stand_ins: int = 0
    digest: str | None = None

    @classmethod
    def of_captions(
        cls, images: Sequence[str], image_of: Int[np.ndarray, " N"], tokens: Ragged
    ) -> "Examples":
        """Examples that show one caption each, in the order of `tokens`."""
        return cls(images, image_of, tokens, np.arange(len(image_of)))

    def __len__(self) -> int:
        return len(self.image_of)

    @property
    def photos(self) -> Sequence[str]:
        """The images that can be read."""
        if self.stand_ins and isinstance(self.images, JoinedNames):
            return self.images.parts[0][1]  # without a copy
        count = len(self.images) - self.stand_ins
        return self.images[:count] if self.stand_ins else self.images

    def with_stand_ins(self, other: "Examples") -> "Examples":
        """These examples and others that show as many texts, but of images that are no photos."""
        shift, images = len(self.tokens), len(self.images)
        statements = self.statements
        if statements is not None and other.statements is not None:
            first = shift + other.first_statement - self.first_statement
            statements = statements.followed_by(other.statements, first)
        return dataclasses.replace(
            self,
            images=JoinedNames([("", self.images), ("", other.images)]),
            image_of=np.concatenate([self.image_of, (images + other.image_of).astype(np.int32)]),
            tokens=self.tokens.followed_by(other.tokens),
            first_text=np.concatenate([self.first_text, shift + other.first_text]),
            statements=statements,
            stand_ins=len(other.images),
        )

    @property
    def texts(self) -> int:
        """How many an example shows, M."""
        known = self.statements
        return 1 + len(self.fixed) + (known.true_texts + known.false_texts if known else 0)

    @property
    def original_index_N(self) -> Int64[np.ndarray, " N"]:
        """Of each example's original caption, where it is shown at all: into `tokens`."""
        return self.first_text.astype(np.int64) + [*self.captions, *self.fixed[-1:]][self.original]

    def fixed_texts(
        self, pairs: Int[np.ndarray, " B"]
    ) -> tuple[Int64[np.ndarray, "B K"], Int8[np.ndarray, "B K"]]:
        """Fixed texts of these examples: indices into `tokens`, and their truth.

        That is -1 for a foil, 0 for the original caption and where an example has fewer foils.
        """
        index = self.first_text[pairs].astype(np.int64)[:, None] + np.array(self.fixed, np.int64)
        is_foil = self.tokens.lengths_of(index) > 0
        index = np.where(is_foil, index, self.empty)
        if self.original == len(self.captions):
            is_foil[:, -1] = False
        return index, -is_foil.astype(np.int8)

    def lengths_of(self, pairs: Int[np.ndarray, " B"]) -> Int64[np.ndarray, "B C_plus_K"]:
        """Tokens of the captions and fixed texts of these examples."""
        captions = self.first_text[pairs].astype(np.int64)[:, None] + np.array(self.captions)
        index = np.concatenate([captions, self.fixed_texts(pairs)[0]], axis=1)
        return self.tokens.lengths_of(index)

    def reserved_lengths_of(self, pairs: Int[np.ndarray, " B"]) -> Int64[np.ndarray, "B C_plus_K"]:
        """Tokens that packing reserves for captions and fixed texts, as `lengths_of`.

        Never less than a few short examples need: one of them can take the place of any other
        without changing a batch's shape.
        """
        return np.maximum(self.lengths_of(pairs), self._sizes[0])

    @property
    def longest(self) -> int:
        """Tokens of the longest text that any example can show."""
        return self._sizes[1]

    @functools.cached_property
    def _sizes(self) -> tuple[Int64[np.ndarray, " C_plus_K"], int]:
        """Tokens that the shortest examples need; tokens of the longest text."""
        count, of_size = max(_SHORT_PAIRS, int(_SHORT_SHARE * len(self))), np.zeros(0, np.int64)
        longest = int(self.tokens.lengths_of(np.array([self.empty]))[0])
        for lengths in self._blocks():
            longest = max(longest, int(lengths.max()))
            found = np.bincount(lengths.sum(axis=1), minlength=len(of_size))
            found[: len(of_size)] += of_size
            of_size = found
        if self.statements is not None:
            stated = np.arange(self.first_statement, len(self.tokens))
            longest = max(longest, int(self.tokens.lengths_of(stated).max()))
        # All below a size, and the first of that size, as a stable sort would have them.
        size = int(np.searchsorted(np.cumsum(of_size), count))
        equal = count - int(of_size[:size].sum())
        needed = np.zeros(len(self.captions) + len(self.fixed), np.int64)
        for lengths in self._blocks():
            sizes = lengths.sum(axis=1)
            last = np.flatnonzero(sizes == size)[:equal]
            equal -= len(last)
            for part in (lengths[sizes < size], lengths[last]):
                needed = np.maximum(needed, part.max(axis=0, initial=0))
        return needed, longest

    def _blocks(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self), _BLOCK):
            yield self.lengths_of(np.arange(start, min(start + _BLOCK, len(self))))

    @functools.cached_property
    def planned_lengths(self) -> Int64[np.ndarray, " L"]:
        """Tokens that packing reserves for the texts of batches, a fair sample."""
        if self.statements is None and len(self) <= MOST_KEPT:
            return np.maximum(np.concatenate(list(self._blocks())), self._sizes[0]).ravel()
        pairs = np.linspace(0, len(self) - 1, min(len(self), _SAMPLE)).astype(np.int64)
        if self.statements is None:
            return self.reserved_lengths_of(pairs).ravel()
        bits, first = np.random.Philox(key=0).random_raw(len(pairs)), np.zeros_like(pairs)
        return self.reserved_of(pairs, first, self.shown(pairs, first, bits)).ravel()

    def reserved_of(
        self, pairs: Int[np.ndarray, " B"], caption_choice_B: Int[np.ndarray, " B"], shown: Shown
    ) -> Int64[np.ndarray, "B M"]:
        """Tokens that packing reserves for what these examples show."""
        reserved, count = self.reserved_lengths_of(pairs), len(self.captions)
        caption = reserved[np.arange(len(pairs)), caption_choice_B][:, None]
        # An example that takes another's place shows none of its statements, but empty texts.
        chosen = self.tokens.lengths_of(shown.index_BxM[:, 1 + len(self.fixed) :])
        return np.concatenate([caption, reserved[:, count:], chosen], axis=1)

    def shown(
        self,
        pairs: Int[np.ndarray, " B"],
        caption_choice_B: Int[np.ndarray, " B"],
        bits_B: UInt64[np.ndarray, " B"] | None,
    ) -> Shown:
        """The texts of these examples, with this choice of their C captions.

        `bits_B` are random bits of each, which choose its statements; None: it shows none.
        """
        place = np.array(self.captions)[caption_choice_B]
        caption = (self.first_text[pairs].astype(np.int64) + place)[:, None]
        fixed_index, fixed_truth = self.fixed_texts(pairs)
        index = np.concatenate([caption, fixed_index], axis=1)
        truth = np.concatenate([np.ones_like(caption), fixed_truth], axis=1)
        is_caption = np.arange(self.texts) == 0
        holds_caption = np.broadcast_to(is_caption, (len(pairs), self.texts)).copy()
        opposite = np.full(holds_caption.shape, -1)
        if self.statements is not None:
            statements, fixed = self.statements, index.shape[1]
            chosen = np.full((len(pairs), self.texts - fixed), -1)
            if bits_B is not None:
                chosen = statements.choose(self.image_of[pairs], bits_B)
                # Other numbers of each example's stream than those that chose its statements.
                number = _OPPOSITES + np.arange(chosen.shape[1])
                chance = random_bits(bits_B[:, None], number)
                opposite[:, fixed:] = statements.opposites(chosen, chance)
            there = chosen >= 0
            text = np.where(there, self.first_statement + statements.text[chosen], self.empty)
            index = np.concatenate([index, text], axis=1)
            is_true = np.where(there, 2 * statements.truth[chosen] - 1, 0)
            truth = np.concatenate([truth, is_true], axis=1)
            holds_caption[:, fixed:] = there & statements.holds_caption[chosen]
        is_affirmative = np.zeros_like(holds_caption)
        if self.original == len(self.captions):
            is_affirmative[:, len(self.fixed)] = True
        else:
            is_affirmative[:, 0] = caption_choice_B == self.original
        return Shown(index, truth.astype(np.int8), holds_caption, is_affirmative, opposite)


def without_truncated(
    pairs: Sequence[Pair], tokenizer: Tokenizer, *, caption_mode: str, foils: int, truncated: str
) -> list[Pair]:
    """The pairs that `kept_of` keeps; raises InputError where none is left."""
    losses, lost = losses_by_cut(pairs, tokenizer, caption_mode=caption_mode, foils=foils)
    kept = kept_of(losses, tokenizer.context_length, truncated, lost[0][1] if lost else None)
    return list(itertools.compress(pairs, kept.tolist()))


def losses_by_cut(
    pairs: Sequence[Pair], tokenizer: Tokenizer, *, caption_mode: str, foils: int
) -> tuple[UInt8[np.ndarray, " N"], list[tuple[int, str]]]:
    """Whose captions say something else once they are cut; arguments as of `tokenize_pairs`.

    A model reads the first tokens of a caption, 77 for CLIP. A negation behind them is lost, and
    texts that differ behind them alone become equal: such a pair teaches that "no dog" is "a dog".

    Returns 0 for a pair whose texts are all whole, 1 for one with a text that is cut, 2 for one
    that loses a negation by it, or the difference between two of its texts; and of the first of
    these the number and the first text.
    """
    room = tokenizer.context_length - tokenizer.special_tokens

    def cut(text: str) -> str:
        """What the model reads of a text, in whole words."""
        # A token is a byte at least: most texts need not be tokenized to know that they fit.
        if len(text) < room and text.isascii():
            return text
        if len(text.encode()) < room or len(tokenizer.encode(text)) <= room:
            return text
        ends = [token.end for token in tokenize(text)]
        fits = bisect.bisect_right(ends, room, key=lambda end: len(tokenizer.encode(text[:end])))
        return text[: ends[fits - 1]] if fits else ""

    losses, lost = np.zeros(len(pairs), np.uint8), []
    for number, pair in enumerate(pairs):
        shown = [pair.negated] if caption_mode != "original" else []
        shown += [pair.caption] if caption_mode != "negated" else []
        texts = [*shown, *pair.foils[:foils]]
        read = [cut(text) for text in texts]
        if read != texts:
            cues = [[len(find_cues(tokenize(x))) for x in column] for column in (texts, read)]
            is_lost = cues[0] != cues[1] or len(set(read)) < len(set(texts))
            losses[number] = 1 + is_lost
            if is_lost and len(lost) < _LOST_SHOWN:
                lost.append((number, texts[0][:200]))
    return losses, lost


def kept_of(
    losses: UInt8[np.ndarray, " N"], context_length: int, truncated: str, example: str | None
) -> Bool[np.ndarray, " N"]:
    """Which pairs are kept, of what `losses_by_cut` says.

    `truncated` says which are left out: "drop_lost", those that lose a negation or the difference
    between two of their texts; "drop", all with a text that is cut; "keep", none. `example` is a
    text that loses its negation, for the log, which says how many are cut and left out.

    Raises InputError where no pair is left.
    """
    kept = losses < {"drop": 1, "drop_lost": 2, "keep": 3}[truncated]
    long, lost = np.count_nonzero(losses), np.count_nonzero(losses == 2)
    if long:
        _log.warning(
            "%s of %s pairs have a caption that is cut at %d tokens, and %s of them lose a "
            "negation by that%s; data.truncated=%s leaves out %s pairs",
            *(f"{long:,}", f"{len(losses):,}", context_length, f"{lost:,}"),
            f", e.g. {example!r}" if example is not None else "",
            *(truncated, f"{len(losses) - np.count_nonzero(kept):,}"),
        )
    if not kept.any():
        raise InputError(
            f"data.truncated={truncated} leaves out all {len(losses):,} pairs, whose captions are "
            f"longer than {context_length} tokens: shorten them, or set "
            "data.truncated=keep"
        )
    return kept


def stand_in_text(image: str) -> str | None:
    """The text whose features stand for an image called `text:NUMBER:TEXT`; None for a photo."""
    kind, _, rest = image.partition(":")
    number, colon, text = rest.partition(":")
    return text if kind == "text" and number.isdecimal() and colon and text else None


def tokenize_pairs(
    pairs: Sequence[Pair],
    images: list[str],
    tokenizer: Tokenizer,
    *,
    caption_mode: str,
    foils: int,
    statements: Statements | None = None,
    with_original: bool = False,
) -> Examples:
    """Tokenizes once what training will read many times.

    Args:
      pairs: examples; with a mode other than "original" each needs a negated caption.
      images: distinct image names, which may be more than those of `pairs`.
      tokenizer, statements: of the model, and about these images.
      caption_mode: "negated", "original", or "mix" (both, chosen per epoch).
      foils: false captions kept per pair; the first of each.
      with_original: whether each example shows the original caption too, beside a negated one.
    """
    if caption_mode not in CAPTION_MODES:
        modes = ", ".join(CAPTION_MODES)
        raise InputError(f"data.caption_mode: {caption_mode!r} is none of {modes}")
    texts, number = texts_of(pairs, caption_mode, foils), {name: i for i, name in enumerate(images)}
    image_of = np.array([number[pair.image] for pair in pairs], np.int64)
    first_text = np.arange(len(pairs)) * (len(texts) // max(len(pairs), 1))
    said = {"caption_mode": caption_mode, "foils": foils, "statements": statements}
    tokens = ragged_of([*texts, ""], tokenizer)
    return examples_of(images, image_of, tokens, first_text, with_original=with_original, **said)


def texts_of(pairs: Sequence[Pair], caption_mode: str, foils: int) -> list[str | None]:
    """Texts of pairs, one pair after the other and as many of each, None where one has fewer foils.

    Of a pair: its negated caption, unless the mode is "original"; its original; foils.
    """
    texts: list[str | None] = []
    for pair in pairs:
        texts += [pair.caption] if caption_mode == "original" else [pair.negated, pair.caption]
        texts += [*pair.foils[:foils], *[None] * (foils - len(pair.foils))]
    return texts


def ragged_of(texts: Sequence[str | None], tokenizer: Tokenizer) -> Ragged:
    """Token ids of texts; None is a text of no token, not even the special ones."""
    ids, offsets = tokenizer.encode_ragged([text for text in texts if text is not None])
    lengths = np.zeros(len(texts), np.int64)
    lengths[np.array([text is not None for text in texts])] = np.diff(offsets)
    return Ragged(ids, np.concatenate([[0], np.cumsum(lengths)]))


def examples_of(
    images: Sequence[str],
    image_of: Int[np.ndarray, " N"],
    tokens: Ragged,
    first_text: Int[np.ndarray, " N"],
    *,
    caption_mode: str,
    foils: int,
    statements: Statements | None,
    with_original: bool,
) -> Examples:
    """Examples of the tokens of `texts_of`, and of the empty text, which is the last.

    Arguments as of `tokenize_pairs`; `image_of` and `first_text` are of `Examples`.
    """
    is_negated = caption_mode != "original"
    captions = (0, 1) if caption_mode == "mix" else (0,)
    fixed = tuple(range(1 + is_negated, 1 + is_negated + foils))
    original = {"negated": None, "original": 0, "mix": 1}[caption_mode]
    if with_original and is_negated:
        original, fixed = len(captions), (*fixed, 1)
    empty = len(tokens) - 1
    if statements is not None:
        tokens = tokens.followed_by(statements.tokens)
    which = {"captions": captions, "fixed": fixed, "original": original, "empty": empty}
    which |= {"statements": statements, "first_statement": empty + 1}
    return Examples(images, image_of, tokens, first_text, **which)
