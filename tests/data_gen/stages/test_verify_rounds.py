"""Questions stop when enough is known."""

import asyncio

import pytest

from data_gen.records import NAMED, Candidate, Caption, ImageItem, Verdict
from data_gen.stages.verify import UntilEnough, by_demand

IMAGE = ImageItem("1", "1.jpg", tuple(Caption(str(i), "a man") for i in range(5)))


class Told:
    """A verifier that counts; names in capitals are absent."""

    def __init__(self):
        self.waves = []

    async def verify(self, image, photo, candidates):
        self.waves.append([c.object for c in candidates])
        verdict = {True: "absent", False: "present"}
        return [Verdict(c.object, verdict[c.object.isupper()], 0, 1, "t") for c in candidates]


def ask(names: str, most: int = 3, named: str = ""):
    told = Told()
    candidates = [Candidate(name, "llm") for name in names]
    candidates += [Candidate(name, NAMED, reject_reason="mentioned") for name in named]
    found = asyncio.run(UntilEnough(told, 2, most).verify(IMAGE, None, candidates))
    assert [v.object for v in found] == [name for wave in told.waves for name in wave]
    return ["".join(wave) for wave in told.waves]


def test_five_captions_need_two_objects_that_serve_three_each():
    assert ask("ABcdef") == ["AB"]
    assert ask("aBcDef") == ["aB", "cD"]
    assert ask("aBcdef") == ["aB", "cd", "ef"]
    assert ask("ABcdef", most=1) == ["AB", "cd", "ef"]
    assert ask("abc") == ["ab", "c"]


def test_what_captions_name_is_asked_about_first_and_counts_for_no_absence():
    assert ask("ABc", named="wx") == ["wx", "AB"]
    assert ask("AbC", named="WX") == ["WX", "Ab", "C"]


@pytest.mark.parametrize(
    ("present", "order"),
    [
        ([], "dog kite lamp rug"),
        (["car"], "dog kite lamp rug"),
        (["wall"], "lamp rug dog kite"),
        (["car", "wall"], "dog kite lamp rug"),  # captions leave both unsaid: the surer kind
    ],
)
def test_absent_objects_of_the_kind_of_what_is_there_come_first(present, order):
    candidates = [Candidate(name, "llm") for name in ("lamp", "dog", "rug", "kite")]
    found = by_demand(candidates, present, ["a man", "a boy"])
    assert [c.object for c in found] == order.split()


def test_kinds_take_turns_as_captions_leave_them_unsaid():
    candidates = [Candidate(name, "llm") for name in ("lamp", "rug", "vase", "dog", "kite", "bus")]
    found = by_demand(candidates, ["car", "wall"], ["a car", "a wall", "a red wall"])
    assert [c.object for c in found] == ["vase", "lamp", "dog", "kite", "rug", "bus"]
