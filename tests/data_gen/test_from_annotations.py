import collections
import json
import subprocess
import sys

import numpy as np
import pytest

from data_gen import from_annotations
from data_gen.annotations import read_scenes
from data_gen.from_annotations import Settings, write_pairs
from negclip_jax.common.errors import InputError
from negclip_jax.language.nouns import mention
from negclip_jax.language.templates import NEGATION, held_out

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


def rows_over_seeds(coco, **settings):
    for seed in range(20):
        yield from write_pairs(*coco, Settings(seed=seed, **settings))[0]["annotations"]


def test_objects_are_absent_and_foils_negate_present_ones(coco):
    captions = collections.defaultdict(list)
    for image, caption in CAPTIONS:
        captions[image].append(caption)
    for row in rows_over_seeds(coco, statements=0.3, foils=2):
        present = PRESENT[row["image_id"]]
        assert row["object"] not in present
        assert not any(mention(row["object"]).search(c) for c in captions[row["image_id"]])
        people = row["cue"] in ("nobody", "no one")
        assert people or mention(row["object"]).search(row["updated_caption"])
        assert len(row["foils"]) == min(2, len(present))
        for foil in row["foils"]:
            # "a cat but no dog" also names the absent one; without it a present one must be left.
            rest = mention(row["object"]).sub("", foil)
            named = any(mention(name).search(rest) for name in present)
            assert named or ("person" in present and ("nobody" in foil or "no one" in foil)), foil


def test_the_second_foil_can_affirm_the_absent_object(coco):
    rows = [r for r in rows_over_seeds(coco, statements=0.3, affirm=True) if r["foils"][1:]]
    assert rows
    for row in rows:
        assert NEGATION.search(row["foils"][0])
        assert not NEGATION.search(row["foils"][1])
        assert mention(row["object"]).search(row["foils"][1])


def test_each_text_negates_once(coco):
    for row in rows_over_seeds(coco, statements=0.3):
        for text in (row["updated_caption"], *row["foils"]):
            assert len(NEGATION.findall(text)) == 1, text


def test_what_cannot_be_rewritten_is_counted(coco):
    content, counts = write_pairs(*coco, Settings())
    assert counts["caption negates already"] == 1
    assert counts["image without instance annotations"] == 1
    assert counts["empty caption"] == 1
    assert counts["written"] == len(content["annotations"]) == 7
    assert content["info"]["counts"] == dict(counts)


def test_same_seed_same_pairs_and_pairs_do_not_depend_on_each_other(coco):
    first, _ = write_pairs(*coco, Settings(seed=3))
    again, _ = write_pairs(*coco, Settings(seed=3))
    other, _ = write_pairs(*coco, Settings(seed=4))
    assert first == again != other
    captions, instances = coco
    fewer = {**captions, "annotations": captions["annotations"][:5]}
    part, _ = write_pairs(fewer, instances, Settings(seed=3))
    kept = {row["id"]: row["updated_caption"] for row in first["annotations"]}
    # The last caption of image 2 is gone, which nothing else looks at.
    assert all(kept[row["id"]] == row["updated_caption"] for row in part["annotations"])


def test_held_out_cues_and_templates_never_occur(coco):
    names = ("without", "not", "with-no", "cannot")
    banned = {t.name for t in held_out(names)}
    for row in rows_over_seeds(coco, statements=0.3, hold_out=names):
        assert row["provenance"].split()[-1] not in banned
        for text in (row["updated_caption"], *row["foils"]):
            assert not {"without", "not", "cannot"} & set(text.lower().replace(",", "").split())


def test_statements_and_positions_follow_their_shares(coco):
    def share(position, **settings):
        rows = list(rows_over_seeds(coco, **settings))
        return np.mean([row["position"] == position for row in rows])

    assert share("alone", statements=1.0) == 1
    assert share("alone") == 0
    assert share("before", before=1.0) == 1
    assert 0.15 < share("before", before=0.3) < 0.45


def test_an_unknown_category_is_named(coco):
    captions, instances = coco
    instances["annotations"][0]["category_id"] = 77
    with pytest.raises(InputError, match="category_id 77"):
        read_scenes(captions, instances)


def run_command(tmp_path, coco, *more):
    for name, content in zip(("captions", "instances"), coco, strict=True):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    from_annotations.main(
        [
            f"--captions={tmp_path}/captions.json",
            f"--instances={tmp_path}/instances.json",
            f"--out={tmp_path}/new/pairs.json",
            *more,
        ]
    )


def test_the_command_writes_what_the_reader_of_pairs_accepts(tmp_path, coco, capsys):
    from negclip_jax.data.pairs import read_pairs

    run_command(tmp_path, coco, "--seed=5")
    assert "7 pairs" in capsys.readouterr().out
    pairs = read_pairs(tmp_path / "new" / "pairs.json")
    assert len(pairs) == 7
    assert all(NEGATION.search(pair.negated) for pair in pairs)
    assert pairs[0].image == "1.jpg"
    assert len(pairs[0].foils) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--hold-out=nope"], "nope"), (["--captions=/no/such.json"], "cannot read")],
)
def test_bad_input_is_a_sentence(tmp_path, coco, flags, message):
    with pytest.raises(SystemExit, match=message):
        run_command(tmp_path, coco, *flags)


def test_broken_json_is_named(tmp_path, coco):
    (tmp_path / "broken.json").write_text('{"images": [')
    with pytest.raises(SystemExit, match=r"broken\.json is not valid JSON"):
        run_command(tmp_path, coco, f"--captions={tmp_path}/broken.json")


def test_data_gen_needs_no_jax():
    code = "import data_gen.from_annotations, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_real_coco(shared_data):
    captions = json.loads((shared_data / "coco" / "captions.json").read_text())
    instances = json.loads((shared_data / "coco" / "instances.json").read_text())
    content, counts = write_pairs(captions, instances, Settings(statements=0.1))
    scenes = read_scenes(captions, instances)
    assert counts["written"] > 1000
    assert len({row["cue"] for row in content["annotations"]}) > 12
    for row in content["annotations"]:
        assert scenes[row["image_id"]].lacks(row["object"])
        assert len(NEGATION.findall(row["updated_caption"])) == 1
