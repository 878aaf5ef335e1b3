"""Captions packed several to a row, so that padding is not computed.

CLIP's text tower is causal and reads only the state at the end token. So captions may share a row:
each sees itself only (block-diagonal causal mask), positions start at 0 in each, and the state is
read at each end token. The features are those of padded rows; the arithmetic is that of the real
tokens and a few per cent.

Shapes are static: rows are packed per shard of the batch, so that no gather crosses devices, and
nearly all batches have one number of rows, so that few programs are compiled. Letters in shapes: S
shards, R rows over all shards, L tokens a row, Q captions a row at most, B captions.
"""

import dataclasses

import numpy as np

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
      ids: int32, all captions.
      offsets: int64 `[N + 1]`; caption i is `ids[offsets[i]:offsets[i + 1]]`.
    """

    ids: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each caption, int64 `[N]`."""
        return np.diff(self.offsets)

    def padded(self, captions: np.ndarray, length: int) -> np.ndarray:
        """Captions with these indices, int `[B]`, one a row and zeros after it: int32 `[B, T]`."""
        column = np.arange(length)
        inside = column < self.lengths[captions][:, None]
        at = self.offsets[captions][:, None] + column
        return np.where(inside, self.ids[np.where(inside, at, 0)], 0)


@dataclasses.dataclass(frozen=True)
class Packing:
    """Static sizes of packed batches.

    Attributes:
      per_shard: B / S, captions of each part of the batch that is packed by itself.
      row_length: L, at least the longest caption.
      slots: Q, captions a row at most.
      rows: R / S, of each shard, as long as they are enough.
      row_step: by which they grow when they are not.
    """

    per_shard: int
    row_length: int
    slots: int
    rows: int = 1
    row_step: int = 1

    @classmethod
    def suited_to(cls, lengths: np.ndarray, batch_size: int, shards: int) -> "Packing":
        """Sizes for batches of `batch_size` captions drawn from captions of these lengths."""
        mean = float(lengths.mean())
        wanted = min(_MAX_ROW_LENGTH, _round_up(_CAPTIONS_PER_ROW * mean, 16))
        row_length = max(wanted, _round_up(int(lengths.max()), 8))
        # A third more captions a row than on average: short ones come together.
        slots = max(2, _round_up(1.33 * row_length / mean, 1))
        packing = cls(per_shard=batch_size // shards, row_length=row_length, slots=slots)
        trial = np.random.Philox(key=0).random_raw(max(batch_size, _TRIAL_CAPTIONS)) % len(lengths)
        batches = trial[: len(trial) // batch_size * batch_size].reshape(-1, batch_size)
        rows = max(packing.rows_needed(lengths[batch.astype(np.int64)]) for batch in batches)
        step = max(1, round(_STEP * rows))
        # One row more than any trial took: few batches, if any, then need the larger shape.
        return dataclasses.replace(packing, rows=rows + 1, row_step=step)

    def rows_needed(self, lengths: np.ndarray) -> int:
        """Rows of each shard for captions of these lengths, int `[B]`, in batch order."""
        parts = lengths.reshape(-1, self.per_shard)
        return self._rows([_assign(part, self)[0] for part in parts])

    def pack(
        self,
        texts: Ragged,
        captions: np.ndarray,
        room: np.ndarray | None = None,
        rows: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Packs the captions with these indices, int `[B]`.

        Args:
          texts: all captions.
          captions: to pack.
          room: tokens to keep for each, int `[B]`, at least its length, which is the default.
          rows: of each shard, where a shard elsewhere needs more than the ones here.

        Returns int32 arrays:
          ids, positions, segments `[R, L]`: token, its position in its caption, and the number of
            the caption in its row from 1; 0 where no caption is.
          ends `[R, Q]`: column of the end token of each caption of the row; 0 where unused.
          slots `[S, B / S]`: where a caption's end is among the `R / S * Q` of its shard.
        """
        lengths = texts.lengths[captions]
        room = lengths if room is None else room
        if (lengths > room).any():
            raise ValueError("a caption is longer than the room that was planned for it")
        assigned = [_assign(part, self) for part in room.reshape(-1, self.per_shard)]
        rows = max(rows or 0, self._rows([row for row, _, _ in assigned]))
        in_shard, slot, column = (np.stack(x) for x in zip(*assigned, strict=True))
        row = (in_shard + rows * np.arange(len(assigned))[:, None]).ravel()
        place = (row, slot.ravel(), column.ravel())
        packed = _scatter(texts, captions, lengths, place, rows * len(assigned), self)
        return packed | {"slots": (in_shard * self.slots + slot).astype(np.int32)}

    def _rows(self, rows_of_shards: list[np.ndarray]) -> int:
        fullest = max(int(row.max()) + 1 for row in rows_of_shards)
        return self.rows + max(0, _round_up(fullest - self.rows, self.row_step))


def _round_up(x: float, multiple: int) -> int:
    return int(-(-x // multiple)) * multiple


def _assign(lengths: np.ndarray, packing: Packing) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best fit in decreasing length: row, slot and first column of each caption, int64 `[B]`.

    Rows are kept in buckets by the room they have left, so a caption finds the fullest row that
    takes it in at most L steps.
    """
    if lengths.max() > packing.row_length:
        raise ValueError(f"a caption of {lengths.max()} tokens in rows of {packing.row_length}")
    row_of, slot_of, column_of = [0] * len(lengths), [0] * len(lengths), [0] * len(lengths)
    rows_with_room: list[list[int]] = [[] for _ in range(packing.row_length + 1)]
    used: list[int] = []  # captions in each row
    order = np.argsort(-lengths, kind="stable")
    for caption, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        room = length
        while room <= packing.row_length and not rows_with_room[room]:
            room += 1
        if room <= packing.row_length:
            row = rows_with_room[room].pop()
        else:
            room, row = packing.row_length, len(used)
            used.append(0)
        row_of[caption], slot_of[caption] = row, used[row]
        column_of[caption] = packing.row_length - room
        used[row] += 1
        if used[row] < packing.slots:
            rows_with_room[room - length].append(row)
    return np.array(row_of), np.array(slot_of), np.array(column_of)


def _scatter(
    texts: Ragged,
    captions: np.ndarray,
    lengths: np.ndarray,
    place: tuple[np.ndarray, np.ndarray, np.ndarray],
    rows: int,
    packing: Packing,
) -> dict[str, np.ndarray]:
    """Writes every token of every caption to its place in `[R, L]`, without a Python loop."""
    row, slot, column = place
    of_caption = np.repeat(np.arange(len(captions)), lengths)
    position = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    target = (row * packing.row_length + column)[of_caption] + position
    values = {
        "ids": texts.ids[texts.offsets[captions][of_caption] + position],
        "positions": position,
        "segments": slot[of_caption] + 1,
    }
    arrays = {name: np.zeros((rows, packing.row_length), np.int32) for name in values}
    for name, array in arrays.items():
        array.reshape(-1)[target] = values[name]
    ends = np.zeros((rows, packing.slots), np.int32)
    ends[row, slot] = column + lengths - 1
    return arrays | {"ends": ends}
