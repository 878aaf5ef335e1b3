import pytest

from negclip_jax.language.nouns import SYNONYMS, article, mention, noun, plural, singular


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dog", "a"),
        ("apple", "an"),
        ("orange", "an"),
        ("umbrella", "an"),
        ("unicorn", "a"),
        ("uninflated ball", "an"),
        ("hour glass", "an"),
        ("one-way sign", "a"),
        ("European bison", "a"),
        ("hot dog", "a"),
    ],
)
def test_article_follows_the_sound(name, expected):
    assert article(name) == expected


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("dog", "dogs"),
        ("wine glass", "wine glasses"),
        ("bench", "benches"),
        ("knife", "knives"),
        ("mouse", "mice"),
        ("sheep", "sheep"),
        ("person", "people"),
        ("red cross", "red crosses"),
        ("berry", "berries"),
        ("key", "keys"),
        ("toothbrush", "toothbrushes"),
    ],
)
def test_plural(one, many):
    assert plural(one) == many


def test_singular_undoes_plural():
    names = """dog bus bench knife potato tomato cookie shoe vase house horse glove leaf fireman
    woman sheep dress box dish tie person mouse goose loaf movie lens zebra sofa pizza"""
    assert [n for n in (*names.split(), *SYNONYMS) if singular(plural(n)) != n] == []


@pytest.mark.parametrize("name", ["tennis", "grass", "sunglasses", "canvas", "snow", "gas"])
def test_singular_leaves_singulars(name):
    assert singular(name) == name


def test_forms_of_mass_and_plural_only_nouns():
    assert noun("broccoli").a == "any broccoli"
    assert noun("broccoli").slots["are"] == "is"
    assert noun("scissors").slots["isnt"] == "aren't"
    assert noun("scissors").some == "scissors"
    assert noun("dog").some == "a dog"


def test_empty_name_is_refused():
    with pytest.raises(ValueError, match="empty"):
        noun("  ")


@pytest.mark.parametrize(
    ("name", "caption", "found"),
    [
        ("dog", "Two dogs play", True),
        ("dog", "a dogged runner", False),
        ("person", "A WOMAN on a horse", True),
        ("person", "three children", True),
        ("tv", "an old television", True),
        ("couch", "two sofas", True),
        ("knife", "knives on a board", True),
        ("cat", "a category", False),
        ("dog", "the dog's bowl", True),
    ],
)
def test_mention_knows_plurals_and_synonyms(name, caption, found):
    assert bool(mention(name).search(caption)) == found
