"""Candidates: from a model's lists, at random, from files; and the filter that costs nothing."""

import asyncio
import json

import pytest
from scripted_engine import ScriptedEngine

from data_gen.annotations import Cooccurrence
from data_gen.engines.probe import Capabilities
from data_gen.prompts import load_prompts
from data_gen.records import Candidate, Caption, ImageItem
from data_gen.stages.propose import (
    CaptionProposer,
    FileProposer,
    LLMProposer,
    OthersProposer,
    RandomProposer,
    filtered,
)
from negclip_jax.common.chat.messages import ChatResult
from negclip_jax.common.errors import InputError

PROMPTS = load_prompts()
TEXTS = ("A man rides a bike.", "Someone on a road")
IMAGE = ImageItem("1", "1.jpg", tuple(Caption(str(i), text) for i, text in enumerate(TEXTS)))


def propose(proposer):
    (found,) = asyncio.run(proposer.propose([IMAGE]))
    return found


def llm(*answers, schema=False):
    said = iter(answers)
    engine = ScriptedEngine(lambda request: next(said))
    can = Capabilities("m", schema=schema)
    return LLMProposer(engine, can, PROMPTS["propose"], 3, 0.7, 0.9), engine


def test_one_request_for_all_captions():
    proposer, engine = llm('["dog", "car", "hat"]')
    assert [c.object for c in propose(proposer)] == ["dog", "car", "hat"]
    (request,) = engine.requests
    assert all(json.dumps(text) in request.messages[-1][1] for text in TEXTS)
    assert "Name 3 objects" in request.messages[-1][1] and request.schema is None


def test_a_schema_where_the_server_keeps_to_one():
    proposer, engine = llm('{"items": ["dog"]}', schema=True)
    assert [c.object for c in propose(proposer)] == ["dog"]
    assert engine.requests[0].schema["required"] == ["items"]


def test_what_is_no_list_is_asked_for_once_more():
    proposer, engine = llm("I would rather not say.", '["dog"]')
    assert [c.object for c in propose(proposer)] == ["dog"]
    assert engine.requests[0].key != engine.requests[1].key
    proposer, _ = llm("I would rather not say.", "No.way at all!")
    assert [c.reject_reason for c in propose(proposer)] == ["unparsable"]


def test_an_error_is_a_reason():
    proposer, engine = llm(ChatResult(error="refused", permanent=True))
    assert [c.reject_reason for c in propose(proposer)] == ["refused"]
    assert len(engine.requests) == 1


def test_the_published_way():
    engine = ScriptedEngine(lambda r: "Helmet." if "bike" in r.messages[-1][1] else "")
    found = propose(
        CaptionProposer(engine, Capabilities("m"), PROMPTS["propose_caption"], 0.6, 0.9)
    )
    assert [(c.caption_id, c.object, c.reject_reason) for c in found] == [
        ("0", "Helmet", None),
        ("1", "", "unparsable"),
    ]
    (found, _) = propose(
        CaptionProposer(
            ScriptedEngine(lambda r: "<i>Helmet</i>"),
            Capabilities("m"),
            PROMPTS["propose_caption"],
            0.6,
            0.9,
        )
    )
    assert found.reject_reason == "markup"


def test_random_objects_depend_on_the_seed_alone():
    names = ["a", "b", "c", "d", "e"]

    def draw(seed):
        return [c.object for c in propose(RandomProposer(names, 3, seed, per_caption=False))]

    assert draw(1) == draw(1) and len(set(draw(1))) == 3
    assert len({tuple(draw(seed)) for seed in range(6)}) > 1
    each = propose(RandomProposer(names, 3, 0, per_caption=True))
    assert [c.caption_id for c in each] == ["0", "1"]


def test_a_file_of_objects(tmp_path):
    path = tmp_path / "o.json"
    path.write_text('{"1": ["dog", "sofa"], "2": []}')
    assert [c.object for c in propose(FileProposer(str(path)))] == ["dog", "sofa"]
    for text in ("[]", '{"1": "dog"}', "{"):
        path.write_text(text)
        with pytest.raises(InputError):
            FileProposer(str(path))


def test_the_filter_gives_reasons():
    names = ["Dogs", "dog", "bicycle", "cars", "sky", "a very long sentence", "sofa"]
    found = filtered([Candidate(name, "llm") for name in names], TEXTS)
    assert [(c.object, c.reject_reason) for c in found] == [
        ("dog", None),
        ("dog", "duplicate"),
        ("bicycle", "mentioned"),  # "bike"
        ("car", None),
        ("sky", "unusable"),
        ("a very long sentence", "unusable"),
        ("couch", None),
    ]


def test_objects_that_other_captions_name_take_turns_with_the_llm_s():
    proposer, _ = llm('["lighthouse", "lamp", "rug"]')
    named = [frozenset(["person", "street", "rug", "lamp", "tree"])] * 20
    statistics = Cooccurrence(named)
    told = [(["rug"], False), (["tree"], True)]
    statistics.fit([(frozenset(["person"]), (), told)] * 50)
    found = propose(OthersProposer(proposer, statistics, 1, 0))
    assert [(c.object, c.source) for c in found] == [
        ("rug", "cooccurrence"),
        ("tree", "cooccurrence"),
        ("lamp", "llm"),
        ("rug", "llm"),  # `filtered` drops it
        ("lighthouse", "llm"),  # that no caption names comes last
    ]


def test_what_captions_leave_unsaid_is_asked_about_first():
    proposer, _ = llm('["lighthouse"]')
    named = [frozenset(["car", "street", "traffic light", "oven", "kite"])] * 20
    found = propose(OthersProposer(proposer, Cooccurrence(named), 0, 0))  # captions of a street
    assert {c.object for c in found[:2]} == {"car", "traffic light"}
    assert [c.object for c in found[2:]] == ["lighthouse"]


# Several photos in one request.
OTHERS = [
    ImageItem(str(i), f"{i}.jpg", (Caption(f"{i}a", first), Caption(f"{i}b", "Something else")))
    for i, first in enumerate(
        ['A "red" bus, in a street.', "Two cups on a table", "A cat sleeps", "A kite in the sky"], 2
    )
]
IMAGES = [IMAGE, *OTHERS]
NAMES = {"1": "hat", "2": "tree", "3": "spoon", "4": "lamp", "5": "cloud"}  # of each photo


def said_of(images, names=None):
    """A right answer to a request about these photos; `names`: by image id."""
    names = names or NAMES
    return {
        str(i): {"caption": image.texts[0], "objects": [names[image.image_id], "box"]}
        for i, image in enumerate(images, 1)
    }


def together(answer, images=IMAGES, **can):
    """Candidates of each image, and the requests; `answer` is asked for what is joint.

    Alone each photo gets its own name and "alone".
    """

    def reply(request):
        text = request.messages[-1][1]
        if text.startswith("Captions of photo 1:"):
            return answer(request)
        (image,) = (i for i in images if json.dumps(i.texts[0]) in text)
        return json.dumps([NAMES[image.image_id], "alone"])

    engine = ScriptedEngine(reply)
    can, many = Capabilities("m", **can), PROMPTS["propose_many"]
    proposer = LLMProposer(engine, can, PROMPTS["propose"], 3, 0.7, 0.9, many)
    found = asyncio.run(proposer.propose(images))
    return [[c.object for c in candidates] for candidates in found], engine.requests, found


def test_photos_share_a_request():
    found, (request,), candidates = together(lambda r: json.dumps(said_of(IMAGES)), schema=True)
    assert found == [[name, "box"] for name in NAMES.values()]
    assert {(c.key, c.prompt_id) for own in candidates for c in own} == {
        (request.key, PROMPTS["propose_many"].id)
    }
    text = request.messages[-1][1]
    for i, image in enumerate(IMAGES, 1):
        own = "\n".join(json.dumps(t) for t in image.texts)
        assert f"Captions of photo {i}:\n{own}\n" in text
    assert "name 3 objects" in text and (request.temperature, request.top_p) == (0.7, 0.9)
    assert request.schema["required"] == ["1", "2", "3", "4", "5"]
    assert request.schema["properties"]["5"]["required"] == ["caption", "objects"]
    # The words of a caption count, not the marks between them.
    loose = said_of(IMAGES)
    loose["2"]["caption"] = "a red bus in a street"
    assert together(lambda r: json.dumps(loose))[0] == found


@pytest.mark.parametrize("turn", range(1, 5))
def test_no_photo_gets_the_answer_of_another(turn):
    """Units under each other's numbers, captions and all; and lists alone that changed places."""
    right = said_of(IMAGES)
    units = list(right.values())
    moved = dict(zip(right, units[turn:] + units[:turn], strict=True))
    found, requests, _ = together(lambda r: json.dumps(moved))
    assert found == [[name, "alone"] for name in NAMES.values()]
    assert len(requests) == 1 + len(IMAGES)
    swapped = {**right, "2": right["5"], "5": right["2"]}
    found, requests, _ = together(lambda r: json.dumps(swapped))
    assert [own[1] for own in found] == ["box", "alone", "box", "box", "alone"]
    assert [own[0] for own in found] == list(NAMES.values()) and len(requests) == 3


@pytest.mark.parametrize(
    "broken",
    [
        None,
        {},
        [],
        "tree",
        {"caption": OTHERS[0].texts[0]},
        {"objects": ["tree"]},
        {"caption": OTHERS[0].texts[0], "objects": []},
        {"caption": OTHERS[0].texts[0], "objects": "tree"},
        {"caption": OTHERS[0].texts[0], "objects": [3]},
        {"caption": 7, "objects": ["x"]},
        {"caption": "", "objects": ["x"]},
        {"caption": "A red bus", "objects": ["x"]},
    ],
)
def test_a_photo_that_the_answer_lacks_is_asked_alone(broken):
    content = said_of(IMAGES) | {"2": broken, "6": {"caption": "?", "objects": ["x"]}}
    content = {key: unit for key, unit in content.items() if unit is not None}
    found, requests, _ = together(lambda r: json.dumps(content))
    assert found == [["hat", "box"], ["tree", "alone"], ["spoon", "box"], ["lamp", "box"],
                     ["cloud", "box"]]  # fmt: skip
    assert len(requests) == 2 and json.dumps(OTHERS[0].texts[0]) in requests[1].messages[-1][1]


@pytest.mark.parametrize(
    "answer", ["", "I'd rather not.", '["hat", "tree"]', ChatResult(error="refused"), "{" * 9]
)
def test_an_answer_that_is_none_costs_a_request_a_photo(answer):
    found, requests, _ = together(lambda r: answer)
    assert found == [[name, "alone"] for name in NAMES.values()] and len(requests) == 6


def test_photos_that_an_answer_could_not_tell_apart_are_asked_alone():
    twins = [IMAGE, ImageItem("2", "2.jpg", (Caption("x", "a man RIDES a bike"),)), *OTHERS[1:]]
    twins.append(ImageItem("6", "6.jpg", (Caption("y", "!!"),)))
    told = OTHERS[1:]
    engine = ScriptedEngine(
        lambda r: json.dumps(said_of(told) if "photo 1:" in r.messages[-1][1] else ["alone"])
    )
    proposer = LLMProposer(
        engine, Capabilities("m"), PROMPTS["propose"], 3, 0.7, 0.9, PROMPTS["propose_many"]
    )
    found = asyncio.run(proposer.propose(twins))
    objects = [own[0].object for own in found]
    assert objects == ["alone", "alone", *list(NAMES.values())[2:], "alone"]
    assert len(engine.requests) == 4 and "photo 4:" not in engine.requests[0].messages[-1][1]


def test_no_request_is_longer_than_servers_take():
    """Long captions, and a server with little room: fewer photos a request, one alone at last."""

    def answer(request):
        text = request.messages[-1][1]
        asked = [image for image in IMAGES if json.dumps(image.texts[0]) in text]
        return json.dumps(said_of(asked))

    def size(request):
        return sum(len(text) for _, text in request.messages) / 4 + request.max_tokens

    for context, number in ((0, 1), (4096, 1), (700, 2), (600, 3), (500, 5)):
        found, requests, _ = together(answer, context=context)
        assert [own[0] for own in found] == list(NAMES.values())
        assert len(requests) == number
        assert all(size(r) <= (context or 4096) for r in requests)
    long = [
        ImageItem(i.image_id, i.file_name, (*i.captions, Caption("l", "a long caption " * 250)))
        for i in IMAGES
    ]
    found, requests, _ = together(answer, long)
    assert [own[0] for own in found] == list(NAMES.values())
    assert [size(r) < 4096 for r in requests] == [True] * 3  # two, two and one


def test_photos_alone_are_asked_as_ever():
    """The requests of runs that began before photos shared them."""
    for images in ([IMAGE], IMAGES):
        engine = ScriptedEngine(lambda r: '["dog"]')
        asyncio.run(
            LLMProposer(engine, Capabilities("m"), PROMPTS["propose"], 3, 0.7, 0.9).propose(images)
        )
        assert len(engine.requests) == len(images)
        assert engine.requests[0].key == "e3c2a35ef10279c7393534a58e5a43bf"
