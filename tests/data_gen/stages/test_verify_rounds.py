"""Questions stop when enough is known."""

import asyncio

from data_gen.records import NAMED, Candidate, Caption, ImageItem, Verdict
from data_gen.stages.verify import UntilEnough

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
    found = asyncio.run(UntilEnough(told, 2, most, 2).verify(IMAGE, None, candidates))
    assert [v.object for v in found] == [name for wave in told.waves for name in wave]
    return ["".join(wave) for wave in told.waves]


def test_five_captions_need_two_objects_that_serve_three_each():
    assert ask("ABcdef") == ["AB"]
    assert ask("aBcDef") == ["aB", "cD"]
    assert ask("aBcdef") == ["aB", "cd", "ef"]
    assert ask("ABcdef", most=1) == ["AB", "cd", "ef"]
    assert ask("abc") == ["ab", "c"]


def test_what_captions_name_is_asked_about_for_the_present_things_that_proposals_lack():
    assert ask("ABc", named="wx") == ["AB", "wx"]
    assert ask("AbC", named="wx") == ["Ab", "C", "w"]  # one proposal was there
    assert ask("Abcd", named="wx") == ["Ab", "cd"]
