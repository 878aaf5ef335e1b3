"""One error for all that is wrong with a file, in few words however much it is."""

import pytest

from negclip_jax.common.errors import InputError
from negclip_jax.common.problems import Problems, first


class OurError(InputError):
    pass


def test_the_first_places_are_named_and_the_rest_counted():
    problems = Problems(shown=2)
    problems.raise_if_any("a.json", OurError, "advice")  # nothing is wrong yet
    for number in range(5):
        problems.note("not an object", f"line {number}")
    problems.note("an id occurs twice", "x" * 1000)
    assert len(problems) == 6
    with pytest.raises(OurError) as caught:
        problems.raise_if_any("a.json", OurError, "Correct it.")
    assert str(caught.value) == (
        "a.json has 6 problems: not an object (5): line 0, line 1 and 3 more; "
        f"an id occurs twice (1): {'x' * 300}. Correct it."
    )


def test_one_problem_is_one():
    problems = Problems()
    problems.note("no id", "images[3]")
    with pytest.raises(OurError, match=r"^f has 1 problem: no id \(1\): images\[3\]\. Do\.$"):
        problems.raise_if_any("f", OurError, "Do.")


def test_a_list_of_names():
    assert first([]) == "" and first(["a", "b"]) == "a, b"
    assert first("abcd", 3) == "a, b, c and 1 more"
    assert first(["a", "b"], 2, 10) == "a, b and 8 more"
