"""Sets of phrases: which are negated, which photos are missing, what is said about it."""

import pytest

from evals.images import DataRoots, FileMissing
from evals.reading import AVAILABLE
from evals.segmentation.sources import Phrase, load_sets, phrase_set
from negclip_jax.common.errors import InputError

SHAPE = ([[0, 0, 4, 0, 4, 4]],)


@pytest.fixture
def roots(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    return DataRoots((tmp_path,))


def described(roots, name: str, images: list[str]):
    phrases = [Phrase(f"{i}", image, f"thing {i}", SHAPE) for i, image in enumerate(images)]
    about = {"title": name.title(), "source": "nobody"}
    return [phrase_set(roots, name, f"{name}.json", phrases, **about)]


@pytest.fixture
def sources():
    def absent(roots, split):
        raise FileMissing("absent.json is not below the folder")

    return {
        "whole": lambda roots, split: described(roots, "whole", ["a.png", "b.png", "a.png"]),
        "partial": lambda roots, split: described(roots, "partial", ["a.png", "c.png", "d.png"]),
        "absent": absent,
    }


@pytest.mark.parametrize(
    ("text", "negated"),
    [
        ("a man without a hat", True),
        ("the dog that isn't black", True),
        ("batter no. 10", False),
        ("a nosy knot of people", False),
    ],
)
def test_which_phrases_are_negated(text, negated):
    assert Phrase("1", "a.png", text, SHAPE).negated is negated


def test_phrases_of_one_photo_stand_together(roots, sources):
    (found,) = load_sets(["whole"], sources, roots, split=None, allow_subset=False)
    assert [p.item for p in found.phrases] == ["0", "2", "1"]
    assert (found.total, found.missing) == (3, [])


def test_missing_photos_have_to_be_allowed(roots, sources):
    with pytest.raises(InputError, match=r"partial: 2 photos .* 2 of 3 phrases .*c\.png, d\.png"):
        load_sets(["partial"], sources, roots, split=None, allow_subset=False)
    (found,) = load_sets(["partial"], sources, roots, split=None, allow_subset=True)
    assert [p.image for p in found.phrases] == ["a.png"] and found.total == 3


def test_what_is_available_is_scored_and_the_rest_is_told(roots, sources, caplog):
    caplog.set_level("INFO")
    found = load_sets([AVAILABLE], sources, roots, split=None, allow_subset=False)
    assert [each.name for each in found] == ["whole"]
    assert "absent" in caplog.text and "partial: 2 photos" in caplog.text
    both = load_sets([AVAILABLE], sources, roots, split=None, allow_subset=True)
    assert [each.name for each in both] == ["whole", "partial"]


def test_messages_for_what_cannot_be(roots, sources):
    with pytest.raises(InputError, match="--phrases=refclef is not one of whole, partial, absent"):
        load_sets(["refclef"], sources, roots, split=None, allow_subset=False)
    with pytest.raises(InputError, match=r"absent: absent\.json is not below"):
        load_sets(["absent", "whole"], sources, roots, split=None, allow_subset=False)
    with pytest.raises(InputError, match="no phrases with masks and photos below"):
        only = {"absent": sources["absent"]}
        load_sets([AVAILABLE], only, roots, split=None, allow_subset=True)
