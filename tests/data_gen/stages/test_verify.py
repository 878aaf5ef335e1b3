"""Verdicts: thresholds, probabilities, and every answer that is none."""

import asyncio
import math

import pytest
from scripted_engine import ScriptedEngine

from data_gen.engines.probe import Capabilities
from data_gen.prompts import load_prompts
from data_gen.records import Candidate, Caption, ImageItem, Question
from data_gen.stages.verify import (
    AnnotationVerifier,
    ManyVerifier,
    ModelVerifier,
    Thresholds,
    VoteVerifier,
    method_for,
    question_of,
)
from negclip_jax.common.chat.messages import ChatResult
from negclip_jax.common.errors import InputError

PROMPTS = load_prompts()
CAN = Capabilities("m", images=True, logprobs=True, choice="regex")
THRESHOLDS = Thresholds(absent_at=0.8, present_at=0.5, mass=0.5)
IMAGE = ImageItem("1", "1.jpg", (Caption("1", "a man"),))


def verify(verifier, *names, image=IMAGE):
    candidates = [n if isinstance(n, Candidate) else Candidate(n, "llm") for n in names]
    return asyncio.run(verifier.verify(image, None, candidates))


def model(answer, method="text") -> ModelVerifier:
    engine = ScriptedEngine(answer if callable(answer) else lambda request: answer)
    return ModelVerifier(engine, CAN, PROMPTS["verify"], THRESHOLDS, method, 10)


@pytest.mark.parametrize(
    ("p_yes", "p_no", "verdict"),
    [
        (0.05, 0.9, "absent"),
        (0.2, 0.8, "absent"),
        (0.21, 0.79, "unsure"),
        (0.5, 0.5, "present"),
        (0.9, 0.05, "present"),
        (0.0, 0.4, "unsure"),  # sure of no, if anything; mostly it is something else
        (0.0, 0.0, "unsure"),
    ],
)
def test_thresholds(p_yes, p_no, verdict):
    assert THRESHOLDS.verdict(p_yes, p_no) == verdict


def top(**words) -> ChatResult:
    return ChatResult("x", top=[(word.replace("_", " "), math.log(p)) for word, p in words.items()])


def test_logprobs_sum_all_spellings():
    (verdict,) = verify(model(top(No=0.5, _no=0.2, NO=0.1, Yes=0.1, maybe=0.05), "logprobs"), "dog")
    assert verdict.verdict == "absent"
    assert verdict.p_no == pytest.approx(0.8) and verdict.mass == pytest.approx(0.9)
    (verdict,) = verify(model(top(I=0.7, No=0.2), "logprobs"), "dog")
    assert verdict.verdict == "unsure" and verdict.mass == pytest.approx(0.2)


def test_ignored_logprobs_fall_back_to_the_text():
    (verdict,) = verify(model(ChatResult("No.", top=None), "logprobs"), "dog")
    assert verdict.verdict == "absent"


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("No.", "absent"),
        ("no", "absent"),
        ("Yes, there is", "present"),
        ("", "unsure"),
        ("I cannot see that", "unsure"),
        ("No idea", "unsure"),
        ("No, there is a dog", "unsure"),
        ("There might be no", "unsure"),
    ],
)
def test_text(text, verdict):
    assert verify(model(text), "dog")[0].verdict == verdict


def test_an_error_is_an_error():
    (verdict,) = verify(model(ChatResult(error="timeout")), "dog")
    assert (verdict.verdict, verdict.error_code, verdict.mass) == ("error", "timeout", 0)


def test_the_published_rule():
    said = {"dog": "Yes", "cat": "I think yes", "bus": "who knows"}
    verifier = model(
        lambda r: next(a for n, a in said.items() if n in r.messages[-1][1]), "substring"
    )
    assert [v.verdict for v in verify(verifier, *said)] == ["present", "present", "absent"]


def many(answer) -> tuple[ManyVerifier, ScriptedEngine]:
    engine = ScriptedEngine(answer)
    single = ModelVerifier(engine, CAN, PROMPTS["verify"], THRESHOLDS, "text", 10)
    verifier = ManyVerifier(engine, CAN, PROMPTS["verify_many"], THRESHOLDS, single, seed=0)
    return verifier, engine


def test_many_questions_in_one_call():
    def answer(request):
        rows = [r for r in request.messages[-1][1].splitlines() if r[:1].isdigit()]
        said = [f'"{i}": "{"yes" if "dog" in row else "no"}"' for i, row in enumerate(rows, 1)]
        return "{" + ", ".join(said) + "}"

    verifier, engine = many(answer)
    verdicts = {v.object: v.verdict for v in verify(verifier, "dog", "cat", "bus")}
    assert verdicts == {"dog": "present", "cat": "absent", "bus": "absent"}
    assert len(engine.requests) == 1


@pytest.mark.parametrize("broken", ["no, yes, no", '{"1": "perhaps"}', "", '["no"]'])
def test_what_many_leave_open_is_asked_alone(broken):
    verifier, engine = many(lambda r: broken if "1. " in r.messages[-1][1] else "No")
    assert {v.verdict for v in verify(verifier, "dog", "cat", "bus")} == {"absent"}
    assert len(engine.requests) == 4


class Boxes:
    """Stands for instance annotations: knows dogs and cats."""

    def __init__(self):
        self.present = {"1": frozenset({"dog"})}

    def verdict(self, image_id, name):
        known = {"dog": ("present", 1.0), "cat": ("absent", 0.0)}
        return known.get(name, ("unsure", 0.5))


def test_annotations_first_then_the_model():
    verifier = AnnotationVerifier(Boxes(), model("No"))
    found = {v.object: (v.verdict, v.method) for v in verify(verifier, "dog", "cat", "fog")}
    assert found == {
        "dog": ("present", "instances"),
        "cat": ("absent", "instances"),
        "fog": ("absent", "text"),
    }
    alone = {v.object: v.verdict for v in verify(AnnotationVerifier(Boxes(), None), "dog", "fog")}
    assert alone == {"dog": "present", "fog": "unsure"}


@pytest.mark.parametrize(
    ("yes", "no", "verdict"), [(0, 8, "absent"), (3, 7, "unsure"), (9, 1, "present")]
)
def test_votes(yes, no, verdict):
    image = ImageItem("1", "1.jpg", (), (Question("1", "Is it hot?", yes, no, 10),))
    candidate = Candidate("hot", "vqa", question="Is it hot?")
    assert verify(VoteVerifier(8), candidate, image=image)[0].verdict == verdict


def test_the_best_method_that_the_server_knows():
    assert method_for("auto", CAN) == "logprobs"
    assert method_for("auto", Capabilities("m", choice="regex")) == "choice"
    assert method_for("auto", Capabilities("m", prefix_cache=True)) == "text"
    assert method_for("auto", Capabilities("m")) == "text"
    assert method_for("auto", Capabilities("m", many=True, logprobs=True)) == "multi"
    assert method_for("text", Capabilities("m", many=True)) == "text"
    assert method_for("multi", CAN) == "multi"
    with pytest.raises(InputError, match=r"method=choice: m was not seen to keep to a list"):
        method_for("choice", Capabilities("m", logprobs=True))


@pytest.mark.parametrize(
    ("name", "question"),
    [
        ("umbrella", "Is there an umbrella in this image?"),
        ("broccoli", "Is there any broccoli in this image?"),
        ("scissors", "Are there any scissors in this image?"),
    ],
)
def test_questions_are_english(name, question):
    assert question_of(Candidate(name, "llm")) == question
