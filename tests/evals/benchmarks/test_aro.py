"""ARO against its scoring code: macro means, the threshold of 25, boxes, and order files."""

import json

import numpy as np
import pytest
from tiny_evals import AllThere, feature, features, genome_record, numbers, write_json, write_photos

from evals import registry
from evals.images import DataRoots, ImageRef
from negclip_jax.common.errors import InputError


def records(count: int) -> list[dict]:
    rng = np.random.default_rng(1)
    colours = ("red", "blue", "wet")
    made = [genome_record(i) for i in range(count)]
    for record in made:
        record["attributes"] = [colours[rng.integers(3)], colours[rng.integers(3)]]
        record["relation_name"] = colours[min(rng.integers(6), 2)]
    return made


def official_right(record: dict) -> bool:
    """`evaluate_scores`: argmax over [false, true] is 1, on the box."""
    box = tuple(float(record[f"bbox_{key}"]) for key in "xywh")
    image = feature(ImageRef(record["image_path"], box)).astype(np.float64)
    captions = record["false_caption"], record["true_caption"]
    return bool(np.argmax([np.float32(feature(text) @ image) for text in captions]) == 1)


@pytest.mark.parametrize(
    ("benchmark", "name", "label", "least"),
    [
        (
            registry.get("aro_relation"),
            "visual_genome_relation.json",
            lambda r: r["relation_name"],
            1,
        ),
        (
            registry.get("aro_attribution"),
            "visual_genome_attribution.json",
            lambda r: "_".join(r["attributes"]),
            25,
        ),
    ],
)
def test_macro_means_equal_the_official_rows(tmp_path, benchmark, name, label, least):
    made = records(200)
    write_json(tmp_path / name, made)
    problem = benchmark.load(AllThere((tmp_path,)))
    result = problem.score(*features(problem))
    right = np.array([official_right(record) for record in made])
    assert result.predictions["right_official"] == right.astype(float).tolist()
    labels = np.array([label(record) for record in made])
    rows = [right[labels == v].mean() for v in np.unique(labels) if (labels == v).sum() >= least]
    assert 1 < len(rows) < len(set(labels)) or least == 1
    ours = numbers(result)
    assert ours["accuracy_macro"] == pytest.approx(np.mean(rows))
    assert ours["accuracy"] == pytest.approx(right.mean())
    assert ours["accuracy_macro"] != pytest.approx(ours["accuracy"])


def test_order_equals_the_official_precision(tmp_path):
    cases = [
        {"image": f"{i // 3}.jpg", "caption_options": [f"{i} {j}" for j in range(5)]}
        for i in range(60)
    ]
    write_json(tmp_path / "coco_order.json", cases)
    problem = registry.get("aro_coco_order").load(AllThere((tmp_path,)))
    right = []
    for case in cases:
        image = feature(ImageRef(case["image"])).astype(np.float64)
        scores = [np.float32(feature(text) @ image) for text in case["caption_options"]]
        right.append(float(np.argmax(scores) == 0))
    assert problem.score(*features(problem)).predictions["right_official"] == right
    assert 0 < sum(right) < 30


def test_a_few_careless_boxes_are_told_and_many_are_an_error(tmp_path):
    name = "visual_genome_relation.json"
    made = [genome_record(i) | {"image_path": "0.jpg"} for i in range(150)]
    made[3]["bbox_w"] = 90
    write_photos(tmp_path, ["0.jpg"])
    write_json(tmp_path / name, made)
    assert registry.get("aro_relation").load(DataRoots((tmp_path,))).notes == (
        "1 of 150 boxes reach out of their photo.",
    )
    made[4]["bbox_h"] = 90
    write_json(tmp_path / name, made)
    with pytest.raises(InputError, match=r"a box lies outside its photo \(2\): item 3"):
        registry.get("aro_relation").load(DataRoots((tmp_path,)))


def test_bad_records(tmp_path):
    made = [genome_record(i) for i in range(3)]
    made[1] |= {"bbox_w": "wide", "relation_name": None}
    made[2] |= {"bbox_h": 0}
    write_json(tmp_path / "visual_genome_relation.json", made)
    with pytest.raises(InputError) as caught:
        registry.get("aro_relation").load(AllThere((tmp_path,)))
    for part in ('"bbox_w" is not a number (1): item 1', '"relation_name" is missing (1): item 1',
                 "a box has no area (1): item 2"):  # fmt: skip
        assert part in str(caught.value)


def test_bad_order_files(tmp_path):
    cases = [{"image": "a.jpg", "caption_options": ["x"]}, {"image": "b.jpg", "caption_options": 3}]
    path = tmp_path / "flickr30k_order.json"
    path.write_text(json.dumps(cases))
    with pytest.raises(InputError) as caught:
        registry.get("aro_flickr30k_order").load(AllThere((tmp_path,)))
    assert '"caption_options" holds one caption (1): item 0' in str(caught.value)
    assert '"caption_options" is not a list of strings (1): item 1' in str(caught.value)
