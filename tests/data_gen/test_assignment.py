"""Which caption gets which object."""

import collections

from data_gen.pipeline import assign
from data_gen.records import Candidate, Caption, ImageItem, Verdict

TEXTS = ["a man", "a boy on a road", "a person", "someone with no hat", "a guy"]
IMAGE = ImageItem("1", "1.jpg", tuple(Caption(str(i), text) for i, text in enumerate(TEXTS)))
NAMES = ["dog", "cat", "bus", "kite", "vase", "oven", "bear", "tie"]


def make(
    *absent: str, most=3, skip=True, seed=0, caption_id=None, others=(), image=IMAGE, there=()
):
    names = [*absent, *others]
    candidates = [Candidate(name, "llm", caption_id=caption_id) for name in names]
    verdicts = [Verdict(n, "absent" if n in absent else "present", 0, 1, "text") for n in names]
    return assign(
        image, candidates, verdicts, there, captions_per_object=most, skip_negated=skip, seed=seed
    )


def test_each_caption_has_one_object_and_objects_take_turns():
    found = make("dog", "cat", others=["bus"])
    assert [a.caption.id for a in found] == ["0", "1", "2", "4"]  # "no hat" negates already
    assert collections.Counter(a.candidate.object for a in found) == {"dog": 2, "cat": 2}


def test_an_object_serves_so_many_captions():
    assert len(make("dog", most=3)) == 3
    assert len(make("dog", most=1)) == 1
    assert len(make("dog", "cat", most=9, skip=False)) == 5


def test_nothing_absent_nothing_assigned():
    assert make(others=["bus"]) == []


def test_seeds_draw_otherwise_and_the_same_seed_the_same():
    def draws(seed):
        return [a.candidate.object for a in make("dog", "cat", "bus", "kite", seed=seed)]

    assert draws(1) == draws(1)
    assert len({tuple(draws(seed)) for seed in range(8)}) > 2


def test_an_object_for_one_caption_goes_to_that_caption():
    (only,) = make("dog", caption_id="2")
    assert only.caption.id == "2"


def test_no_object_is_the_last_choice_in_every_image():
    """Eight objects for four captions: each has its turn in some of the images."""
    captions = tuple(Caption(str(i), text) for i, text in enumerate(TEXTS))
    images = [ImageItem(str(i), f"{i}.jpg", captions) for i in range(30)]
    used = collections.Counter(a.candidate.object for i in images for a in make(*NAMES, image=i))
    assert used.keys() == set(NAMES) and min(used.values()) > 5


def test_an_absent_object_is_of_the_kind_of_what_its_caption_leaves_unsaid():
    found = make("dog", "lamp", there=["bus", "road"], most=5)
    # All captions but one leave the bus unsaid; of two kinds COCO's is the surer.
    assert {a.caption.id: a.candidate.object for a in found} == dict.fromkeys("0124", "dog")
    found = make("dog", "lamp", there=["road"], most=5)
    assert {a.caption.id: a.candidate.object for a in found} == dict.fromkeys("024", "lamp") | {
        "1": "lamp"  # it names the road: "a road, but no lamp" can be said
    }
    assert {a.caption.id: a.there for a in found if a.there} == {"1": "road"}
    assert {a.candidate.object for a in make("dog", there=["road"])} == {"dog"}
