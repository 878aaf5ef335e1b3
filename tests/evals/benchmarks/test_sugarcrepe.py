"""SugarCrepe against its script's loop, by category, and the mean over categories."""

import json

import numpy as np
import pytest
from tiny_evals import AllThere, feature, features, numbers, write_json

from evals import registry
from evals.benchmarks import sugarcrepe
from evals.images import DataRoots, ImageRef
from negclip_jax.common.errors import InputError

COUNTS = (692, 2062, 788, 1652, 1406, 666, 245)


def official(path) -> dict[str, float]:
    """`main_eval.py`: for each key, 1 if the caption's score is the greater one."""
    right = {}
    for key, item in json.loads(path.read_text()).items():
        image = feature(ImageRef(item["filename"])).astype(np.float64)
        names = ("caption", "negative_caption")
        positive, negative = (np.float32(feature(item[name]) @ image) for name in names)
        right[f"{path.stem.removeprefix('sugarcrepe_')}:{key}"] = (
            1.0 if positive > negative else 0.0
        )
    return right


def check(problem, files) -> list[int]:
    result = problem.score(*features(problem))
    by_file = [official(file) for file in files]
    expected = {key: value for part in by_file for key, value in part.items()}
    items = result.predictions["item"]
    assert dict(zip(items, result.predictions["right_official"], strict=True)) == expected
    means = [np.mean(list(part.values())) for part in by_file]
    ours = numbers(result)
    assert [ours[f"accuracy_{c}"] for c in sugarcrepe.CATEGORIES] == pytest.approx(means)
    assert ours["accuracy_mean"] == pytest.approx(np.mean(means))
    return [len(part) for part in by_file]


def test_all_items_equal_a_loop(shared_data):
    folder = shared_data / "benchmarks" / "sugarcrepe"
    files = [folder / f"{category}.json" for category in sugarcrepe.CATEGORIES]
    assert tuple(check(registry.get("sugarcrepe").load(AllThere((folder,))), files)) == COUNTS


def test_the_slice_with_its_photos(shared_data):
    folder = shared_data / "benchmarks" / "slices"
    problem = registry.get("sugarcrepe").load(
        DataRoots((folder,), (shared_data / "coco" / "photos",))
    )
    assert problem.scored == problem.total == 372
    check(problem, [folder / f"sugarcrepe_{c}.json" for c in sugarcrepe.CATEGORIES])


def record(i: int) -> dict:
    return {"filename": f"{i}.jpg", "caption": f"a {i}", "negative_caption": f"b {i}"}


def test_an_absent_file_is_named_and_there_is_no_mean(tmp_path):
    for category in sugarcrepe.CATEGORIES[:-1]:
        write_json(tmp_path / f"{category}.json", {"0": record(0)})
    problem = registry.get("sugarcrepe").load(AllThere((tmp_path,)))
    assert problem.notes == ("Parts whose file is not there or empty: swap_obj.",)
    metrics = problem.score(*features(problem)).metrics
    headlines = [metric.name for metric in metrics if metric.headline]
    assert headlines == [f"accuracy_{c}" for c in sugarcrepe.CATEGORIES[:-1]]


def test_bad_records(tmp_path):
    for category in sugarcrepe.CATEGORIES:
        write_json(tmp_path / f"{category}.json", {"0": record(0)})
    broken = {"4": record(1) | {"negative_caption": 5}, "7": {"caption": "x"}}
    write_json(tmp_path / "replace_rel.json", broken)
    with pytest.raises(InputError, match=r"replace_rel\.json has 3 problems") as caught:
        registry.get("sugarcrepe").load(AllThere((tmp_path,)))
    for part in ('"negative_caption" is not a string (1): 4', '"filename" is missing (1): 7'):
        assert part in str(caught.value)
