"""Many tars as one set of members with random access: pairs and images of webdataset's shards.

    shards = TarShards("cc12m-{0000..1242}.tar")
    for key, members in shards.samples(0):  # "000000000", {"jpg": Member, "txt": Member}
        text = shards.read(0, members["txt"].offset, members["txt"].size)
        image = f"{shards.found[0].name}/{members['jpg'].name}"  # "cc12m-0000.tar/000000000.jpg"
    shards.locate([image])  # int64 [N, 3]: shard, offset, size

All members are indexed, see `data.tar_index`. Nothing is extracted.
"""

import concurrent.futures
import functools
import logging
import os
import posixpath
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int64

from negclip_jax.common import storage
from negclip_jax.common.problems import first
from negclip_jax.data import tar_index
from negclip_jax.data.shards import ShardError, Shards
from negclip_jax.data.tar_index import Index, Member, TarError

__all__ = ["Index", "Member", "TarError", "TarShards"]

_THREADS = 16  # that make indexes
_MAPPED = 256  # indexes


class TarShards(Shards):
    """Members of many tars by their place. Threads may read; pickles to the list of the shards.

    Attributes:
      heads: what the index of each shard says of it, see `tar_index.build`; none in a copy that was
        unpickled.
    """

    def __init__(self, pattern: str):
        """Finds the tars and indexes those that have no index of their own.

        Args:
          pattern: see `data.shards`; on a disk or in a bucket.

        Raises InputError where there are none, and TarError where some cannot be used: compressed,
        cut short, damaged, no tar, or with a name twice.
        """
        super().__init__(pattern, ".tar")
        self.heads = self._indexed()
        left_out = [head for head in self.heads if head["left_out"]]
        warnings = [head["warning"] for head in self.heads if head["warning"]]
        if left_out:
            i = self.heads.index(left_out[0])
            logging.warning(
                "%d members of %d tars are not read, e.g. of %s: %s",
                *(sum(head["left_out"] for head in left_out), len(left_out)),
                *(self.found[i].path, left_out[0]["example"]),
            )
        if warnings:
            logging.warning("%s", first(warnings, 3, separator="; "))

    def samples(self, shard: int) -> Iterator[tuple[str, dict[str, Member]]]:
        """Members of a shard grouped by key, in the order of each key's first member.

        A key is the name up to the first dot of its last part, what follows it the suffix, in lower
        case: webdataset's rule, without its demand that members of a key follow each other. Names
        without a suffix, hidden files and `__meta__` are left out.

        Raises TarError for two members of one key and suffix.
        """
        found: dict[str, dict[str, Member]] = {}
        for member in self.index(shard).listed():
            folder, file = posixpath.split(member.name)
            stem, dot, suffix = file.partition(".")
            if not (stem and dot) or (stem.startswith("__") and stem.endswith("__")):
                continue
            sample = found.setdefault(posixpath.join(folder, stem), {})
            if (suffix := suffix.lower()) in sample:
                raise TarError(
                    f"{self.found[shard].path} holds {sample[suffix].name!r} and {member.name!r}, "
                    "which are of one key and suffix: rename one, or leave the shard out"
                )
            sample[suffix] = member
        yield from found.items()

    def find(self, names: Sequence[str]) -> Int64[np.ndarray, "N 2"]:
        """Shard and member of each name `SHARD/MEMBER`, -1 where there is none."""
        places = np.full((len(names), 2), -1)
        for shard, (rows, members) in self.by_shard(names).items():
            places[rows, 1] = self.index(shard).find(members)
            places[rows, 0] = np.where(places[rows, 1] < 0, -1, shard)
        return places

    def locate(self, names: Sequence[str]) -> Int64[np.ndarray, "N 3"]:
        """Where members `SHARD/MEMBER` are: shard, offset and size; -1 for none."""
        places = np.pad(self.find(names), ((0, 0), (0, 1)), constant_values=-1)
        for shard in np.unique(places[places[:, 0] >= 0, 0]).tolist():
            rows, index = np.flatnonzero(places[:, 0] == shard), self.index(shard)
            members = places[rows, 1]
            places[rows, 1], places[rows, 2] = index.offsets[members], index.sizes[members]
        return places

    def _prepare(self) -> None:
        super()._prepare()
        found = self.found
        self.index = functools.lru_cache(_MAPPED)(lambda i: tar_index.open_index(found[i]))

    def _indexed(self) -> list[dict]:
        """The head of the index of each shard; those that have none get one."""
        problems: list[str] = []

        def indexed(i: int) -> dict | None:
            try:
                head = tar_index.head(self.found[i])
                if head is None:
                    tar_index.build(self.found[i])
                    head = tar_index.head(self.found[i])
                if head is None:
                    raise TarError(f"{self.found[i].path} changes while it is read: start again")
                return head
            except ShardError as problem:
                problems.append(str(problem))

        count = len(self.found)
        # Processes that start side by side begin with different ones, and find those of others.
        order = np.roll(np.arange(count), -(os.getpid() * 7919 % count)).tolist()
        with (
            storage.announced(f"the index of {self.pattern}"),
            concurrent.futures.ThreadPoolExecutor(_THREADS) as pool,
        ):
            heads = dict(zip(order, pool.map(indexed, order), strict=True))
        if problems:
            raise TarError(first(sorted(problems), 3, separator="; "))
        return [heads[i] for i in range(count)]
