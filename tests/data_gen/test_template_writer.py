"""The writer "template" by the public command: its settings and its foils."""

import collections
import json

import pyarrow.parquet as pq
import pytest

from data_gen import cli, from_annotations
from negclip_jax.data.pairs import read_pairs
from negclip_jax.language.grammar import held_out
from negclip_jax.language.mentions import mentioned
from negclip_jax.language.negation import find_cues
from negclip_jax.language.text import tokenize

NAMES = ["person", "dog", "cat", "bowl", "couch", "kite"]
PRESENT = {1: ["dog", "person"], 2: ["dog", "bowl"], 3: ["cat", "couch"], 4: ["kite"], 5: []}
CAPTIONS = [
    (1, "A man walks his dog."),
    (1, "A dog on a street"),
    (2, "A dog eats from a bowl."),
    (2, "an animal in a kitchen"),
    (3, "a cat sleeping on a sofa"),
    (4, "Something in the sky."),
    (5, "an empty room with a sofa"),  # not annotated, but mentioned
    (2, "a dog with no collar"),
    (9, "an image nobody annotated"),
    (4, "  "),
]


@pytest.fixture
def coco():
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 9, "height": 9} for i in PRESENT]
    ids = {name: i for i, name in enumerate(NAMES, 1)}
    boxes = [
        {"id": 10 * i + ids[n], "image_id": i, "category_id": ids[n], "bbox": [0, 0, 1, 1]}
        for i, names in PRESENT.items()
        for n in names
    ]
    categories = [{"id": i, "name": n} for n, i in ids.items()]
    captions = [{"id": k, "image_id": i, "caption": c} for k, (i, c) in enumerate(CAPTIONS)]
    return (
        {"images": images, "annotations": captions},
        {"images": images, "annotations": boxes, "categories": categories},
    )


def write(tmp_path, coco):
    for name, content in zip(("captions", "instances"), coco, strict=True):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return [f"--{name}={tmp_path}/{name}.json" for name in ("captions", "instances")]


def pairs(tmp_path, coco, name="run", **settings):
    """The accepted rows of a run of the variant `quickstart`, by default with all its settings."""
    flags = [f"--config.{key.replace('__', '.')}={value}" for key, value in settings.items()]
    out = tmp_path / name
    run = ["run", "--config=:quickstart", f"--out={out}", *write(tmp_path, coco), *flags]
    assert cli.main(run) == 0
    return [row for row in pq.read_table(out / "pairs").to_pylist() if row["accepted"]]


@pytest.fixture
def many(coco):
    """The same scenes many times over, for shares."""
    captions, instances = coco
    copies = range(0, 4000, 100)
    images = [i | {"id": i["id"] + k} for k in copies for i in captions["images"]]
    texts = [
        a | {"id": a["id"] + k, "image_id": a["image_id"] + k}
        for k in copies
        for a in captions["annotations"]
        if a["image_id"] != 9
    ]
    boxes = [
        b | {"id": b["id"] + k, "image_id": b["image_id"] + k}
        for k in copies
        for b in instances["annotations"]
    ]
    shared = {"images": images}
    return shared | {"annotations": texts}, instances | shared | {"annotations": boxes}


def by_image(captions):
    found = collections.defaultdict(list)
    for row in captions["annotations"]:
        found[row["image_id"]].append(row["caption"])
    return found


def test_objects_are_absent_and_foils_are_false(tmp_path, many):
    texts = by_image(many[0])
    rows = pairs(tmp_path, many, max_rejects=0.5, rewrite__affirm=False)
    assert len(rows) > 200
    for row in rows:
        image = int(row["image_id"])
        present = PRESENT[image % 100]
        assert row["object"] not in present
        assert not mentioned(row["object"], texts[image])
        people = row["cue"] in ("nobody", "no one")
        assert people or mentioned(row["object"], [row["negated_caption"]])
        assert len(row["foils"]) == min(2, len(present))
        for text in (row["negated_caption"], *row["foils"]):
            assert len(find_cues(tokenize(text))) == 1, text
        for foil in row["foils"]:
            words = tokenize(foil)
            nobody = find_cues(words)[0].kind == "people" and "person" in present
            assert nobody or any(mentioned(name, [foil]) for name in present), foil


def test_the_second_foil_affirms_the_absent_object(tmp_path, many):
    rows = [r for r in pairs(tmp_path, many, max_rejects=0.5) if r["foils"][1:]]
    assert rows
    for row in rows:
        assert find_cues(tokenize(row["foils"][0]))
        assert not find_cues(tokenize(row["foils"][1]))
        assert mentioned(row["object"], [row["foils"][1]])


def test_foils_have_the_words_of_their_pair(tmp_path, many):
    rows = pairs(tmp_path, many, max_rejects=0.5, rewrite__statements=1.0, rewrite__affirm=False)
    assert {row["cue_position"] for row in rows} == {"alone"}
    for row in rows:
        if row["foils"] and row["cue"] not in ("nobody", "no one"):
            cue = find_cues(tokenize(row["foils"][0]))[0].word
            assert cue.replace("aren't", "isn't") == row["cue"].replace("aren't", "isn't")


@pytest.mark.slow
def test_held_out_cues_and_templates_never_occur(tmp_path, many):
    names = ("without", "not", "with-no", "cannot")
    banned = {f"template:{t.name}" for t in held_out(names)}
    for style, foils in (("plain", "template"), ("natural", "edit")):
        settings = {"rewrite__style": style, "rewrite__foils_by": foils}
        rows = pairs(
            tmp_path, many, style, max_rejects=0.5, rewrite__hold_out=",".join(names), **settings
        )
        for row in rows:
            assert row["rewriter"] not in banned
            for text in (row["negated_caption"], *row["foils"]):
                assert not {"without", "not", "cannot"} & {t.word for t in tokenize(text)}


def test_positions_and_statements_follow_their_shares(tmp_path, many):
    rows = pairs(tmp_path, many, max_rejects=0.5, rewrite__statements=0.4)
    share = collections.Counter(row["cue_position"] for row in rows)
    assert 0.3 < share["alone"] / len(rows) < 0.5
    assert 0.1 < share["before"] / len(rows) < 0.3


@pytest.mark.slow
def test_random_objects_are_not_only_plausible_ones(tmp_path, many):
    def objects(name, **settings):
        rows = pairs(tmp_path, many, name, max_rejects=0.5, propose__number=1, **settings)
        return collections.Counter(r["object"] for r in rows if int(r["image_id"]) % 100 == 1)

    # Beside a dog and a person there was once a bowl, and never a kite.
    assert objects("plausible")["bowl"] > 3 * objects("plausible")["kite"]
    mixed = objects("random", propose__random=1.0)
    assert mixed["kite"] > 0.5 * mixed["bowl"] > 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("rewrite.hold_out=nope", "cannot hold out nope"),
        ("rewrite.style=fancy", "natural, plain"),
        ("rewrite.before=2", "rewrite.before"),
        ("rewrite.foils_by=chance", "edit, template"),
    ],
)
def test_a_wrong_setting_is_a_one_line_message(tmp_path, coco, capsys, setting, message):
    run = ["run", f"--config.{setting}", f"--out={tmp_path}/run", *write(tmp_path, coco)]
    assert cli.main(run) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_run_from_before_these_settings_goes_on():
    from data_gen.settings import fingerprint, load

    old = load(None, {}).unlock()
    now = fingerprint(old, {}, None)
    for key in ("style", "before", "statements", "hold_out", "foils_by", "affirm"):
        other = load(None, {f"rewrite.{key}": {"style": "plain", "foils_by": "template",
                            "hold_out": "no", "affirm": "true"}.get(key, "0.5")})  # fmt: skip
        assert fingerprint(other, {}, None) != now
    content = old.to_dict()
    assert now == fingerprint(load(None, {}), {}, None)
    assert content["rewrite"]["style"] == "natural"


def test_the_former_command_warns_and_writes_its_keys(tmp_path, coco, capsys):
    captions = coco[0]
    captions["annotations"] = [a for a in captions["annotations"] if a["caption"].strip()]
    captions["annotations"] = [a for a in captions["annotations"] if a["image_id"] != 9]
    out = tmp_path / "new" / "pairs.json"
    flags = ["--seed=5", "--statements=0.4", "--affirm", "--hold-out=lacking,minus"]
    from_annotations.main([*write(tmp_path, coco), f"--out={out}", *flags])
    said = capsys.readouterr()
    assert "deprecated" in said.err and "--config.rewrite.hold_out=lacking,minus" in said.err
    rows = json.loads(out.read_text())["annotations"]
    assert f"{len(rows)} pairs in" in said.out and len(rows) >= 5
    for row in rows:
        assert row["position"] in ("after", "before", "alone") and row["cue"]
        assert row["provenance"].startswith("template:")
        assert row["object"] and row["id"] < len(CAPTIONS)
    read = read_pairs(out)
    assert len(read) == len(rows)
    assert all(find_cues(tokenize(pair.negated)) for pair in read)
    with pytest.raises(SystemExit):
        from_annotations.main([*write(tmp_path, coco), f"--out={out}", "--hold-out=nope"])
    assert "cannot hold out nope" in capsys.readouterr().err
