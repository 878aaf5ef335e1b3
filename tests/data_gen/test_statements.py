"""Statements: true and false of their photos, four in one form, and no word tells which."""

import collections
import random
import re
import shutil

import pyarrow.parquet as pq
import pytest
from fault_server import table

from data_gen import leak
from data_gen.annotations import InstanceVerifier
from data_gen.cli import main
from data_gen.labels import Label
from data_gen.statements import SCHEMA, Balance, Facts, Pen, certain, foils
from negclip_jax.language.grammar import Grammar
from negclip_jax.language.mentions import mentioned
from negclip_jax.language.negation import find_cues
from negclip_jax.language.text import tokenize


def label(name: str, state: str, source: str = "boxes") -> Label:
    return Label("7", name, name, state, source, float(state == "present"))


LABELS = [label("dog", "absent"), label("cat", "present"), label("car", "unsure")]


def pair(caption: str, negated: str, obj: str = "dog", rewriter: str = "llm") -> dict:
    fields = {"image_id": "7", "file_name": "7.jpg", "caption_id": "1", "pair_id": "p"}
    fields |= {"caption": caption, "negated_caption": negated, "object": obj, "question": None}
    return fields | {"rewriter": rewriter, "foils": ["of the run"]}


def write(row: dict, labels=LABELS, grammar: Grammar = Grammar()) -> list:  # noqa: B008
    ((_, found),) = Pen(grammar, 0).write([row], Facts.of(labels), [row["caption"]])
    return found


def test_an_llm_s_sentence_gets_its_twins():
    text = "A room with a sofa, but no dogs are visible in the picture."
    found = write(pair("A room with a sofa.", text))
    own = [s for s in found if s.writer == "llm"]
    assert [(s.text, s.truth, s.polarity) for s in own] == [
        (text, True, "both"),
        ("A room with a sofa, and dogs are visible in the picture.", False, "affirms"),
        ("A room with a sofa, but no cats are visible in the picture.", False, "both"),
        ("A room with a sofa, and cats are visible in the picture.", True, "affirms"),
    ]
    assert [s.label for s in own[1:3]] == [("dog=absent@boxes",), ("cat=present@boxes",)]
    assert {s.caption_id for s in own} == {"1"} and {s.form for s in own} == {"llm no after"}
    alone = [s for s in found if s.writer == "grammar"]
    assert {s.caption_id for s in alone} == {None}
    assert collections.Counter((s.polarity, s.truth) for s in alone) == {
        (polarity, truth): 1
        for polarity in ("affirms", "denies", "both")
        for truth in (True, False)
    }
    assert foils(pair("", text), found, affirm=False) == [own[2].text]
    assert foils(pair("", text), found, affirm=True) == [own[2].text, own[1].text]


@pytest.mark.parametrize(
    ("source", "captions", "is_said"),
    [
        ("mllm", ["A room with a sofa."], False),
        ("mllm", ["A room with a sofa.", "A surfboard in a room."], True),
        ("boxes", ["A room with a sofa."], True),
    ],
)
def test_what_a_model_alone_sees_needs_a_caption_or_a_scene(source, captions, is_said):
    row = pair("A room with a sofa.", "A room with a sofa, but no dogs are visible.")
    facts = Facts.of([label("dog", "absent"), label("surfboard", "present", source)])
    ((_, found),) = Pen(Grammar(), 0).write([row], facts, captions)
    assert any("surfboard" in s.objects for s in found) == is_said


def test_a_template_s_sentence_keeps_its_form():
    row = pair("A sofa", "A sofa, with no dog in sight", rewriter="template:no-in-sight")
    own = [s.text for s in write(row) if s.form == "no-in-sight"]
    assert own == [
        "A sofa, with no dog in sight",
        "A sofa, with a dog in sight",
        "A sofa, with no cat in sight",
        "A sofa, with a cat in sight",
    ]


def test_affirming_what_is_there_makes_no_text_true():
    # Alone: beside a caption the pair would use up what the balance allows of so few objects.
    row = pair("A cat and a bird", "There is no dog in the picture.", rewriter="template:no-alone")
    found = write(row, [*LABELS, label("bird", "present")])
    truth = {s.objects: s.truth for s in found if len(s.objects) == 2}
    ((first, second),) = (objects for objects in truth if "dog" not in objects)
    assert truth == {
        (first, "dog"): True,
        ("dog", first): False,
        (second, "dog"): True,
        (first, second): False,
    }


def test_a_caption_that_names_all_that_is_there_gives_way_to_what_is_there():
    row = pair("A cat on a mat.", "A cat, but no dog.", rewriter="template:but-no")
    found = write(row)
    own = [s for s in found if s.form == "a but-no"][:2]
    assert [(s.text, s.truth, s.objects) for s in own] == [
        ("A cat, but no dog.", True, ("cat", "dog")),
        ("A dog, but no cat.", False, ("dog", "cat")),
    ]
    assert {(s.polarity, s.caption_id) for s in own} == {("both", None)}
    assert foils(row, found, affirm=False) == ["A dog, but no cat."]


def test_what_is_not_settled_is_in_no_statement():
    row = pair("A sofa", "A sofa, with no dog in sight")
    assert write(row, [label("dog", "absent")]) is None
    assert write(row, [label("dog", "unsure"), label("cat", "present")]) == []
    only_named = [*LABELS[:1], label("cat", "unsure", "caption")]
    assert write(row, only_named) is None
    # Where nothing is known the pair keeps what the run wrote.
    assert foils(row, None, affirm=True) == ["of the run"]
    assert foils(row, [], affirm=True) == []


def test_a_caption_is_never_contradicted_by_its_own_words():
    row = pair("A cat on a sofa", "A cat on a sofa, with no dog in sight")
    found = write(row)
    assert found and all(s.caption_id is None for s in found)
    assert foils(row, found, affirm=True) == []


@pytest.mark.parametrize(
    ("present", "captions", "left"),
    [
        (["sheep"], ["a herd of goats on a hill"], []),
        (["sheep"], ["a herd of goats and sheep"], ["sheep"]),
        (["tv", "chair"], ["a desk with two computer monitors"], ["chair"]),
        (["bicycle"], ["a sign that forbids bicycles"], []),
        (["stop sign"], ["a stop sign on a corner"], ["stop sign"]),
        (["dog"], ["a picture of a dog", "a photo of a dog"], ["dog"]),
        (["cat"], ["a cat on a sofa"], ["cat"]),
    ],
)
def test_boxes_of_pictures_and_lookalikes_are_doubted(present, captions, left):
    assert certain(present, captions) == left


def test_an_object_that_is_nearly_always_absent_is_left_out():
    balance, rng, used = Balance(), random.Random(0), collections.Counter()
    for _ in range(20_000):
        absent = rng.choices(["dog", "cat", "bus"], [8, 1, 1])[0]
        present = rng.choices(["dog", "cat", "bus"], [1, 4, 5])[0]
        if absent != present and balance.allows(absent, present):
            balance.count(absent, present)
            used.update([(absent, "absent"), (present, "present")])
    for name in ("dog", "cat", "bus"):
        absent, present = used[name, "absent"], used[name, "present"]
        assert absent > 300 and abs(absent - present) < 5 * absent**0.5


def test_what_other_images_say_of_an_object_finds_no_truth():
    balance, rng, held = Balance(), random.Random(0), []
    uses = collections.defaultdict(list)
    for image in range(3000):
        names = rng.sample(range(60), 8)
        absent, present = sorted(map(str, names[:4])), sorted(map(str, names[4:]))
        for _ in range(3):
            away = min(absent, key=balance.owed)
            there = max(present, key=balance.owed)
            if balance.allows(away, there):
                balance.count(away, there)
                uses[away].append((image, 1))
                uses[there].append((image, -1))
    for found in uses.values():
        for fold in range(5):
            others = sum(sign for image, sign in found if image % 5 != fold)
            held += [(others > 0) == (sign > 0) for image, sign in found if image % 5 == fold]
    assert len(held) > 15_000 and sum(held) / len(held) < 0.51


def test_a_few_objects_of_many_images_stay_in_balance():
    balance, rng, used = Balance(), random.Random(0), 0
    for _ in range(20_000):
        absent, present = rng.sample(["dog", "cat", "bus", "cow", "cup", "bed"], 2)
        if balance.allows(absent, present):
            balance.count(absent, present)
            used += 1
    assert used > 0.9 * 20_000


@pytest.fixture(scope="module")
def exported(shared_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("statements") / "run"
    inputs = [f"--{name}={shared_data}/coco/{name}.json" for name in ("captions", "instances")]
    assert main(["run", *inputs, f"--out={out}", "--config.shard_images=100"]) == 0
    assert main(["export", f"--out={out}"]) == 0
    return out


@pytest.mark.slow
def test_commands_that_take_long_say_how_long(shared_data, exported, tmp_path, monkeypatch, capsys):
    """As if each item took ten seconds."""
    monkeypatch.setattr("negclip_jax.common.progress.FIRST_SECONDS", 0.0)
    coco, to = shared_data / "coco", f"--to={tmp_path}"
    commands = {
        "shards": [["export", f"--out={exported}", to], ["report", f"--out={exported}"]],
        "pairs": [["statements", f"--pairs={coco}/negation_pairs.json", to]],
        "text rows": [["nouns", f"--captions={coco}/captions.json", to, "--rows=40"]],
    }
    for what, words in commands.items():
        for command in words:
            assert main(command) == 0
            lines = capsys.readouterr().err.splitlines()
            assert re.fullmatch(rf"{what}( of pairs)?: 1 of [\d,]+, ETA [\d:]+", lines[0]), command
    inputs = [f"--{name}={coco}/{name}.json" for name in ("captions", "instances")]
    assert main(["run", *inputs, f"--out={tmp_path}/run", "--limit=20"]) == 0
    assert re.search(r"20/20 images, .* images/s, ETA 0:00\n", capsys.readouterr().err)


def test_exported_statements_are_what_the_boxes_say(shared_data, exported):
    content = pq.read_table(exported / "export" / "statements.parquet")
    assert content.schema.names == SCHEMA.names
    boxes = InstanceVerifier(shared_data / "coco" / "instances.json")
    rows = content.to_pylist()
    assert len(rows) > 4000
    for row in rows:
        cues = find_cues(tokenize(row["text"]))
        assert bool(cues) == (row["polarity"] != "affirms"), row
        *there, last = row["objects"]
        claims = [(last, not cues), *((name, True) for name in there)]
        seen = {name: boxes.verdict(row["image_id"], name)[0] for name in row["objects"]}
        assert set(seen.values()) <= {"present", "absent"}, row
        assert row["truth"] == all((seen[n] == "present") == said for n, said in claims), row
        assert all(mentioned(name, [row["text"]]) for name in row["objects"]), row


def test_no_form_is_truer_than_another_and_words_alone_tell_nothing(exported):
    rows = pq.read_table(exported / "export" / "statements.parquet").to_pylist()
    for key in ("form", "unit", "polarity"):
        of = collections.defaultdict(list)
        for row in rows:
            of[row[key], row["polarity"]].append(row["truth"])
        assert all(2 * sum(truths) == len(truths) for truths in of.values()), key
    texts = [leak.Text(r["image_id"], r["unit"], r["text"], r["truth"], r["form"]) for r in rows]
    pairs = pq.read_table(exported / "export" / "pairs.parquet").to_pylist()
    negated = {pair["negated"] for pair in pairs if pair["foils"]}
    foiled = {text.group for text in texts if text.text in negated}
    # Below chance, as the numbers of an object are nearly equal: the others lack what one has.
    assert 0.3 < leak.measure(texts)["accuracy"]["rate"] < 0.53
    own = [t for t in texts if t.group in foiled]
    assert own and leak.measure(own)["accuracy"]["rate"] < 0.53


def test_the_same_run_is_exported_alike(exported, tmp_path):
    assert main(["export", f"--out={exported}", f"--to={tmp_path}"]) == 0
    for name in ("statements.parquet", "pairs.json", "labels.json"):
        assert (tmp_path / name).read_bytes() == (exported / "export" / name).read_bytes(), name


def test_pairs_are_those_of_the_tables(exported):
    accepted = [row for row in table(exported, "pairs") if row["accepted"]]
    pairs = pq.read_table(exported / "export" / "pairs.parquet").to_pylist()
    assert [p["negated"] for p in pairs] == [row["negated_caption"] for row in accepted]


@pytest.mark.parametrize("name", ["items", "pairs", "labels"])
def test_a_damaged_table_is_named(exported, tmp_path, name, capsys):
    run = tmp_path / "run"
    shutil.copytree(exported, run)
    (part, *_) = sorted((run / name).glob("part-*.parquet"))
    part.write_bytes(part.read_bytes()[:-100])
    former = (run / "export" / "statements.parquet").read_bytes()
    assert main(["export", f"--out={run}"]) > 0
    error = capsys.readouterr().err
    assert str(part) in error and "Traceback" not in error
    assert (run / "export" / "statements.parquet").read_bytes() == former


def test_a_doubt_beside_a_box_is_not_what_a_statement_rests_on():
    labels = [*LABELS, label("cat", "unsure", "mllm")]
    found = write(pair("A sofa", "A sofa, with no dog in sight"), labels)
    rests = {rest for s in found for rest in s.label}
    assert rests == {"dog=absent@boxes", "cat=present@boxes"}


def test_the_plain_style_names_a_thing_where_the_natural_one_says_that_it_is_there():
    """ "A dog but no cat", as captions are there; of photos people rather write sentences."""
    row = pair("a cat and a bird", "there is no dog", rewriter="template:no-alone")
    labels = [*LABELS, label("bird", "present")]
    said = {
        style: [s.text for s in write(row, labels, Grammar(style)) if len(s.objects) == 2]
        for style in ("plain", "natural")
    }
    assert said["plain"] and not any("picture" in text for text in said["plain"])
    assert said["natural"] and all("picture" in text for text in said["natural"])
