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
    return asyncio.run(proposer.propose(IMAGE))


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
