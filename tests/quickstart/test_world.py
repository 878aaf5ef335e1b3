import hashlib
import itertools
import json
import math

import numpy as np
import pytest
from PIL import Image, ImageDraw

from negclip_jax.language.mentions import mentioned
from negclip_jax.language.negation import find_cues
from negclip_jax.language.text import tokenize
from quickstart.world import (
    COLOURS,
    KINDS,
    MOST_KIND_SETS,
    SIZE,
    SUPERSAMPLE,
    UNANNOTATED,
    WORLDS,
    Thing,
    card,
    draw_combinations,
    main,
    make_world,
    outline,
    place,
    render,
    split_combinations,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("world")
    make_world(out, train=12, heldout=6, seed=3)
    return out


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_same_seed_same_bytes_other_seed_other_scenes(world, tmp_path):
    make_world(tmp_path / "same", train=12, heldout=6, seed=3)
    make_world(tmp_path / "other", train=12, heldout=6, seed=4)
    assert files(tmp_path / "same") == files(world)
    assert files(tmp_path / "other") != files(world)


def test_a_scene_does_not_depend_on_the_number_of_scenes(world, tmp_path):
    make_world(tmp_path, train=5, heldout=2, seed=3)
    for name in ("train/images/000004.jpg", "heldout/images/000002.jpg"):
        assert (tmp_path / name).read_bytes() == (world / name).read_bytes()


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_captions_are_true_and_affirmative(world, split):
    captions, instances = (
        json.loads((world / split / f"{name}.json").read_text())
        for name in ("captions", "instances")
    )
    kinds = {c["id"]: c["name"] for c in instances["categories"]}
    objects = {image["id"]: {} for image in instances["images"]}
    for row in instances["annotations"]:
        objects[row["image_id"]][kinds[row["category_id"]]] = row["attributes"]["colour"]
    assert {2, 3} >= {len(things) for things in objects.values()}
    for row in captions["annotations"]:
        inside = objects[row["image_id"]]
        words = row["caption"].replace(",", "").split()
        assert not find_cues(tokenize(row["caption"]))
        named = {kind for kind in KINDS if mentioned(kind, [row["caption"]])}
        assert named and named <= set(inside)
        for before, word in itertools.pairwise(words):
            if word in KINDS and before in COLOURS:
                assert inside[word] == before
    assert len(captions["annotations"]) == 3 * len(objects)


def test_boxes_hold_the_objects_colour(world):
    content = json.loads((world / "train" / "instances.json").read_text())
    files = {image["id"]: image["file_name"] for image in content["images"]}
    for row in content["annotations"]:
        pixels = np.asarray(Image.open(world / "train" / "images" / files[row["image_id"]]), float)
        assert pixels.shape == (SIZE, SIZE, 3)
        x, y, width, height = (round(v) for v in row["bbox"])
        crop = pixels[y : y + height, x : x + width].reshape(-1, 3)
        far = np.abs(crop - COLOURS[row["attributes"]["colour"]]).max(axis=1)
        assert 0 < row["area"] <= row["bbox"][2] * row["bbox"][3]
        # Inside is the object's colour, outside the pale background.
        assert 0.5 * row["area"] < (far < 60).sum() < 1.5 * row["area"]


def test_no_combination_is_in_both_splits():
    train, heldout = (set(map(frozenset, part)) for part in split_combinations(0))
    assert not train & heldout
    assert len(heldout) > 1000
    assert all(2 <= len(names) <= 3 for names in train | heldout)


def test_pairs_and_triples_are_equally_often():
    train, _ = split_combinations(0)
    drawn = draw_combinations(train, 400, np.random.default_rng(0))
    assert set(drawn) <= set(train)
    assert 0.4 < np.mean([len(names) == 2 for names in drawn]) < 0.6


def test_objects_do_not_touch():
    names = ["red star", "blue heart", "green house"]
    for seed in range(30):
        boxes = [thing.bbox for thing in place(names, np.random.default_rng(seed))]
        for i, a in enumerate(boxes):
            assert min(a[0], a[1]) >= 0
            assert max(a[0] + a[2], a[1] + a[3]) <= SIZE
            for b in boxes[:i]:
                apart = [a[k] + a[k + 2] <= b[k] or b[k] + b[k + 2] <= a[k] for k in (0, 1)]
                assert any(apart)


def test_area_and_box_of_a_known_shape():
    square = Thing("red square", outline("square") / 0.85 * 5 + 20)
    assert square.area == 100
    assert square.bbox == [15, 15, 10, 10]


def test_the_easy_world_stays_as_it_is(world):
    """README's rows are about these scenes."""
    names = [f"{s}/{n}.json" for s in ("train", "heldout") for n in ("captions", "instances")]
    content = b"".join((world / name).read_bytes() for name in names)
    assert hashlib.sha256(content).hexdigest()[:16] == "e104b02c83e2bd9c"


@pytest.fixture(scope="module")
def hard(tmp_path_factory):
    out = tmp_path_factory.mktemp("hard")
    main([f"--out={out}", "--world=hard", "--train=60", "--heldout=6", "--seed=3"])
    return out


def test_the_hard_world_is_the_same_each_time(hard, tmp_path):
    make_world(tmp_path, train=60, heldout=6, seed=3, world=WORLDS["hard"])
    assert files(tmp_path) == files(hard)


def test_the_hard_world_has_many_kinds_and_few_photos(hard):
    content = json.loads((hard / "train" / "instances.json").read_text())
    assert len(content["categories"]) == len(set(WORLDS["hard"].kinds)) == 20
    assert {row["category_id"] for row in content["annotations"]} == set(range(1, 21))
    assert WORLDS["hard"].train < WORLDS["easy"].train / 3


@pytest.mark.parametrize("kind", WORLDS["hard"].kinds)
def test_every_kind_has_an_outline_of_its_own(kind):
    points = outline(kind)
    assert np.abs(points).max() < 1.3
    assert Thing(f"red {kind}", points * 10 + 20).area > 60
    assert not any(np.array_equal(points, outline(k)) for k in WORLDS["hard"].kinds if k != kind)


def test_the_world_of_many_kinds_draws_each_in_its_own_way():
    many = WORLDS["many"]
    assert len(set(many.kinds)) == 60 and set(UNANNOTATED) < set(many.kinds)
    assert len(UNANNOTATED) == 12 and set(UNANNOTATED) & set(KINDS) == {"circle", "moon"}
    drawn = {}
    for kind in many.kinds:
        thing = Thing(f"red {kind}", outline(kind) * 7 + 24)
        drawn[kind] = np.asarray(render([thing], np.random.default_rng(0), many), int)
    for (one, a), (other, b) in itertools.combinations(drawn.items(), 2):
        assert np.abs(a - b).max() > 60, (one, other)
    (back,) = {tuple(picture[0, 0]) for picture in drawn.values()}
    assert tuple(drawn["ring"][24, 24]) == back != tuple(drawn["circle"][24, 24])
    assert (drawn["button"][28, 24] < 40).all() and drawn["button"][20, 24, 0] > 200


@pytest.mark.slow
def test_scenes_of_many_kinds_are_made_of_some_sets_of_kinds():
    train, heldout = split_combinations(0, WORLDS["many"].kinds)
    kinds = {frozenset(name.split()[1] for name in names) for names in train + heldout}
    assert len(kinds) == 2 * MOST_KIND_SETS - (MOST_KIND_SETS - math.comb(60, 2))
    assert not set(map(frozenset, train)) & set(map(frozenset, heldout))
    assert {kind for group in kinds for kind in group} == set(WORLDS["many"].kinds)


def covered(thing: Thing, cards: list[Thing]) -> float:
    """Share of an object's pixels that cards cover."""
    own = Image.new("1", (SIZE * SUPERSAMPLE,) * 2)
    ImageDraw.Draw(own).polygon([tuple(p) for p in thing.outline * SUPERSAMPLE], fill=1)
    over = np.any([np.asarray(card(each)) for each in cards], axis=0)
    return float(over[np.asarray(own)].mean())


def test_a_card_covers_no_more_of_its_object_than_stated_and_nothing_of_others():
    names = [f"red {kind}" for kind in WORLDS["hard"].kinds]
    shares = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        drawn = [names[i] for i in rng.choice(len(names), 3, replace=False)]
        things = place(drawn, rng, WORLDS["hard"])
        for thing in things:
            assert 0 <= thing.hidden <= WORLDS["hard"].hidden < 0.5
            assert thing.hidden - 0.05 < covered(thing, things) <= thing.hidden + 1e-9
            assert covered(thing, [t for t in things if t is not thing]) == 0
            shares.append(thing.hidden)
    assert min(shares) < 0.05 and max(shares) > 0.8 * WORLDS["hard"].hidden


def test_instances_say_how_much_is_hidden_in_the_hard_world_only(hard, world):
    hidden = [
        [row["attributes"].get("hidden") for row in content["annotations"]]
        for content in (json.loads((w / "train/instances.json").read_text()) for w in (hard, world))
    ]
    assert all(0 <= share <= WORLDS["hard"].hidden for share in hidden[0])
    assert set(hidden[1]) == {None}


def test_noise_is_what_the_hard_world_says(hard):
    """Of the background, in which nothing else varies."""
    pixels = np.asarray(Image.open(hard / "train" / "images" / "000001.jpg"), float)
    cells = pixels.reshape(3, 16, 3, 16, 3).std(axis=(1, 3)).min(axis=(0, 1))
    assert WORLDS["hard"].noise * 0.6 < cells.mean() < WORLDS["hard"].noise * 1.3
