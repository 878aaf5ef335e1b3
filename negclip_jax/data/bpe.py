"""Byte-pair merges of one word in O(n log n): no word is long enough to hang a run."""

import heapq
from collections.abc import Mapping, Sequence


def merge(parts: Sequence[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Joins the neighbours of lowest rank, everywhere at once, until no merge applies.

    What OpenAI's `bpe` gives for the same word, which looks at every pair again after each round
    and so needs seconds for 20,000 letters. Here the pairs wait in a heap and the parts are a
    linked list. A round is every place of one rank, from left to right, before any pair that the
    round makes: that order matters where the merges are not those of a trained vocabulary.

    Args:
      parts: symbols of the word, at least one.
      ranks: rank of each pair that may be joined.
    """
    parts = list(parts)
    following = [*range(1, len(parts)), -1]  # place of the next part, -1 after the last
    previous = [*range(-1, len(parts) - 1)]
    alive = [True] * len(parts)
    waiting: list[tuple[int, int]] = []

    def wait(left: int) -> None:
        if left >= 0 and following[left] >= 0:
            rank = ranks.get((parts[left], parts[following[left]]))
            if rank is not None:
                heapq.heappush(waiting, (rank, left))

    def join(left: int) -> None:
        right = following[left]
        parts[left] += parts[right]
        alive[right] = False
        following[left] = following[right]
        if following[left] >= 0:
            previous[following[left]] = left

    for place in range(len(parts) - 1):
        wait(place)
    while waiting:
        lowest, joined = waiting[0][0], []
        while waiting and waiting[0][0] == lowest:
            left = heapq.heappop(waiting)[1]
            right = following[left]
            # A place may have changed since it began to wait.
            if alive[left] and right >= 0 and ranks.get((parts[left], parts[right])) == lowest:
                join(left)
                joined.append(left)
        for place in joined:
            wait(previous[place])
            wait(place)
    return [part for part, lives in zip(parts, alive, strict=True) if lives]
