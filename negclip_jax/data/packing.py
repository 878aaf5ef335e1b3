"""Captions packed several to a row, so that padding is not computed.

CLIP's text tower is causal and reads only the state at the end token. So captions may share a row:
each sees itself only (block-diagonal causal mask), positions start at 0 in each, and the state is
read at each end token. The features are those of padded rows; the arithmetic is that of the real
tokens and a few per cent.

Shapes are static: rows are packed per shard of the batch, so that no gather crosses devices, and
nearly all batches have one number of rows, so that few programs are compiled. Letters in shapes: S
shards, R rows over all shards, L tokens a row, Q captions a row at most, B captions of a batch; N
captions of I tokens in all.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int, Int32, Int64, Integer

# Rows that take three or four captions can be filled well. Longer ones save three per cent of the
# tokens and cost more than that in attention, whose scores grow with the square of a row.
_CAPTIONS_PER_ROW = 3.5
_MAX_ROW_LENGTH = 128
# Captions packed on trial to find the number of rows, and the step to the next larger number.
_TRIAL_CAPTIONS = 20_000
_STEP = 0.03


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Token ids of N captions, each with its start and end token, one after the other.

    Attributes:
      ids: of all captions; int32, or what a file has.
      offsets: caption i is `ids[offsets[i]:offsets[i + 1]]`.
    """

    ids: Integer[np.ndarray, " I"]
    offsets: Int64[np.ndarray, " N_plus_1"]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @functools.cached_property
    def lengths(self) -> Int64[np.ndarray, " N"]:
        """Tokens of each caption."""
        return np.diff(self.offsets)

    def lengths_of(self, index: Int[np.ndarray, "*B"]) -> Int64[np.ndarray, "*B"]:
        """Tokens of the captions with these indices; reads no others."""
        return self.offsets[index + 1] - self.offsets[index]

    def taken(self, index_B: Int[np.ndarray, " B"]) -> "Ragged":
        """The captions with these indices, int32."""
        lengths = self.lengths_of(index_B)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        token = np.arange(offsets[-1]) + np.repeat(self.offsets[index_B] - offsets[:-1], lengths)
        return Ragged(self.ids[token].astype(np.int32, copy=False), offsets)

    def followed_by(self, other: "Ragged") -> "Ragged":
        """These captions, and then the others."""
        offsets = np.concatenate([self.offsets, self.offsets[-1] + other.offsets[1:]])
        return Ragged(np.concatenate([self.ids, other.ids]), offsets)

    def padded(
        self, index_B: Int[np.ndarray, " B"], length: int
    ) -> Int32[np.ndarray, "B {length}"]:
        """Captions with these indices, one a row and zeros after it."""
        column = np.arange(length)
        inside = column < self.lengths_of(index_B)[:, None]
        token = self.offsets[index_B][:, None] + column
        ids = self.ids[np.where(inside, token, 0)].astype(np.int32, copy=False)
        return np.where(inside, ids, 0)


class Joined:
    """The captions of several `Ragged`, numbered one after the other; none is copied."""

    def __init__(self, parts: "Sequence[Ragged | Chosen]"):
        self.parts = tuple(parts)
        self.starts = np.cumsum([0, *(len(part) for part in self.parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def lengths_of(self, index: Int[np.ndarray, "*B"]) -> Int64[np.ndarray, "*B"]:
        lengths = np.zeros(index.shape, np.int64)
        for part, start, at in self._by_part(index):
            lengths[at] = part.lengths_of(index[at] - start)
        return lengths

    def taken(self, index_B: Int[np.ndarray, " B"]) -> Ragged:
        lengths = self.lengths_of(index_B)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        ids = np.empty(offsets[-1], np.int32)
        for part, start, at in self._by_part(index_B):
            own = part.taken(index_B[at] - start)
            first = offsets[:-1][at] - own.offsets[:-1]
            ids[np.arange(len(own.ids)) + np.repeat(first, own.lengths)] = own.ids
        return Ragged(ids, offsets)

    def padded(
        self, index_B: Int[np.ndarray, " B"], length: int
    ) -> Int32[np.ndarray, "B {length}"]:
        return self.taken(index_B).padded(np.arange(len(index_B)), length)

    def followed_by(self, other: "Ragged | Joined") -> "Joined":
        """These captions, and then the others."""
        return Joined([*self.parts, *(other.parts if isinstance(other, Joined) else [other])])

    def _by_part(self, index: np.ndarray) -> Iterator[tuple[Ragged, int, np.ndarray]]:
        """Each part that is asked for, its first caption, and which of the indices are its own."""
        number = np.searchsorted(self.starts, index, "right") - 1
        for i in np.unique(number).tolist():
            yield self.parts[i], int(self.starts[i]), number == i


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Some captions of others by their index, N of them; none is copied."""

    texts: Ragged | Joined
    index: Int[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.index)

    def lengths_of(self, index: Int[np.ndarray, "*B"]) -> Int64[np.ndarray, "*B"]:
        return self.texts.lengths_of(self.index[index])

    def taken(self, index_B: Int[np.ndarray, " B"]) -> Ragged:
        return self.texts.taken(self.index[index_B])


@dataclasses.dataclass(frozen=True)
class Packing:
    """Static sizes of packed batches.

    Attributes:
      per_shard: B / S, captions of each part of the batch that is packed by itself.
      row_length: L, at least the longest caption.
      max_captions_per_row: Q.
      rows: R / S, of each shard, as long as they are enough.
      row_step: by which they grow when they are not.
    """

    per_shard: int
    row_length: int
    max_captions_per_row: int
    rows: int = 1
    row_step: int = 1

    @classmethod
    def suited_to(
        cls, lengths: Int64[np.ndarray, " N"], batch_size: int, shards: int, longest: int = 0
    ) -> "Packing":
        """Sizes for batches of `batch_size` captions drawn from captions of these lengths.

        Rows take captions up to `longest` tokens as well.
        """
        mean = float(lengths.mean())
        wanted = min(_MAX_ROW_LENGTH, _round_up(_CAPTIONS_PER_ROW * mean, 16))
        row_length = max(wanted, _round_up(max(longest, int(lengths.max())), 8))
        # A third more captions a row than on average: short ones come together.
        most = max(2, _round_up(1.33 * row_length / mean, 1))
        packing = cls(batch_size // shards, row_length, max_captions_per_row=most)
        trial = np.random.Philox(key=0).random_raw(max(batch_size, _TRIAL_CAPTIONS)) % len(lengths)
        batches = trial[: len(trial) // batch_size * batch_size].reshape(-1, batch_size)
        rows = max(packing.rows_needed(lengths[batch.astype(np.int64)]) for batch in batches)
        step = max(1, round(_STEP * rows))
        # One row more than any trial took: few batches, if any, then need the larger shape.
        return dataclasses.replace(packing, rows=rows + 1, row_step=step)

    def rows_needed(self, lengths: Int64[np.ndarray, " B"]) -> int:
        """Rows of each shard for captions of these lengths, in batch order."""
        parts = lengths.reshape(-1, self.per_shard)
        return self._rows([_assign(part, self)[0] for part in parts])

    def pack(
        self,
        texts: Ragged | Joined,
        index_B: Int[np.ndarray, " B"],
        reserved_B: Int64[np.ndarray, " B"] | None = None,
        rows: int | None = None,
    ) -> dict[str, Int32[np.ndarray, "_ _"]]:
        """Packs the captions with these indices.

        Args:
          texts: all captions.
          index_B: the captions to pack.
          reserved_B: tokens to keep for each, at least its length, which is the default. They
            alone decide the shape and the places, so that processes which know what was planned,
            but not which caption took another's place elsewhere, agree on both.
          rows: of each shard, where a shard elsewhere needs more than the ones here.

        Returns `ids`, `positions`, `segments` `[R, L]`, a token, its place in its caption, and the
        number of the caption in its row from 1, 0 where no caption is; `ends` `[R, Q]`, the column
        of the end token of each caption of the row, 0 where unused; `slots` `[S, B / S]`, where a
        caption's end is among the `R / S * Q` of its shard.
        """
        lengths = texts.lengths_of(index_B)
        reserved_B = lengths if reserved_B is None else reserved_B
        if (lengths > reserved_B).any():
            raise ValueError("a caption is longer than the room that was planned for it")
        assigned = [_assign(part, self) for part in reserved_B.reshape(-1, self.per_shard)]
        rows = max(rows or 0, self._rows([row for row, _, _ in assigned]))
        in_shard, number, column = (np.stack(x) for x in zip(*assigned, strict=True))
        row = (in_shard + rows * np.arange(len(assigned))[:, None]).ravel()
        slots = (in_shard * self.max_captions_per_row + number).astype(np.int32)
        number, column = number.ravel(), column.ravel()

        # Every token of every caption goes to its place without a Python loop: token t belongs to
        # caption `owner[t]`, and the captions' tokens follow each other.
        owner = np.repeat(np.arange(len(index_B)), lengths)
        position = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        target = (row * self.row_length + column)[owner] + position
        values = {"ids": texts.taken(index_B).ids, "positions": position}
        packed = {}
        for name, value in (values | {"segments": number[owner] + 1}).items():
            packed[name] = np.zeros((rows * len(assigned), self.row_length), np.int32)
            packed[name].reshape(-1)[target] = value
        ends = np.zeros((rows * len(assigned), self.max_captions_per_row), np.int32)
        ends[row, number] = column + lengths - 1
        return packed | {"ends": ends, "slots": slots}

    def _rows(self, rows_of_shards: list[np.ndarray]) -> int:
        fullest = max(int(row.max()) + 1 for row in rows_of_shards)
        return self.rows + max(0, _round_up(fullest - self.rows, self.row_step))


def _round_up(x: float, multiple: int) -> int:
    return int(-(-x // multiple)) * multiple


def _assign(lengths: np.ndarray, packing: Packing) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best fit in decreasing length: row, number in the row and first column, int64 `[B]` each."""
    if lengths.max() > packing.row_length:
        raise ValueError(f"a caption of {lengths.max()} tokens in rows of {packing.row_length}")
    row_of, number_of, column_of = [0] * len(lengths), [0] * len(lengths), [0] * len(lengths)
    row_length, most = packing.row_length, packing.max_captions_per_row
    # Rows by the columns they have left, and as bits of one integer which numbers of columns there
    # are: the fullest row that takes a caption is the lowest bit from its length on. Lists, because
    # this loop is not vectorised and NumPy scalars would take most of its time.
    rows_with: list[list[int]] = [[] for _ in range(row_length + 1)]
    there = 0
    used: list[int] = []  # captions in each row
    # Long ones first: short ones then fill what is left. Stable, so that the same lengths always
    # give the same places.
    order = np.argsort(-lengths, kind="stable")
    for caption, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        if fitting := there >> length:
            left = length + (fitting & -fitting).bit_length() - 1
            row = rows_with[left].pop()
            if not rows_with[left]:
                there ^= 1 << left
        else:
            left, row = row_length, len(used)
            used.append(0)
        row_of[caption], number_of[caption] = row, used[row]
        column_of[caption] = row_length - left
        used[row] += 1
        if used[row] < most:
            rows_with[left - length].append(row)
            there |= 1 << (left - length)
    return np.array(row_of), np.array(number_of), np.array(column_of)
