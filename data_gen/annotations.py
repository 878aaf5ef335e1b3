"""What COCO's boxes tell: what is in a photo, what is not, and what usually stands beside what."""

import hashlib
import itertools
import os
import posixpath
import re
from array import array
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from data_gen.records import ImageItem
from negclip_jax.common import coco, strict_json
from negclip_jax.common.packed import Index, Texts
from negclip_jax.common.photos import name_key
from negclip_jax.common.records import identity
from negclip_jax.language import tables
from negclip_jax.language.inflection import singular
from negclip_jax.language.mentions import find_kinds, find_same, mentioned
from negclip_jax.language.text import tokenize
from negclip_jax.language.twins import place_of
from negclip_jax.language.vocabulary import CATEGORIES, canonical, content, kinds, same

ABSENT, PRESENT, UNSURE = "absent", "present", "unsure"
NOT_ANNOTATED = "not_annotated"  # of a photo that the instance file does not know
# Of the draws by lift: photos that a scene of `scenes.tsv` counts for, photos that a pair of
# objects must outweigh, the power that makes likely objects likelier, and the lift from which an
# object is plausible, as some always are.
_SCENE_IMAGES, _DOUBT, _SHARPNESS, _PLAUSIBLE, _AT_LEAST = 8, 4, 3, 1.0, 4
# Of `Cooccurrence.fit`: rounds, the power of a round's correction, and the chance in the numbers.
_ROUNDS, _STEP, _SPREAD = 200, 0.3, 0.5
_TEXTS = 1000  # of an image, at most
_PLACED = 4  # times as likely is a thing whose place a caption tells to be said without it
_LOOKALIKES = {name: frozenset(words.split()) for name, words in tables.rows("lookalikes")}
_BROAD = "?"
_LARGE = 0.05  # share of the photo from which a box needs no caption that names it
_PLAIN = 0.002  # and from which one who looks at the photo finds what a caption names
# Categories whose boxes leave the absence of another in doubt: a laptop has a keyboard.
_HIDES = {name: frozenset(boxed.split(", ")) for name, boxed in tables.rows("doubts")}
SCENES = [
    (frozenset(objects.split(", ")), frozenset(words.split()))
    for _, objects, words in tables.rows("scenes")
]
# An object says the more of its scene, the fewer scenes have it.
_TELLS = {
    name: 1 / sum(name in objects for objects, _ in SCENES)
    for name in sorted(frozenset().union(*(objects for objects, _ in SCENES)) - {"person"})
}
# Of the best scene's weight: a photo may be of several scenes; more of them where all that is in
# the first ones is there, but for less than `_LEFT`.
_ALIKE, _LEFT = (0.7, 0.5, 0.3, 0.2, 0.1, 0.0), 2


class InstanceVerifier:
    """Tells from an instance file whether an object is in an image.

    Attributes:
      names: the categories that the file annotates, as its images may be asked about.
      present: image id to all categories annotated there, however small.
      visible: those of them that are plain to see, not tiny and no mere crowd.
      large: those with one that fills much of the photo.
      crowds: those with a crowd, whether or not there are single ones beside it.
    """

    def __init__(self, instances: str | os.PathLike, asked: Iterable[tuple[str, str]] = ()):
        """Reads a COCO instances JSON.

        `asked`: ids and file names of the photos that will be asked about. One whose id is not in
        the file, or is there of another file name, is found by its name. Raises InputError as
        `coco.read_instances` does.
        """
        self.names, ids, files, tables = coco.fold_instances(Path(instances), _table_of)
        rows = _Rows(ids, files, asked)
        self.present, self.visible, self.large, self.crowds = (
            _Kinds(self.names, rows, table) for table in tables
        )

    def certain(self, image: ImageItem) -> list[str]:
        """What `certain` says of the objects in an image that the file knows, sorted."""
        image_id = identity(image.image_id)
        return certain(sorted(self.visible[image_id]), image.texts, self.large[image_id])

    def doubted(self, image_id: str) -> frozenset[str]:
        """The categories that have no box in an image that the file knows, and may be there."""
        there = self.present[image_id]
        return frozenset(name for name, boxed in _HIDES.items() if boxed & there) - there

    def verdict(self, image_id: str | int, obj: str) -> tuple[str, float]:
        """("absent" | "present" | "unsure", probability that it is present: 0, 1 or 0.5).

        An object is `absent` only if the file annotates its class, or a wider one, and there is no
        instance in the image. It is `unsure` when the image is not in the file, the class is not
        annotated, the instances are only crowds or tiny, the object is a kind of an annotated
        class that is there ("kitten", where a cat is), or its absence is `doubted`.
        """
        image_id = identity(image_id)
        annotated = self.present.get(image_id)
        name = canonical(obj)
        classes = _classes(name, self.names)
        if annotated is None or not classes:
            return UNSURE, 0.5
        if not annotated.union(self.doubted(image_id)).intersection(classes):
            return ABSENT, 0.0
        if name in self.visible[image_id]:
            return PRESENT, 1.0
        return UNSURE, 0.5


def _is_same_photo(name: str, other: str) -> bool:
    """Whether two names of one id are of one photo: COCO_val2014_000000000042.jpg, 42.jpg."""
    numbers = [re.search(r"(\d+)(?=\.\w+$)", text) for text in (name, other)]
    return name == name_key(other) or (all(numbers) and len({int(n[0]) for n in numbers}) == 1)


@cache
def _classes(name: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The annotated classes that every instance of the object belongs to."""
    if name in names:
        return (name,)
    equal = tuple(known for known in names if same(known) & same(name))
    return equal or tuple(known for known in names if name in kinds(known))


def _table_of(
    names: tuple[str, ...],
    images: Iterable[tuple[str, coco.Image]],
    objects: Iterable[coco.Instance],
) -> tuple[tuple[str, ...], Texts, Texts, np.ndarray]:
    """The categories; ids of all images and names of those that are listed; and as bits, uint8
    `[4, I, C / 8]`, which categories are present, visible, large and crowds."""
    ids, files, pixels = Texts(), Texts(), array("q")
    for image_id, image in images:
        ids.append(image_id)
        files.append(image.file_name)
        pixels.append(image.width * image.height)
    index, bit = Index(ids), {name: i for i, name in enumerate(names)}
    if index.repeated():
        raise strict_json.Irregular
    unlisted: dict[str, int] = {}  # images that only their objects name
    table = np.zeros((4, len(ids), -(-len(names) // 8)), np.uint8)
    for row in objects:
        image = index.first(row.image)
        if image < 0:
            image = unlisted.setdefault(row.image, len(ids))
            if image == len(ids):
                ids.append(row.image)
                pixels.append(0)
            if image == table.shape[1]:
                more = np.zeros((4, 1 + image // 4, table.shape[2]), np.uint8)
                table = np.concatenate([table, more], axis=1)
        byte, mask = bit[row.category] // 8, 1 << bit[row.category] % 8
        share = coco.share(row, pixels[image])
        is_plain, is_large = (not row.crowd and share >= least for least in (_PLAIN, _LARGE))
        told = (True, is_plain, is_large, row.crowd)
        for kind, is_so in enumerate(told):
            if is_so:
                table[kind, image, byte] |= mask
    return names, ids, files, table


class _Rows:
    """Which row of the table an image has, by its id in the file or the id that it is asked by."""

    def __init__(self, ids: Texts, files: Texts, asked: Iterable[tuple[str, str]]):
        self._ids, self._of_file = ids, Index(ids)
        self._asked, self._rows, row_of = Texts(), array("q"), None
        for given, name in asked:
            image_id, base = identity(given) or given, posixpath.basename(name)
            row = self._of_file.first(image_id)
            there = files[row] if 0 <= row < len(files) else None
            if there == "" or (there and _is_same_photo(name_key(base), posixpath.basename(there))):
                continue
            row_of = row_of or _by_name(files)
            found = row_of(name)
            found = row_of(base) if found is None else found
            if found is not None or there is not None:  # None: another photo has this id
                self._asked.append(image_id)
                self._rows.append(-1 if found is None else found)
        self._of_asked = Index(self._asked)

    def __getitem__(self, image_id: str) -> int | None:
        asked = list(self._of_asked.places(image_id)) if len(self._asked) else ()
        row = self._rows[asked[-1]] if asked else self._of_file.first(image_id)
        return None if row < 0 else row

    def __iter__(self) -> Iterator[str]:
        """The ids by which an image is known."""
        again = {place for place, _ in self._of_asked.repeated()}
        for place, image_id in enumerate(self._asked):
            if place not in again and self[image_id] is not None:
                yield image_id
        yield from (i for i in self._ids if self._of_asked.first(i) < 0)


def _by_name(files: Texts) -> Callable[[str], int | None]:
    """Finds images by their file names, with and without folders, where one alone is called so."""
    keys, rows = Texts(), array("q")
    for row, file in enumerate(files):
        for name in {file, posixpath.basename(file)} - {""}:
            keys.append(name_key(name))
            rows.append(row)
    index = Index(keys)

    def row_of(name: str) -> int | None:
        found = list(itertools.islice(index.places(name_key(name)), 2))
        return rows[found[0]] if len(found) == 1 else None

    return row_of


class _Kinds(Mapping[str, frozenset[str]]):
    """Image id to categories, from bits uint8 `[I, C / 8]`."""

    def __init__(self, names: tuple[str, ...], rows: _Rows, bits: np.ndarray):
        self._rows, self._bits = rows, bits

        @lru_cache(10_000)
        def named(row: bytes) -> frozenset[str]:
            is_there = np.unpackbits(np.frombuffer(row, np.uint8), bitorder="little")
            return frozenset(itertools.compress(names, is_there))

        self._named = named

    def __getitem__(self, image_id: str) -> frozenset[str]:
        if (row := self._rows[image_id]) is None:
            raise KeyError(image_id)
        return self._named(self._bits[row].tobytes())

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def certain(
    present: Iterable[str], captions: Sequence[str], seen: Container[str] | None = None
) -> list[str]:
    """The objects that nobody who looks at the photo would miss, or call something else.

    A caption may hint that they are pictures, toys or another thing. A category of COCO that no
    caption names and that is not among those `seen` (None: all are) may be a spatula that was boxed
    as a spoon.
    """
    texts = [tokenize(text) for text in captions]
    pictured = {singular(token.word) for tokens in texts for token in tokens} & _LOOKALIKES["*"]
    found = []
    for name in present:
        alike = _LOOKALIKES.get(name, frozenset())
        # What a caption calls by its name is what the box says, "a bench and two chairs", unless as
        # many others call it something else.
        naming = [
            any(
                first < last or singular(tokens[last].word) not in alike
                for first, last in find_same(name, tokens)
            )
            for tokens in texts
        ]
        other = [bool(alike.intersection(singular(t.word) for t in tokens)) for tokens in texts]
        called = sum(naming) > sum(b and not a for a, b in zip(naming, other, strict=True))
        known = called or seen is None or name not in CATEGORIES
        known = known or (name in seen and _BROAD not in alike)
        known = known or any(find_kinds(name, tokens) for tokens in texts)
        if known and not pictured - set(name.split()) and (called or not any(other)):
            found.append(name)
    return found


@lru_cache(maxsize=256)
def expected(present: frozenset[str], captions: tuple[str, ...]) -> frozenset[str]:
    """What one half-expects in a photo, by the scenes that objects in it and captions tell of."""
    words = {singular(word) for text in captions for word in content(text)}
    weights = [
        sum(_TELLS.get(name, 0) for name in objects & present) + len(words & told)
        for objects, told in SCENES
    ]
    around: frozenset[str] = frozenset()
    for alike in _ALIKE:
        least = max(alike * max(weights), min(_TELLS.values()))
        chosen = (objects for (objects, _), w in zip(SCENES, weights, strict=True) if w >= least)
        around = frozenset().union(*chosen)
        if len(around - present) >= _LEFT:
            break
    return around


def unsaid(present: Sequence[str], caption: str) -> tuple[list[str], bool]:
    """(What may be said to be there, whether only without the caption), of objects in its photo.

    Beside a caption that is what it does not name: "a dog, with no dog in sight" is false of every
    photo. Where it names everything, a text without the caption may say it.
    """
    found = [name for name in present if not mentioned(name, [caption])]
    return found or list(present), bool(present) and not found


def sayable(present: Sequence[str], caption: str) -> tuple[list[str], bool]:
    """What is `unsaid`; of a text without the caption what the caption tells the place of is named
    several times, as it is said the better: "a cat on a sofa, but no dog"."""
    found, alone = unsaid(present, caption)
    if alone:
        found = [n for n in found for _ in range(_PLACED if place_of(n, caption) else 1)]
    return found, alone


def is_category(found: tuple[list[str], bool]) -> bool:
    """Whether what is `unsaid` is of COCO's categories: the kind that its absent twin is of."""
    return not found[0] or any(name in CATEGORIES for name in found[0])


# What is in an image, its captions, and for each text beside a caption, or alone (True), what may
# be said to be there: several times where that is the likelier.
Told = tuple[frozenset[str], Sequence[str], Sequence[tuple[Sequence[str], bool]]]


class _Draws:
    """Texts of which each draws an object by weights; of (number of the text, object, weight)."""

    def __init__(self, rows: Sequence[tuple[int, int, float]], objects: int):
        texts, places, self._weights = np.array(rows).T
        self._texts = np.unique(texts, return_inverse=True)[1]
        self._objects, self._size = places.astype(int), objects

    def numbers(self, factors: np.ndarray) -> np.ndarray:
        """How often each object is drawn, on average, where weights have these factors."""
        weights = self._weights * factors[self._objects]
        totals = np.bincount(self._texts, weights)
        return np.bincount(self._objects, weights / totals[self._texts], self._size)


class Cooccurrence:
    """Draws objects by lift: how much oftener than elsewhere they occur beside what is there.

    By frequency alone every photo would lack people and chairs; by lift a kitchen lacks an oven.
    Such objects make informative pairs, but "no oven" is then only ever said of kitchens, and a
    model may learn that it means "kitchen". A share of random objects breaks that link. After `fit`
    an object is drawn as often as it can be said to be there.
    """

    def __init__(
        self,
        present: Mapping[str, frozenset[str]] | Sequence[frozenset[str]],
        names: Sequence[str] | None = None,
        random: float = 0.0,
    ):
        """Counts which objects are present together.

        `names`: all that can be proposed; by default those that are present somewhere. `random`:
        share of draws, between 0 and 1, from all names evenly.
        """
        images = present.values() if isinstance(present, Mapping) else present
        every = itertools.chain.from_iterable(images) if names is None else ()
        self.names = sorted(set(every)) if names is None else list(names)
        self._random = random
        self._index = {name: i for i, name in enumerate(self.names)}
        together = np.zeros((len(self.names), len(self.names)))
        scenes = ((objects, _SCENE_IMAGES) for objects, _ in SCENES)
        for objects, weight in itertools.chain(zip(images, itertools.repeat(1)), scenes):
            rows = [self._index[name] for name in objects if name in self._index]
            together[np.ix_(rows, rows)] += weight
        counts = together.diagonal()
        expected = np.outer(counts, counts) / (len(images) + _SCENE_IMAGES * len(SCENES))
        self._lift = (together + _DOUBT) / (expected + _DOUBT)
        self._often = counts / max(counts.sum(), 1)
        self._factors = np.ones((2, len(self.names)))  # beside a caption, and alone

    def __contains__(self, name: str) -> bool:
        return name in self._index

    def fit(self, images: Iterable[Told], seed: int = 0) -> None:
        """Weighs draws so that each object is drawn as absent about as often as it is as present.

        An object that is mostly absent where texts name it tells that they are true without the
        photo. So the weight of an absent object is multiplied by its factor and that of a present
        one divided by it: of all draws with such numbers these have the most entropy. The numbers
        are to differ a little, by chance: of equal ones those of some images tell the others'.

        `seed`: of the chance.
        """
        # By kind of text, of absent and present objects: (number of the text, object, weight).
        rows, rng = ([[], []], [[], []]), np.random.default_rng(seed)
        for number, (present, captions, left) in enumerate(images):
            weights = self._plausible(present, captions)
            away = [(i, weights[i]) for i in np.flatnonzero(weights)]
            for text, (found, alone) in enumerate(left, number * _TEXTS):
                there = [(self._index[name], 1.0) for name in found if name in self._index]
                if there and away:
                    for side, options in zip(rows[alone], (away, there), strict=True):
                        side += [(text, i, weight) for i, weight in options]
        for factors, sides in zip(self._factors, rows, strict=True):
            if not sides[0]:
                continue
            draws = [_Draws(side, len(factors)) for side in sides]
            numbers = draws[1].numbers(1 / factors)
            noise = _SPREAD * rng.normal(size=len(factors)) * np.sqrt(2 * numbers)
            for _ in range(_ROUNDS):
                absent = draws[0].numbers(factors) + np.maximum(-noise, 0)
                there = draws[1].numbers(1 / factors) + np.maximum(noise, 0)
                factors *= ((there + 0.1) / (absent + 0.1)) ** _STEP

    def _plausible(self, present: frozenset[str], captions: Sequence[str]) -> np.ndarray:
        """The weights of all names beside these, before they are fitted; 0 for what is there.

        Categories of COCO that the photo's scenes do not have weigh nothing, if others are left.
        """
        known = [self._index[name] for name in sorted(present) if name in self._index]
        if not known:
            return self._often
        # People are in every scene: beside anything else they say nothing of what is missing.
        telling = [i for i in known if self.names[i] != "person"] or known
        lift = self._lift[telling].max(axis=0)
        lift[known] = 0
        around = expected(present, tuple(captions))
        fits = np.array([name in around or name not in CATEGORIES for name in self.names])
        lift = lift * fits if np.any(lift * fits) else lift
        least = min(_PLAUSIBLE, np.sort(lift)[-_AT_LEAST:].min())
        return np.where(lift >= least, lift, 0) ** _SHARPNESS

    def draw(
        self,
        present: frozenset[str],
        k: int,
        rng: np.random.Generator,
        alone: bool = False,
        captions: Sequence[str] = (),
    ) -> list[str]:
        """Up to k different objects, none of them present, likeliest first drawn.

        `alone`: for a text without the caption. `captions` tell of the scene.
        """
        weights = self._plausible(present, captions) * self._factors[int(alone)]
        if rng.random() < self._random:
            weights = np.ones(len(self.names))
        weights[[self._index[name] for name in present if name in self._index]] = 0
        number = min(k, np.count_nonzero(weights))
        if not number:
            return []
        # Weighted draws without replacement (Efraimidis and Spirakis, 2006): the smallest of
        # exponential waiting times, several times faster than rng.choice.
        with np.errstate(divide="ignore"):
            waiting = rng.exponential(size=len(weights)) / weights
        return [self.names[i] for i in np.argsort(waiting)[:number]]

    def there(self, found: Sequence[str], alone: bool, seed_key: str) -> str | None:
        """One of the objects that may be said to be there, drawn as `fit` weighs them."""
        factors = self._factors[int(alone)]
        weights = [1 / factors[self._index[n]] if n in self._index else 1.0 for n in found]
        weights = np.array(weights)
        return str(_rng(seed_key).choice(found, p=weights / weights.sum())) if found else None

    def propose(
        self,
        present: frozenset[str],
        captions: Sequence[str],
        k: int,
        seed_key: str,
        alone: bool = False,
    ) -> list[str]:
        """Up to k objects, likeliest first drawn, neither present nor mentioned in a caption.

        The same `seed_key` gives the same objects.
        """
        rng = _rng(seed_key)
        drawn = self.draw(present, len(self.names), rng, alone, captions)
        if all(mentioned(name, captions) for name in drawn):
            drawn = self.draw(present, len(self.names), rng, alone)
        return list(itertools.islice((n for n in drawn if not mentioned(n, captions)), k))


def _rng(seed_key: str) -> np.random.Generator:
    digest = hashlib.blake2b(seed_key.encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))
