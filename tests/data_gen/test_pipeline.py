"""One image through all stages, with everything scripted."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from scripted_engine import ScriptedEngine

from data_gen import settings
from data_gen.build import Models, build, estimated_tokens, resolve, token_counter
from data_gen.engines.probe import Capabilities, Pending
from data_gen.prompts import load_prompts
from data_gen.records import Caption, ImageItem
from negclip_jax.common.chat.messages import ChatResult
from negclip_jax.common.errors import InputError
from negclip_jax.language.mentions import named_categories

IMAGE = ImageItem("7", "train/7.jpg", (Caption("1", "A man on a horse."), Caption("2", "A rider")))
CAN = Capabilities("m", images=True)


def process(answer, photos, **changes):
    base = {"input.captions": "c", "input.images": str(photos), "llm.url": "x", "mllm.url": "y"}
    named = {key.replace("__", "."): value for key, value in changes.items()}
    config = settings.load(
        None, base | {"verify.method": "text", "rewrite.unit": "caption"} | named
    )
    engine = ScriptedEngine(answer)
    models = Models(engine, CAN, engine, CAN)
    with ThreadPoolExecutor(1) as threads:
        pipeline = build(config, load_prompts(), models, threads, "run")
        (rows,) = asyncio.run(pipeline.process([IMAGE]))
        return rows, engine


@pytest.fixture
def photos(tmp_path):
    from fault_server import photo

    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "7.jpg").write_bytes(photo(0))
    return tmp_path


def answer(request):
    if request.stage == "propose":
        return '["dog", "car", "rider", "sky"]'
    if request.stage == "verify":
        return "Yes" if "car" in request.messages[-1][1] else "No"
    return request.messages[-1][1].split('"')[1].rstrip(".") + " without a dog"


def test_all_rows_of_an_image(photos):
    rows, engine = process(answer, photos)
    assert [(r["caption_id"], r["split"], r["width"]) for r in rows.items] == [
        ("1", "train", 48),
        ("2", "train", 48),
    ]
    reasons = {r["object"]: r["reject_reason"] for r in rows.candidates}
    proposed = {"dog": None, "car": None, "rider": "mentioned", "sky": "unusable"}
    # What captions name is asked about too, and is never denied.
    assert reasons == proposed | {"person": "mentioned", "horse": "mentioned"}
    verdicts = {"dog": "absent", "car": "present", "horse": "absent", "person": "absent"}
    assert {r["object"]: r["verdict"] for r in rows.verdicts} == verdicts
    assert {(r["object"], r["source"]): r["state"] for r in rows.labels} == {
        (name, "mllm"): state for name, state in verdicts.items()
    } | {("horse", "caption"): "unsure", ("person", "caption"): "unsure"}
    assert [r["object"] for r in rows.pairs] == ["dog", "dog"]
    assert all(r["accepted"] and "car" in " ".join(r["foils"]) for r in rows.pairs)
    assert rows.rejects == [] and rows.codes() == {"mentioned", "unusable"}
    assert len({r.image.sha256 for r in engine.requests if r.image}) == 1


def test_a_missing_photo_costs_no_call(tmp_path):
    rows, engine = process(answer, tmp_path)
    assert [r["code"] for r in rows.rejects] == ["image_missing"]
    assert rows.items == [] and engine.requests == []


def test_a_transient_error_gets_one_more_chance(photos):
    failed = []

    def shaky(request):
        if request.stage == "verify" and len(failed) < 2:
            failed.append(request)
            return ChatResult(error="timeout")
        return answer(request)

    rows, _ = process(shaky, photos)
    assert len(failed) == 2 and len(rows.pairs) == 2 and "timeout" not in rows.codes()


def test_an_image_that_waits_for_a_batch_stops_no_other_before_it_has_asked(photos):
    asked = []

    async def generate(request):
        if request.stage == "propose":
            return ChatResult('["dog"]')
        late = "car" in request.messages[-1][1]
        await asyncio.sleep(0.02 if late else 0)
        asked.append("late" if late else "early")
        raise Pending(request.key)

    base = {"input.captions": "c", "input.images": str(photos), "llm.url": "x", "mllm.url": "y"}
    config = settings.load(None, base | {"verify.method": "text", "propose.others": "0"})
    engine = ScriptedEngine(answer)
    engine.generate = generate
    images = [IMAGE, ImageItem("8", "train/7.jpg", (Caption("3", "A car"),))]
    with ThreadPoolExecutor(1) as threads:
        models = Models(engine, CAN, engine, CAN)
        pipeline = build(config, load_prompts(), models, threads, "run")
        with pytest.raises(Pending):
            asyncio.run(pipeline.process(images))
    assert set(asked) == {"early", "late"}


def test_no_more_objects_than_asked_for(photos):
    many = '["dog", "sky", "car", "bus", "kite", "vase"]'
    rows, _ = process(
        lambda r: many if r.stage == "propose" else answer(r), photos, propose__number="2"
    )
    proposed = [r["object"] for r in rows.candidates if r["source"] == "llm"]
    assert proposed == ["dog", "sky", "car"]
    assert [r["source"] for r in rows.candidates[3:]] == ["caption", "caption"]


def test_no_question_about_what_boxes_tell_or_where_nothing_was_proposed(photos, tmp_path):
    rows, _ = process(lambda r: "[]" if r.stage == "propose" else answer(r), photos)
    assert rows.verdicts == [] and {r["state"] for r in rows.labels} == {"unsure"}
    categories = [{"id": i, "name": name} for i, name in enumerate(("dog", "car", "bus"), 1)]
    content = {"images": [{"id": 7, "width": 9, "height": 9}], "categories": categories}
    boxes = [{"id": 1, "image_id": 7, "category_id": 2, "area": 9, "bbox": [0, 0, 3, 3]}]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content | {"annotations": boxes}))
    rows, engine = process(answer, photos, input__instances=str(path))
    asked = [r.messages[-1][1] for r in engine.requests if r.stage == "verify"]
    assert sorted(text.split(" in ")[0] for text in asked) == [
        "Is there a horse",
        "Is there a person",
    ]
    found = {
        r["object"]: (r["state"], r["source"]) for r in rows.labels if r["source"] != "caption"
    }
    assert found == {
        "dog": ("absent", "boxes"), "car": ("present", "boxes"), "bus": ("absent", "boxes"),
        "person": ("absent", "mllm"), "horse": ("absent", "mllm"),
    }  # fmt: skip


def test_a_foil_denies_what_a_model_saw_and_not_what_a_caption_says(photos):
    def blind(request):
        return "No" if request.stage == "verify" else answer(request)

    rows, _ = process(blind, photos)
    assert [r["foils"] for r in rows.pairs if r["accepted"]] == [[]]


def test_what_a_caption_names():
    assert named_categories("Two dogs and a vehicle") == {"dog"}
    assert named_categories("A hot dog on a plate") == {"hot dog"}


def test_token_counters(shared_data):
    exact = token_counter(
        settings.load(None, {"check.tokenizer": str(shared_data / "clip_tokenizer")})
    )
    assert exact("a dog") == 4
    for text in ("a skateboarder photographed beneath an umbrella", "it's 10:30, isn't it?"):
        assert exact(text) <= estimated_tokens(text)
    with pytest.raises(InputError, match=r"check\.tokenizer: "):
        token_counter(settings.load(None, {"check.tokenizer": "nowhere"}))


@pytest.mark.parametrize(
    ("flags", "roles"),
    [
        ({"input.instances": "i"}, ("cooccurrence", "instances", "template")),
        ({"llm.url": "l", "input.instances": "i"}, ("llm", "instances", "llm")),
        (
            {"mllm.url": "m", "input.images": "d", "input.objects": "o"},
            ("file", "mllm", "template"),
        ),
        (
            {"pipeline": "vqa", "input.questions": "q", "input.answers": "a"},
            ("vqa", "votes", "template"),
        ),
        (
            {"llm.url": "l", "mllm.url": "m", "input.images": "d", "rewrite.by": "template"},
            ("llm", "mllm", "template"),
        ),
    ],
)
def test_who_does_what(flags, roles):
    found = resolve(settings.load(None, {"input.captions": "c", **flags}))
    assert (found.propose, found.verify, found.rewrite) == roles
