"""Statements about images: texts, short or with a caption, that are known to be true or false.

`python -m data_gen export` writes them beside the pairs: a Parquet file with a row for each text.
Read are its columns

    image       file name, as in the pairs
    text        what is said
    truth       boolean: whether it is true of the image
    polarity    "affirms", "denies" or "both": what it says of objects
    caption_id  the caption of the image that the text holds, null where it holds none
    unit, form  texts that were written together, and by which template; may be null
    objects     names of what it is about, a list; may be null

A million of them are columns and token ids, never Python objects one by one. Which ones an example
shows is a pure function of its random bits.

Shape letters: S statements about U images; B examples; P images, or facts about them.
"""

import dataclasses
import functools
import logging
import os
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64, UInt64

from negclip_jax.common import remote, storage
from negclip_jax.common.problems import Problems
from negclip_jax.common.progress import told
from negclip_jax.data.order import random_bits
from negclip_jax.data.packing import Ragged
from negclip_jax.data.records import LONGEST_TEXT, PairError, unsafe_name
from negclip_jax.data.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

POLARITIES = ("affirms", "denies", "both")
_TOKENIZED_AT_ONCE = 10_000


@dataclasses.dataclass(frozen=True, repr=False)
class Statements:
    """S statements about U images, those of an image one after the other.

    Attributes:
      true_texts, false_texts: how many an example shows, T and F.
      tokens: token ids of the distinct texts.
      offsets: those about image u are `offsets[u]` to `offsets[u + 1] - 1`.
      text: index into `tokens`.
      truth, holds_caption: a text that holds its image's caption is false of others.
      polarity: index into POLARITIES.
      unit, form: equal for statements that share one; -1 where not known.
      object: equal for those that are about one object, the same, and no other; -1 for all else.
      opposite_images: those that `opposites` chooses from; None: all.
    """

    true_texts: int
    false_texts: int
    tokens: Ragged
    offsets: Int64[np.ndarray, " U_plus_1"]
    text: Int64[np.ndarray, " S"]
    truth: Bool[np.ndarray, " S"]
    holds_caption: Bool[np.ndarray, " S"]
    polarity: Int64[np.ndarray, " S"]
    unit: Int64[np.ndarray, " S"]
    form: Int64[np.ndarray, " S"]
    object: Int64[np.ndarray, " S"]
    opposite_images: Bool[np.ndarray, " U"] | None = None

    def choose(
        self, image_B: Int[np.ndarray, " B"], bits_B: UInt64[np.ndarray, " B"]
    ) -> Int64[np.ndarray, "B {self.true_texts}+{self.false_texts}"]:
        """Statements that examples about these images show, -1 where an image has too few.

        True ones first. Both kinds are drawn alike by each example's random bits, so that neither a
        polarity nor a form of words tells the truth: the polarities that an image has take turns in
        random order, and within one all statements are as likely. The first false text is a minimal
        pair of the first true one, of its unit and form as far as there is one.
        """
        starts = self.offsets[image_B]
        counts = self.offsets[image_B + 1] - starts
        owner = np.repeat(np.arange(len(image_B)), counts)
        place = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        candidate = starts[owner] + place
        # Of each example's stream the first numbers are for polarities, the others for statements.
        turn = random_bits(bits_B[owner], self.polarity[candidate])
        key = random_bits(bits_B[owner], len(POLARITIES) + place)

        def pick(number: int, is_usable: np.ndarray, likeness: np.ndarray) -> np.ndarray:
            """That many of the usable statements of each example; the likest one comes first."""
            own, found, keys = owner[is_usable], candidate[is_usable], key[is_usable]
            likest = np.lexsort((keys, -likeness[is_usable], own))
            likest = likest[_rank(own[likest]) == 0]
            is_first = np.zeros(len(own), bool)
            is_first[likest] = likeness[is_usable][likest] > 0
            order = np.lexsort((keys, ~is_first, self.polarity[found], own))
            rank = np.empty(len(order), np.int64)  # among the example's statements of its polarity
            rank[order] = _rank(own[order] * len(POLARITIES) + self.polarity[found][order])
            order = np.lexsort((turn[is_usable], rank, ~is_first, own))
            within = _rank(own[order])
            chosen = np.full((len(image_B), number), -1)
            kept = within < number
            chosen[own[order][kept], within[kept]] = found[order][kept]
            return chosen

        truth = self.truth[candidate]
        none = np.zeros(len(candidate), np.int64)
        true = pick(self.true_texts, truth, none)
        likeness = none
        if self.true_texts:
            model = true[owner, 0]
            for of in (self.unit, self.form):
                likeness = likeness + ((of[candidate] == of[model]) & (of[model] >= 0))
            likeness = np.where(model >= 0, likeness, 0)
        return np.concatenate([true, pick(self.false_texts, ~truth, likeness)], axis=1)

    def placed(self, first: int, count: int) -> "Statements":
        """The same about images that are those from number `first` on, of `count`."""
        after = count - first - (len(self.offsets) - 1)
        if not first and not after:
            return self
        return dataclasses.replace(self, offsets=np.pad(self.offsets, (first, after), "edge"))

    def compared_among(self, image_P: Int[np.ndarray, " P"]) -> "Statements":
        """The same, of which `opposites` are some of these images, so that none is of another part.

        Training would else learn on the images that validation holds out.
        """
        is_among = np.zeros(len(self.offsets) - 1, bool)
        is_among[image_P] = True
        return dataclasses.replace(self, opposite_images=is_among)

    def presence(
        self,
    ) -> tuple[Int64[np.ndarray, " P"], Int64[np.ndarray, " P"], Bool[np.ndarray, " P"]]:
        """What is known to be in which image: of each image and object, in this order, one fact.

        Read from the statements about one object. Images, objects, and whether it is there.
        """
        owner = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        affirms, denies = (self.polarity == POLARITIES.index(p) for p in ("affirms", "denies"))
        says = np.flatnonzero((self.object >= 0) & (affirms | denies) & ~self.holds_caption)
        key = owner[says] * (self.object.max(initial=0) + 1) + self.object[says]
        first = says[np.unique(key, return_index=True)[1]]
        return owner[first], self.object[first], self.truth[first] == affirms[first]

    def opposites(
        self, chosen: Int[np.ndarray, "*B"], bits: UInt64[np.ndarray, "*B"]
    ) -> Int32[np.ndarray, "*B"]:
        """For each statement an image, by random bits, of which its text has the other truth.

        -1 where there is none, or no statement (-1 in `chosen`).
        """
        image, key = self._by_text_and_truth
        if not len(image):  # nothing is said of any of these images
            return np.full(chosen.shape, -1, np.int32)
        wanted = 2 * self.text[chosen] + ~self.truth[chosen]
        first, end = (np.searchsorted(key, wanted, side) for side in ("left", "right"))
        there = (chosen >= 0) & (first < end)
        place = first + (bits % np.maximum(end - first, 1).astype(np.uint64)).astype(np.int64)
        return np.where(there, image[np.where(there, place, 0)], -1)

    @functools.cached_property
    def _by_text_and_truth(self) -> tuple[Int32[np.ndarray, " P"], Int64[np.ndarray, " P"]]:
        """Of statements about `opposite_images`, in this order: the image, `2 * text + truth`."""
        images = np.arange(len(self.offsets) - 1, dtype=np.int32)
        images, key = np.repeat(images, np.diff(self.offsets)), 2 * self.text + self.truth
        if self.opposite_images is not None:
            is_among = self.opposite_images[images]
            images, key = images[is_among], key[is_among]
        order = np.argsort(key, kind="stable")
        return images[order], key[order]

    def followed_by(self, other: "Statements", first: int) -> "Statements":
        """These statements and others about further images, the texts of which begin at `first`.

        `text` is then an index into the tokens of the examples that both belong to.
        """

        more = {name: getattr(other, name) for name in ("truth", "holds_caption", "polarity")}
        more |= {"offsets": self.offsets[-1] + other.offsets[1:], "text": other.text + first}
        for name in ("unit", "form", "object"):  # numbered on
            own, end = getattr(other, name), getattr(self, name).max(initial=-1) + 1
            more[name] = np.where(own < 0, own, own + end)
        if self.opposite_images is not None:
            more["opposite_images"] = np.ones(len(other.offsets) - 1, bool)
        both: dict[str, Any] = {
            name: np.concatenate([getattr(self, name), x]) for name, x in more.items()
        }
        return dataclasses.replace(self, **both)


def _rank(groups: Int[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
    """Place of each element among its equals, which stand together."""
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    return np.arange(len(groups)) - np.repeat(starts, np.diff(starts, append=len(groups)))


def read_statements(
    path: str | os.PathLike,
    images: Sequence[str],
    tokenizer: Tokenizer,
    *,
    true_texts: int,
    false_texts: int,
    truncated: str,
) -> Statements:
    """Reads the statements about these U images; how many are about others is said in the log.

    `path` is a Parquet file, on a disk or in a bucket. An example shows so many true and false
    texts. `truncated` is the key of the section `data`; with "keep" texts beyond the model's
    positions stay.

    Raises PairError for a file that cannot be read, and once for everything wrong in its rows.
    """
    columns = _columns(path)
    names, texts = columns["image"].values, columns["text"].values
    number = {name: i for i, name in enumerate(images)}
    known = np.array([number.get(posixpath.normpath(n), -1) for n in names.to_pylist()], np.int64)
    image = known[columns["image"].codes]
    ids, offsets, is_cut = [], [np.zeros(1, np.int64)], []
    room = tokenizer.context_length - tokenizer.special_tokens
    for start in told(range(0, len(texts), _TOKENIZED_AT_ONCE), "parts of the statements"):
        part = texts[start : start + _TOKENIZED_AT_ONCE].to_pylist()
        part_ids, part_offsets = tokenizer.encode_ragged(part)
        ids.append(part_ids)
        offsets.append(offsets[-1][-1] + part_offsets[1:])
        # A token is a byte at least: most texts need not be tokenized again to know that they fit.
        is_cut += [len(t.encode()) > room and len(tokenizer.encode(t)) > room for t in part]
    text = columns["text"].codes
    left_out = np.array(is_cut, bool)[text] & (truncated != "keep") & (image >= 0)
    rows = np.flatnonzero((image >= 0) & ~left_out)
    rows = rows[np.argsort(image[rows], kind="stable")]
    _log.info(
        "%s: %s statements about %s of %s images, %s about images without pairs; %s that are "
        "longer than %d tokens are left out",
        path,
        *(f"{n:,}" for n in (len(rows), len(np.unique(image[rows])), len(images))),
        *(f"{n:,}" for n in ((image < 0).sum(), left_out.sum())),
        tokenizer.context_length,
    )
    if not len(rows):
        raise PairError(f"{path} has no statement about an image of the pairs: are names alike?")
    polarity = np.array([POLARITIES.index(p) for p in columns["polarity"].values.to_pylist()])
    return Statements(
        true_texts,
        false_texts,
        Ragged(np.concatenate(ids), np.concatenate(offsets)),
        offsets=np.searchsorted(image[rows], np.arange(len(images) + 1)),
        text=text[rows],
        truth=columns["truth"].codes[rows] == 1,
        holds_caption=columns["caption_id"].codes[rows] >= 0,
        polarity=polarity[columns["polarity"].codes[rows]],
        unit=columns["unit"].codes[rows],
        form=columns["form"].codes[rows],
        object=columns["objects"].codes[rows],
    )


def _columns(path: str | os.PathLike) -> dict[str, Any]:
    """The columns of a file; PairError with all that is wrong in its rows, each with its places."""
    if storage.is_remote(path):
        with remote.copied(str(path)) as copy:
            return _columns(copy)
    # Deferred: worker processes of a loader know statements, and need no pyarrow.
    from pyarrow import compute

    from negclip_jax.data import pair_tables

    path = Path(path)
    if not path.is_file():
        raise PairError(f"There is no file of statements at {path}.")
    columns = pair_tables.statement_columns(path)
    problems = Problems()

    def note(what: str, is_bad: np.ndarray) -> None:
        for row in np.flatnonzero(is_bad):
            problems.note(what, f"row {row}")

    for name in ("image", "text", "truth", "polarity"):
        note(f"the {name} is missing", columns[name].codes < 0)
    image, text, polarity = (columns[name] for name in ("image", "text", "polarity"))
    reasons = [unsafe_name(name) for name in image.values.to_pylist()]
    for reason in dict.fromkeys(filter(None, reasons)):
        note(f"the image name {reason}", image.of_values([r == reason for r in reasons]))
    is_empty = compute.equal(compute.utf8_trim_whitespace(text.values), "")
    note("the text is empty", text.of_values(is_empty))
    is_long = compute.greater(compute.utf8_length(text.values), LONGEST_TEXT)
    note(f"the text is longer than {LONGEST_TEXT:,} characters", text.of_values(is_long))
    other = [value not in POLARITIES for value in polarity.values.to_pylist()]
    note(f"the polarity is none of {', '.join(POLARITIES)}", polarity.of_values(other))
    # One text of one image, true in one row and false in another.
    order = np.lexsort((columns["truth"].codes, text.codes, image.codes))
    before, after = order[:-1], order[1:]
    same = (image.codes[before] == image.codes[after]) & (text.codes[before] == text.codes[after])
    differs = columns["truth"].codes[before] != columns["truth"].codes[after]
    contradicts = np.zeros(len(order), bool)
    is_known = (image.codes[after] >= 0) & (text.codes[after] >= 0)
    contradicts[np.maximum(before, after)[same & differs & is_known]] = True
    note("the text is true and false of one image", contradicts)
    problems.raise_if_any(path, PairError, "Correct or remove these rows; nothing was read.")
    return columns
