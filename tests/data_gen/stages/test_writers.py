"""Drafts by an LLM, by the grammar, by both; and the second try."""

import asyncio
import json
import re
from dataclasses import replace

import pytest
from scripted_engine import ScriptedEngine

from data_gen.build import estimated_tokens
from data_gen.engines.probe import Capabilities
from data_gen.prompts import load_prompts
from data_gen.records import Assignment, Candidate, Caption, ImageItem, Verdict
from data_gen.stages.rewrite import LLMWriter, MixedWriter, RewriteStage, TemplateWriter
from negclip_jax.common.chat.messages import ChatResult
from negclip_jax.language.grammar import Grammar

TEXTS = ["A man rides a horse.", "A horse on a beach", "Someone riding near the sea"]
IMAGE = ImageItem("1", "1.jpg", tuple(Caption(str(i), text) for i, text in enumerate(TEXTS)))


def assignments(question=None, name="dog"):
    candidate = Candidate(name, "llm", question=question)
    verdict = Verdict(name, "absent", 0.1, 0.9, "text", question)
    return [Assignment(caption, candidate, verdict) for caption in IMAGE.captions]


def llm(answer, many=True, schema=False):
    engine = ScriptedEngine(answer)
    writer = LLMWriter(
        engine=engine,
        can=Capabilities("m", schema=schema),
        prompts=load_prompts(),
        many=many,
        one="rewrite",
        max_tokens=60,
        temperature=0.7,
        top_p=0.9,
        seed=0,
    )
    return writer, engine


def negate(request) -> str:
    """Answers both forms of the prompt."""
    text = request.messages[-1][1]
    captions = re.findall(r'^\d+\. Caption: "(.*?)" Absent', text, re.MULTILINE)
    if captions:
        rows = {str(i): f"{c.rstrip('.')} with no dog" for i, c in enumerate(captions, 1)}
        return json.dumps(rows)
    return re.search(r'Caption: "(.*?)"\n', text)[1].rstrip(".") + " without a dog"


def run(writer, asked, tries=2, foils=0, present=(), enforce=True):
    stage = RewriteStage(writer, estimated_tokens, 77, enforce, tries, foils, 0)
    return asyncio.run(stage.run(IMAGE, asked, present))


@pytest.mark.parametrize(("many", "calls"), [(True, 1), (False, 3)])
def test_one_call_an_image_or_one_a_caption(many, calls):
    writer, engine = llm(negate, many=many)
    rows = run(writer, assignments())
    assert all(row["accepted"] and row["attempt"] == 0 for row in rows)
    assert len(engine.requests) == calls and len({row["pair_id"] for row in rows}) == 3


def test_what_a_joint_answer_lacks_is_asked_alone():
    def answer(request):
        text = request.messages[-1][1]
        joint = '{"1": "A man rides a horse with no dog", "3": 7}'
        return joint if text.startswith("1. ") else negate(request)

    writer, engine = llm(answer)
    assert [row["accepted"] for row in run(writer, assignments())] == [True] * 3
    assert len(engine.requests) == 3


def test_a_schema_of_the_right_size():
    writer, engine = llm(negate, schema=True)
    run(writer, assignments())
    assert engine.requests[0].schema["required"] == ["1", "2", "3"]


def test_a_second_try_has_another_sample_and_another_way():
    writer, engine = llm(lambda r: "A man rides a horse and a dog", many=False)
    rows = run(writer, assignments()[:1])
    assert [row["attempt"] for row in rows] == [0, 1] and not any(r["accepted"] for r in rows)
    assert "no_cue" in rows[0]["reasons"] and rows[0]["negated_caption"]
    one, two = engine.requests
    assert (one.sample, two.sample) == (0, 1)
    assert one.messages[-1] != two.messages[-1]  # another "Way:"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (ChatResult(error="timeout"), "timeout"),
        (ChatResult("A man rides a horse with no", finish_reason="length"), "truncated"),
        (ChatResult(""), "empty"),
    ],
)
def test_no_text_no_pair(answer, reason):
    writer, _ = llm(lambda r: answer, many=False)
    rows = run(writer, assignments()[:1])
    assert not any(row["accepted"] for row in rows)
    assert all(reason in row["reasons"] for row in rows)


def test_the_grammar_and_its_second_try():
    writer = TemplateWriter(seed=0)
    (first,) = asyncio.run(writer.first(IMAGE, assignments()[:1]))
    again = asyncio.run(writer.again(assignments()[0], 1, first))
    assert first.rewriter != again.rewriter and first.rewriter.startswith("template:")
    assert all(row["accepted"] for row in run(writer, assignments()))


def test_questions_are_merged_by_both():
    asked = assignments("Is the man wearing a hat?", "hat")
    rows = run(TemplateWriter(0), asked)
    assert rows[0]["negated_caption"].startswith("A man rides a horse, ") and rows[0]["accepted"]
    writer, engine = llm(lambda r: "A man who is not wearing a hat rides a horse.")
    run(writer, asked[:1])
    assert "Is the man wearing a hat?" in engine.requests[0].messages[-1][1]
    rows = run(TemplateWriter(0), assignments("Why is that?", "x"))
    assert {tuple(row["reasons"]) for row in rows} == {("unmergeable",)}


def test_a_share_for_the_grammar():
    writer, _ = llm(negate)
    rows = run(MixedWriter(writer, TemplateWriter(0), 1.0, 0), assignments())
    assert all(row["rewriter"].startswith("template:") for row in rows)
    rows = run(MixedWriter(writer, TemplateWriter(0), 0.0, 0), assignments())
    assert {row["rewriter"] for row in rows} == {"llm"}


def test_foils_negate_what_is_there():
    rows = run(TemplateWriter(0), assignments(), foils=2, present=["horse", "person"])
    assert all(1 <= len(row["foils"]) <= 2 for row in rows)
    assert all(row["negated_caption"] not in row["foils"] for row in rows)
    assert not any("dog" in foil for row in rows for foil in row["foils"])


def test_tokens_are_not_underestimated():
    assert estimated_tokens("a dog") == 4
    assert estimated_tokens("a " * 80) > 77


@pytest.mark.parametrize("enforce", [True, False])
def test_markup_is_refused_even_where_no_rule_is_enforced(enforce):
    """What the published script would have exported as a caption: `alert(1) A man ...`."""
    writer, _ = llm(lambda r: f"<script>alert(1)</script>{negate(r)}", many=False)
    rows = run(writer, assignments(), enforce=enforce)
    assert len(rows) == 6 and not any(row["accepted"] for row in rows)
    assert all("markup" in row["reasons"] for row in rows)
    plain, _ = llm(lambda r: "A man", many=False)
    assert all(row["accepted"] != enforce for row in run(plain, assignments(), enforce=enforce))


def test_a_caption_without_anything_left_unsaid_gives_way_to_an_object_that_is_there():
    asked = [replace(a, there="horse") for a in assignments()]
    rows = run(TemplateWriter(0), asked)
    assert all(row["accepted"] for row in rows)
    for row in rows:
        text = row["negated_caption"].lower()
        assert "a horse" in text and re.search(r"\bdogs?\b", text) and len(text.split()) < 15
        assert row["cue"]
    # Short captions of a made world keep their words.
    plain, usual = (run(TemplateWriter(0, Grammar("plain")), a) for a in (asked, assignments()))
    assert [r["negated_caption"] for r in plain] == [r["negated_caption"] for r in usual]
