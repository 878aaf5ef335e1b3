"""Stems for comparison, and what counts as content."""

import pytest

from negclip_jax.language.lemmas import content, related, stem, words


@pytest.mark.parametrize(
    "forms", ["ride rides riding rode", "run runs running ran", "sit sits sitting sat", "ski skis",
              "park parked parking", "person people", "lie lying laying"]
)  # fmt: skip
def test_forms_share_a_stem(forms):
    assert len({stem(form) for form in forms.split()}) == 1


def test_content_leaves_out_grammar_and_frame():
    assert content("A photo of two dogs that aren't visible on the street") == ["dogs", "street"]
    assert words("It's a black-and-white dog") == ["it's", "a", "black-and-white", "dog"]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("sofa", "couches", True),
        ("skier", "skiing", True),
        ("man", "person", True),
        ("car", "carpet", False),
        ("dog", "street", False),
        ("outdoor", "outdoors", True),
    ],
)
def test_related(first, second, expected):
    assert related(first, second) == related(second, first) == expected
