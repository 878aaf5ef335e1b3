"""Plausible absent objects without a model: what usually stands beside what is there."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from negclip_jax.language.mentions import mentioned


class Cooccurrence:
    """Draws objects for an image by how often they occur beside the objects that are there.

    Plausible objects make informative pairs, but "no oven" is then only ever said of kitchens,
    and a model may learn that it means "kitchen". A share of random objects breaks that link.
    """

    def __init__(
        self,
        present: Mapping[str, frozenset[str]] | Sequence[frozenset[str]],
        names: Sequence[str] | None = None,
        random: float = 0.0,
    ):
        """Counts which objects are present together.

        Args:
          present: the objects in each image.
          names: all that can be proposed; by default those that are present somewhere.
          random: share of draws, between 0 and 1, from all names evenly.
        """
        images = list(present.values() if isinstance(present, Mapping) else present)
        self.names = sorted(frozenset().union(*images)) if names is None else list(names)
        self._random = random
        self._index = {name: i for i, name in enumerate(self.names)}
        together = np.zeros((len(self.names), len(self.names)))
        for objects in images:
            rows = [self._index[name] for name in objects]
            together[np.ix_(rows, rows)] += 1
        counts = together.diagonal()
        # A pinch of the object's own frequency: every object that occurs can be proposed.
        self._given = (together + 0.1 * counts / max(len(images), 1)) / (counts[:, None] + 1)
        self._alone = counts / max(counts.sum(), 1)

    def draw(self, present: frozenset[str], k: int, rng: np.random.Generator) -> list[str]:
        """Up to k different objects, none of them present, likeliest first drawn."""
        known = [self._index[name] for name in sorted(present) if name in self._index]
        if rng.random() < self._random:
            weights = np.ones(len(self.names))
        elif known:
            weights = self._given[known].sum(axis=0)
        else:
            weights = self._alone.copy()
        weights[known] = 0
        number = min(k, np.count_nonzero(weights))
        if not number:
            return []
        # Weighted draws without replacement (Efraimidis and Spirakis, 2006): the smallest of
        # exponential waiting times, several times faster than rng.choice.
        with np.errstate(divide="ignore"):
            waiting = rng.exponential(size=len(weights)) / weights
        return [self.names[i] for i in np.argsort(waiting)[:number]]

    def propose(
        self, present: frozenset[str], captions: Sequence[str], k: int, seed_key: str
    ) -> list[str]:
        """Up to k objects, likeliest first drawn, neither present nor mentioned in a caption.

        The same `seed_key` gives the same objects.
        """
        digest = hashlib.blake2b(seed_key.encode(), digest_size=8).digest()
        rng = np.random.default_rng(int.from_bytes(digest, "little"))
        drawn = self.draw(present, len(self.names), rng)
        fresh = (name for name in drawn if not mentioned(name, captions))
        return [name for name, _ in zip(fresh, range(k), strict=False)]
