"""Render a world of coloured shapes as JPEGs with COCO-style captions and instances.

    python -m quickstart.world --out=runs/quickstart/world

A scene holds two or three objects of different kinds, each with a colour: "a red star and a blue
moon". The kind is the COCO category; the colour is the instance's `attributes.colour`. `train/`
and `heldout/` share kinds and colours but no combination: a set of coloured objects that occurs in
one split never occurs in the other. Two kinds are in nobody's annotations (`annotated.json`), so
that no scene denies them: what is learnt about these is learnt from their names (`nouns.txt`).

`--world=easy` is a world in which images are no obstacle. `--world=hard` has more kinds, few
photos, noise, grey cards that stand before the objects: there the image side is the ceiling, as it
is for real photos, and a recipe has to be chosen with that in mind. `--world=many` has 60 kinds,
twelve of them in nobody's annotations: is a negation learnt noun by noun where nouns are many?
"""

import itertools
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from negclip_jax.common.arguments import Parser
from negclip_jax.common.errors import say
from negclip_jax.common.progress import told
from negclip_jax.language.inflection import noun

COLOURS = {
    "red": (222, 38, 38),
    "orange": (255, 145, 0),
    "yellow": (250, 225, 20),
    "green": (30, 160, 60),
    "blue": (35, 80, 225),
    "purple": (150, 40, 190),
}
KINDS = ("circle", "square", "triangle", "star", "heart", "moon", "arrow", "house")
MORE_KINDS = (
    *("diamond", "cross", "hexagon", "tree", "leaf", "drop"),
    *("boat", "bell", "crown", "flag", "hammer", "bottle"),
)
# Every shape again, as an outline and with its lower half in black: 60 kinds in all.
OUTLINED = (
    *("ring", "frame", "harp", "badge", "locket", "hook", "needle", "gate"),
    *("gem", "windmill", "nut", "cactus", "feather", "pearl"),
    *("anchor", "lantern", "helmet", "paddle", "axe", "jar"),
)
HALVED = (
    *("button", "tile", "tent", "flower", "mask", "claw", "dart", "ladder"),
    *("lamp", "magnet", "drum", "mushroom", "shell", "candle"),
    *("basket", "skirt", "comb", "broom", "spade", "rocket"),
)
SHAPES = KINDS + MORE_KINDS
SHAPE_OF = dict(zip(SHAPES + OUTLINED + HALVED, SHAPES * 3, strict=True))
UNANNOTATED = (  # the world of eight or twenty kinds has the first two
    *("circle", "moon", "ring", "locket", "gem", "cactus"),
    *("lantern", "axe", "tile", "dart", "drum", "comb"),
)
SIZE = 48  # pixels, both sides of a scene
GRID = 3  # cells a side; a tiny vision tower learns shapes in minutes if patches fit the cells
SUPERSAMPLE = 6  # drawn this many times larger, then averaged down: edges stay tellable
HOLE = 0.55  # of an outlined shape, along each side
BLACK = (20, 20, 20)
MOST_KIND_SETS = 2000  # that scenes are made of, of two kinds and of three
HELDOUT_SHARE = 0.15  # of all object combinations; none of them occurs in train/


@dataclass(frozen=True)
class World:
    """What the scenes are made of and how well they can be seen."""

    kinds: tuple[str, ...]  # of objects
    train: int  # scenes to train on, unless the command says how many
    pretrain: int = 2100  # steps (`configs/quickstart.py` has the rest); fine-tuning is the same
    grey: tuple[int, int] | None = None  # least and greatest of the background; None: a pale one
    noise: float = 0.0  # standard deviation of what is added to each value of a pixel, of 255
    hidden: float = 0.0  # share of an object's area that a grey card covers at most


WORLDS = {
    "easy": World(KINDS, train=8000),
    # Chosen so that the pre-trained model picks the true caption of a new scene in 75 to 80 % of
    # the choices (79 measured), and a linear probe on its features overfits: existence 67 % on new
    # scenes, 87 % on training scenes.
    "hard": World(SHAPES, train=1000, grey=(140, 236), noise=8.0, hidden=0.3),
    "many": World(tuple(SHAPE_OF), train=12000, pretrain=5000),
}

# Every caption here is affirmative: the pre-training never sees a word of negation.
FULL = ("{list}", "there is {list}", "the picture shows {list}", "{with}", "{next}", "{comma}")
PARTIAL = (
    *("{a}", "there is {a}", "a picture of {a}"),
    *("{a} is here", "you can see {a}", "the picture shows {a}"),
)
COLOURLESS = 0.5  # share of captions that leave the colours out: kinds must be learned, too


@dataclass(frozen=True)
class Thing:
    """One object: `name` "red star", and its outline in pixels, float64 [N, 2] (x, y).

    A card covers the share `hidden` of its area, on the side that lies in the direction `behind`
    (radians; 0 is right, a quarter turn is down).
    """

    name: str
    outline: np.ndarray
    hidden: float = 0.0
    behind: float = 0.0

    @property
    def colour(self) -> str:
        return self.name.split()[0]

    @property
    def kind(self) -> str:
        return self.name.split()[1]

    @property
    def bbox(self) -> list[float]:
        """COCO order: x, y, width, height, in pixels."""
        low, high = self.outline.min(axis=0), self.outline.max(axis=0)
        return [round(float(v), 2) for v in (*low, *(high - low))]

    @property
    def area(self) -> float:
        """Area in square pixels (shoelace formula)."""
        x, y = self.outline.T
        return round(abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2, 2)


def outline(kind: str) -> np.ndarray:
    """Unit outline of a kind: float64 [N, 2] inside the square -1..1, y downwards.

    Raises KeyError for an unknown kind.
    """

    def arc(start: float, stop: float, points: int = 40, radius: float = 1.0) -> np.ndarray:
        angles = np.linspace(start, stop, points) * math.pi / 180
        return radius * np.stack([np.cos(angles), np.sin(angles)], axis=-1)

    kind = SHAPE_OF[kind]
    if kind == "circle":
        return arc(0, 351)
    if kind == "star":
        return arc(-90, 234, 10) * np.where(np.arange(10) % 2, 0.42, 1.05)[:, None]
    if kind == "heart":
        t = np.linspace(0, 2 * math.pi, 40, endpoint=False)
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return np.stack([16 * np.sin(t) ** 3, -y - 2.5], axis=-1) / 16
    if kind == "moon":
        outer = arc(60, 300)
        inner = arc(270, 90, radius=outer[0, 1]) * (0.62, 1.0) + (outer[0, 0], 0.0)
        return np.concatenate([outer, inner]) + np.array([0.2, 0.0])
    if kind == "hexagon":
        return arc(-90, 210, 6)
    if kind == "leaf":
        t = np.linspace(0, 2, 40, endpoint=False)
        return np.stack([0.6 * np.sin(math.pi * t), np.abs(2 - 2 * t) - 1], axis=-1)
    if kind == "drop":
        round_end = arc(-30, 210, radius=0.65) + np.array([0.0, 0.35])
        return np.concatenate([round_end, [(0.0, -1.0)]])
    return np.array(_CORNERS[kind], np.float64)


_CORNERS = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0, -1), (1, 0.85), (-1, 0.85)],
    "arrow": [
        *[(-1, -0.35), (0.05, -0.35), (0.05, -0.9), (1, 0), (0.05, 0.9), (0.05, 0.35)],
        (-1, 0.35),
    ],
    "house": [
        *[(0, -1), (1, 0), (0.75, 0), (0.75, 0.95), (0.25, 0.95), (0.25, 0.3)],
        *[(-0.25, 0.3), (-0.25, 0.95), (-0.75, 0.95), (-0.75, 0), (-1, 0)],
    ],
    "diamond": [(0, -1), (0.7, 0), (0, 1), (-0.7, 0)],
    "cross": [
        *[(-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3)],
        *[(0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)],
    ],
    "tree": [
        *[(0, -1), (0.55, -0.35), (0.3, -0.35), (0.85, 0.45), (0.15, 0.45), (0.15, 1)],
        *[(-0.15, 1), (-0.15, 0.45), (-0.85, 0.45), (-0.3, -0.35), (-0.55, -0.35)],
    ],
    "boat": [
        *[(0, -1), (0.75, 0.2), (0.05, 0.2), (0.05, 0.4), (1, 0.4), (0.6, 0.95)],
        *[(-0.6, 0.95), (-1, 0.4), (-0.05, 0.4), (-0.05, -1)],
    ],
    "bell": [
        *[(-0.15, -1), (0.15, -1), (0.6, -0.4), (0.65, 0.5), (1, 0.8), (-1, 0.8)],
        *[(-0.65, 0.5), (-0.6, -0.4)],
    ],
    "crown": [
        *[(-1, -0.6), (-0.5, 0), (0, -0.9), (0.5, 0), (1, -0.6), (0.8, 0.8), (-0.8, 0.8)],
    ],
    "flag": [(-0.7, -1), (0.9, -0.55), (-0.5, -0.1), (-0.5, 1), (-0.7, 1)],
    "hammer": [
        *[(-0.8, -1), (0.8, -1), (0.8, -0.4), (0.18, -0.4), (0.18, 1), (-0.18, 1)],
        *[(-0.18, -0.4), (-0.8, -0.4)],
    ],
    "bottle": [
        *[(-0.2, -1), (0.2, -1), (0.2, -0.45), (0.5, -0.1), (0.5, 1), (-0.5, 1)],
        *[(-0.5, -0.1), (-0.2, -0.45)],
    ],
}


def place(
    names: Sequence[str], rng: np.random.Generator, world: World = WORLDS["easy"]
) -> list[Thing]:
    """Put each object into a cell of its own, with some freedom in place, size and tilt."""
    cells = rng.choice(GRID * GRID, len(names), replace=False)
    side = SIZE / GRID
    things = []
    for name, cell in zip(names, cells, strict=True):
        radius = rng.uniform(0.36, 0.46) * side
        slack = side / 2 - radius
        centre = (np.array(divmod(int(cell), GRID)) + 0.5) * side + rng.uniform(-slack, slack, 2)
        tilt = rng.uniform(-0.2, 0.2)
        turn = np.array([[math.cos(tilt), math.sin(tilt)], [-math.sin(tilt), math.cos(tilt)]])
        points = outline(name.split()[1]) @ turn * radius + centre
        card = (rng.uniform(0, world.hidden), rng.uniform(0, 2 * math.pi)) if world.hidden else ()
        things.append(Thing(name, np.clip(points, 0, SIZE), *card))
    return things


def render(
    things: Sequence[Thing], rng: np.random.Generator, world: World = WORLDS["easy"]
) -> Image.Image:
    """Draw the objects on their background: an RGB image of SIZE x SIZE pixels."""
    if world.grey is None:
        back = rng.integers(225, 256, 3)
    else:
        back = rng.integers(*world.grey) + rng.integers(-20, 20, 3)
    big = Image.new("RGB", (SIZE * SUPERSAMPLE,) * 2, tuple(int(v) for v in back))
    draw = ImageDraw.Draw(big)
    for thing in things:
        colour = np.array(COLOURS[thing.colour]) + rng.integers(-14, 15, 3)
        fill = tuple(int(v) for v in np.clip(colour, 0, 255))
        points = thing.outline * SUPERSAMPLE
        draw.polygon([tuple(p) for p in points], fill=fill)
        if thing.kind in OUTLINED:
            middle = (points.min(axis=0) + points.max(axis=0)) / 2
            inner = middle + (points - middle) * HOLE
            draw.polygon([tuple(p) for p in inner], fill=tuple(int(v) for v in back))
        elif thing.kind in HALVED:
            shape = Image.new("1", big.size)
            ImageDraw.Draw(shape).polygon([tuple(p) for p in points], fill=1)
            upper = (0, 0, big.width, round(points[:, 1].min() + np.ptp(points[:, 1]) / 2))
            shape.paste(0, upper)
            big.paste(BLACK, mask=shape)
    if world.hidden:
        grey = int(rng.integers(40, 216))
        for thing in things:
            big.paste((grey,) * 3, mask=card(thing))
    small = big.reduce(SUPERSAMPLE)
    if not world.noise:
        return small
    noisy = np.asarray(small) + rng.normal(0, world.noise, (SIZE, SIZE, 3))
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def card(thing: Thing) -> Image.Image:
    """What covers an object, in mode 1, SUPERSAMPLE times SIZE: all of its box beyond a line.

    The line is drawn where it leaves the share `hidden` of the object's pixels on its far side, so
    that more is never covered; boxes do not overlap, so that no other object is.
    """
    mask = Image.new("1", (SIZE * SUPERSAMPLE,) * 2)
    ImageDraw.Draw(mask).polygon([tuple(p) for p in thing.outline * SUPERSAMPLE], fill=1)
    pixels = np.asarray(mask)
    y, x = np.indices(pixels.shape)
    along = x * math.cos(thing.behind) + y * math.sin(thing.behind)
    left, top, width, height = (SUPERSAMPLE * v for v in thing.bbox)
    box = (x >= left) & (x <= left + width) & (y >= top) & (y <= top + height)
    return Image.fromarray(
        box & (along > np.quantile(along[pixels], 1 - thing.hidden, method="higher"))
    )


def describe(names: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Three true, affirmative captions: of the whole scene, of two objects, of one."""

    def words(names: Sequence[str]) -> list[str]:
        coloured = rng.random() >= COLOURLESS
        return [noun(name if coloured else name.split()[1]).a for name in names]

    captions = []
    for count in (len(names), 2):
        chosen = [names[i] for i in rng.permutation(len(names))[:count]]
        pattern = str(rng.choice(FULL))
        *most, last = said = words(chosen)
        tail = f" and {last}" if count > 2 else ""
        lists = {
            "list": f"{', '.join(most)} and {last}",
            "comma": ", ".join(said),
            "with": f"{said[0]} with {said[1]}{tail}",
            "next": f"{said[0]} standing next to {said[1]}{tail}",
        }
        captions.append(pattern.format_map(lists))
    (one,) = words([names[rng.integers(len(names))]])
    return [*captions, str(rng.choice(PARTIAL)).format(a=one)]


def split_combinations(
    seed: int, kinds: Sequence[str] = KINDS
) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Sets of two and of three coloured objects of different kinds, dealt into two parts.

    All of them, or those of so many sets of kinds as there are at most.
    """
    train, heldout = list[tuple[str, ...]](), list[tuple[str, ...]]()
    for count in (2, 3):
        of_kinds = list(itertools.combinations(kinds, count))
        if len(of_kinds) > MOST_KIND_SETS:
            rng = np.random.default_rng([seed, count, 1])
            taken = rng.choice(len(of_kinds), MOST_KIND_SETS, replace=False)
            of_kinds = [of_kinds[i] for i in sorted(taken)]
        sets = [
            tuple(" ".join(pair) for pair in zip(colours, chosen, strict=True))
            for chosen in of_kinds
            for colours in itertools.product(COLOURS, repeat=count)
        ]
        np.random.default_rng([seed, count]).shuffle(sets)
        cut = round(HELDOUT_SHARE * len(sets))
        heldout += sets[:cut]
        train += sets[cut:]
    return train, heldout


def draw_combinations(
    pool: Sequence[tuple[str, ...]], scenes: int, rng: np.random.Generator
) -> list[tuple[str, ...]]:
    """`scenes` combinations from the pool, pairs and triples equally often."""
    by_size = [[names for names in pool if len(names) == count] for count in (2, 3)]
    groups = (by_size[rng.integers(2)] for _ in range(scenes))
    return [group[rng.integers(len(group))] for group in groups]


def write_split(
    folder: Path,
    combinations: Sequence[tuple[str, ...]],
    seed: Sequence[int],
    world: World = WORLDS["easy"],
) -> None:
    """Write `images/`, `captions.json`, `instances.json` and `annotated.json` of one split.

    Each scene draws from its own random stream, so a scene does not depend on how many others
    there are. Raises OSError where the folder cannot be written.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    ids = {kind: i for i, kind in enumerate(world.kinds, start=1)}
    images, captions, instances = [], [], []
    for image_id, names in enumerate(told(combinations, "scenes"), start=1):
        rng = np.random.default_rng([*seed, image_id])
        things = place(names, rng, world)
        file_name = f"{image_id:06d}.jpg"
        picture = render(things, rng, world)
        picture.save(folder / "images" / file_name, quality=95, subsampling=0)
        images.append({"id": image_id, "file_name": file_name, "width": SIZE, "height": SIZE})
        for caption in describe(names, rng):
            captions.append({"id": len(captions) + 1, "image_id": image_id, "caption": caption})
        for thing in things:
            attributes = {"colour": thing.colour}
            if world.hidden:
                attributes["hidden"] = round(thing.hidden, 3)
            polygon = [round(float(v), 2) for v in thing.outline.reshape(-1)]
            instances.append(
                {
                    "id": len(instances) + 1,
                    "image_id": image_id,
                    "category_id": ids[thing.kind],
                    "bbox": thing.bbox,
                    "area": thing.area,
                    "segmentation": [polygon],
                    "iscrowd": 0,
                    "attributes": attributes,
                }
            )
    kinds = [{"id": i, "name": name, "supercategory": "shape"} for name, i in ids.items()]
    info = {"description": "quickstart world of coloured shapes", "seed": list(seed)}
    known = [row for row in kinds if row["name"] not in UNANNOTATED]
    numbers = {row["id"] for row in known}
    shown = [row for row in instances if row["category_id"] in numbers]
    contents = {
        "captions": {"annotations": captions},
        "instances": {"categories": kinds, "annotations": instances},
        "annotated": {"categories": known, "annotations": shown},
    }
    for name, content in contents.items():
        content = {"info": info, "images": images} | content
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def make_world(
    out: Path, train: int, heldout: int, seed: int, world: World = WORLDS["easy"]
) -> None:
    """Write both splits under `out`. The same arguments give the same bytes."""
    pools = split_combinations(seed, world.kinds)
    splits = zip(("train", "heldout"), pools, (train, heldout), strict=True)
    for number, (name, pool, scenes) in enumerate(splits):
        rng = np.random.default_rng([seed, 10 + number])
        write_split(out / name, draw_combinations(pool, scenes, rng), (seed, number), world)
        say(f"{name}: {scenes} scenes in {out / name}")
    (out / "nouns.txt").write_text("\n".join(world.kinds) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("python -m quickstart.world", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another world")
    parser.add_argument("--world", choices=WORLDS, default="easy", help="how hard it is to see")
    parser.add_argument("--train", type=int, help="scenes to train on (easy: 8000, hard: 1000)")
    parser.add_argument("--heldout", type=int, default=1000, help="scenes to report on")
    args = parser.parse_args(argv)
    world = WORLDS[args.world]
    args.train = world.train if args.train is None else args.train
    if min(args.train, args.heldout) < 1:
        parser.error("--train and --heldout must be 1 or more")
    try:
        make_world(args.out, args.train, args.heldout, args.seed, world)
    except OSError as error:
        sys.exit(f"quickstart.world: {error}")


if __name__ == "__main__":
    main()
