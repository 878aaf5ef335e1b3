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
from data_gen.stages.rewrite import LLMWriter, MixedWriter, RewriteStage, TemplateWriter, Work
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
    (rows,) = asyncio.run(stage.run([Work(IMAGE, asked, present)]))
    return rows


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
    ((first,),) = asyncio.run(writer.first([assignments()[:1]]))
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


# Several photos in one request.
CAPTIONS = {
    "2": (["A red bus in a street.", "A bus stops near a shop"], "tree"),
    "3": (["Two cups on a table"], "spoon"),
    "4": (["A cat sleeps on a couch", "A cat lies on a grey couch", "A sleeping animal"], "dog"),
}
PHOTOS = [assignments()] + [
    [
        Assignment(Caption(f"{key}{i}", text), Candidate(name, "llm"), assignments()[0].verdict)
        for i, text in enumerate(texts)
    ]
    for key, (texts, name) in CAPTIONS.items()
]
RIGHT = {
    a.caption.id: f"{a.caption.text.rstrip('.')} with no {a.candidate.object}"
    for photo in PHOTOS
    for a in photo
}
_ROW = r'^(\d+)\. Caption: (".*?") Absent: (".*?") Way'


def asked_in(request):
    """The captions of a joint request, by their numbers; none in a request for one."""
    rows = re.findall(_ROW, request.messages[-1][1], re.MULTILINE)
    return {number: json.loads(caption) for number, caption, _ in rows}


def jointly(change=lambda texts: texts, photos=PHOTOS, **can):
    """Texts of each photo and the requests; `change` of a joint request's right answers."""
    by_text = {a.caption.text: RIGHT[a.caption.id] for photo in photos for a in photo}

    def answer(request):
        rows = asked_in(request)
        if not rows:
            text = re.search(r'Caption: (".*?")\n', request.messages[-1][1])[1]
            return by_text[json.loads(text)].replace("with no", "without a")
        changed = change({number: by_text[text] for number, text in rows.items()})
        return changed if isinstance(changed, ChatResult) else json.dumps(changed)

    writer, engine = llm(answer)
    writer = replace(writer, can=Capabilities("m", **can))
    found = asyncio.run(writer.first(photos))
    keys = {r.key: r for r in engine.requests}
    for photo, drafts in zip(photos, found, strict=True):
        for a, draft in zip(photo, drafts, strict=True):
            assert json.dumps(a.caption.text) in keys[draft.key].messages[-1][1]
    return [[draft.text for draft in drafts] for drafts in found], engine.requests


def right(*alone, of=PHOTOS):
    """What is right for all, in the words of a request of its own for the captions in `alone`."""
    texts = {k: t.replace("with no", "without a") if k in alone else t for k, t in RIGHT.items()}
    return [[texts[a.caption.id] for a in photo] for photo in of]


def test_photos_share_a_request_for_all_their_captions():
    found, (request,) = jointly(schema=True)
    assert found == right()
    assert list(asked_in(request)) == [str(i) for i in range(1, 10)]
    assert request.schema["required"] == [str(i) for i in range(1, 10)]
    assert request.max_tokens == 9 * 60
    some = [PHOTOS[0], [], PHOTOS[2], []]  # in two of them nothing is absent
    found, requests = jointly(photos=some)
    assert found == right(of=some) and len(requests) == 1
    assert jointly(photos=[[], []]) == ([[], []], [])


@pytest.mark.parametrize("turn", range(1, 9))
def test_no_caption_gets_the_text_of_another(turn):
    """Answers to all captions under each other's numbers: each is told by what it says."""

    def moved(texts):
        if len(texts) < 9:  # image by image they stay
            return texts
        values = list(texts.values())
        return dict(zip(texts, values[turn:] + values[:turn], strict=True))

    found, requests = jointly(moved)
    for photo, texts in zip(PHOTOS, found, strict=True):
        for a, text in zip(photo, texts, strict=True):
            assert text.replace("without a", "with no") == RIGHT[a.caption.id]
    assert len(requests) > 3


def test_two_texts_that_changed_places_are_asked_again_and_no_others():
    def swapped(texts):
        return texts | {"4": texts["6"], "6": texts["4"]}

    found, requests = jointly(swapped)
    assert found == right("20", "30") and len(requests) == 3


@pytest.mark.parametrize("lost", ["4", "6", "9"])
@pytest.mark.parametrize("instead", [None, 7, ["x"]])
def test_a_caption_that_the_answer_lacks_is_asked_alone(lost, instead):
    def without(texts):
        return {k: instead if k == lost else t for k, t in texts.items() if k != lost or instead}

    found, requests = jointly(without)
    places = [a.caption.id for photo in PHOTOS for a in photo]
    assert found == right(places[int(lost) - 1]) and len(requests) == 2


def test_a_photo_that_the_answer_lacks_is_asked_by_itself():
    def without(texts):
        return {k: t for k, t in texts.items() if len(texts) < 9 or int(k) < 7}

    found, requests = jointly(without)
    assert found == right() and [len(asked_in(r)) for r in requests] == [9, 3]


@pytest.mark.parametrize("result", [ChatResult("Sure!"), ChatResult(error="refused")])
def test_a_joint_answer_that_is_none_costs_a_request_a_photo(result):
    found, requests = jointly(lambda texts: result if len(texts) == 9 else texts)
    assert found == right("30")
    assert sorted(len(asked_in(r)) for r in requests) == [0, 2, 3, 3, 9]
    found, requests = jointly(lambda texts: result)
    assert found == right(*RIGHT) and len(requests) == 1 + 3 + 9


def test_no_joint_request_is_longer_than_servers_take():
    def size(request):
        return sum(len(text) for _, text in request.messages) / 4 + request.max_tokens

    for context, rows in ((4096, [9]), (700, [4, 5]), (500, [3, 3, 3])):
        found, requests = jointly(context=context)
        assert sorted(len(asked_in(r)) for r in requests) == rows and found == right()
        assert all(size(r) <= context for r in requests)
    many = PHOTOS * 6  # 54 captions of 60 tokens, and 25 in the question
    _, requests = jointly(photos=many, context=32_000)
    assert len(requests) == 2 and all(size(r) <= 4096 for r in requests)


def test_one_photo_is_written_as_ever():
    """The request of runs that began before photos shared them."""
    _, (request,) = jointly(photos=PHOTOS[:1])
    assert request.key == "8a239673958a7d6ccad9c70f27d0d266"


def test_shares_of_two_writers_keep_their_places():
    by_text = {a.caption.text: RIGHT[a.caption.id] for photo in PHOTOS for a in photo}
    writer, engine = llm(lambda r: json.dumps({k: by_text[t] for k, t in asked_in(r).items()}))
    mixed = MixedWriter(writer, TemplateWriter(0), 0.5, 1)
    found = asyncio.run(mixed.first(PHOTOS))
    writers = {draft.rewriter == "llm" for drafts in found for draft in drafts}
    assert writers == {True, False} and len(engine.requests) == 1
    for photo, drafts in zip(PHOTOS, found, strict=True):
        for a, draft in zip(photo, drafts, strict=True):
            if draft.rewriter == "llm":
                assert draft.text == RIGHT[a.caption.id]
            else:
                assert draft == TemplateWriter(0)._write(a, ())
