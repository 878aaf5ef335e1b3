"""Both polarities: four statements, what likes and dislikes "no" get, drawing, ties."""

import json
import math

import numpy as np
import pytest
from markupsafe import escape
from tiny_evals import AllThere, feature, features, instances_content, numbers, write_json

from evals import registry, report
from evals.benchmarks.both_polarity import FORMS, Photo, read_photos, statements
from evals.images import DataRoots, ImageRef
from evals.results import Results, table_text
from negclip_jax.common.errors import InputError
from negclip_jax.language.inflection import noun
from negclip_jax.runtime.workdir import environment


@pytest.fixture
def problem(tmp_path):
    write_json(tmp_path / "instances.json", instances_content())
    return registry.get("both_polarity").load(AllThere((tmp_path,)))


def test_statements_have_articles():
    photo = Photo(ImageRef("a"), "umbrella", "scissors", "dog")
    assert statements(photo) == (
        "there is no umbrella",
        "there are scissors",
        "there is an umbrella",
        "there are no scissors",
        "an umbrella",
        "scissors but no dog",
    )
    assert len(statements(photo._replace(second=""))) == 4


def test_every_photo_by_a_loop(shared_data):
    """The definition, written once more on random features of real labels."""
    problem = registry.get("both_polarity").load(AllThere((shared_data / "coco",)))
    result = problem.score(*features(problem))
    ours = {
        metric.name: dict(zip(metric.items, metric.values, strict=True))
        for metric in result.metrics
    }
    assert len(ours["absent"]) == problem.total == 317 and 200 < len(ours["mcq"]) < 317
    for i, item in enumerate(result.predictions["item"]):
        image = feature(ImageRef(item)).astype(np.float64)
        no_x, a_y, a_x, no_y = (image @ feature(t) for t in result.predictions["texts"][i])
        assert ours["absent"][item] == (no_x > a_x) and ours["present"][item] == (a_y > no_y)
        assert ours["both_polarities"][item] == (no_x > a_x and a_y > no_y)
        assert ours["all_four"][item] == (min(no_x, a_y) > max(a_x, no_y))
    chances = {metric.name: metric.chance for metric in result.metrics}
    for name, value in numbers(result).items():
        spread = math.sqrt(chances[name] * (1 - chances[name]) / len(ours[name]))
        assert abs(value - chances[name]) < 4 * spread, name


def test_tables_by_a_loop(shared_data):
    """Every form of words and category, from random features of real labels."""
    problem = registry.get("both_polarity").load(AllThere((shared_data / "coco",)))
    result = problem.score(*features(problem))
    cues, categories = (table["rows"] for table in result.tables.values())
    photos = read_photos(shared_data / "coco" / "instances.json")
    every = {name for photo in photos for name in photo.inside}
    assert len(categories) == len(every) > 60 and list(cues)[:2] == ["all", "no"]
    found = dict.fromkeys(cues, 0.0)
    for name in every:
        n = sum(name in photo.inside for photo in photos)
        ways = [(form.affirmed, form.text) for form in FORMS]
        means = {
            kind: np.mean([feature(p.image) for p in photos if (name in p.inside) == kind], axis=0)
            for kind in (True, False)
        }
        numbers = []
        for affirmed, negated in ways:
            yes, no = (feature(text.format(**noun(name).slots)) for text in (affirmed, negated))
            (pp, pn), (ap, an) = ((means[k] @ yes, means[k] @ no) for k in (True, False))
            numbers.append(
                [(pp + ap - pn - an) / 4, (pp + pn - ap - an) / 4, (pp + an - pn - ap) / 4]
            )
        for form, three in zip(FORMS, numbers, strict=True):
            found[form.cue] = found[form.cue] + np.array(three) / len(every)
        row = categories[f"{name} ({n:,} photos)"]
        np.testing.assert_allclose(row[:3], np.mean(numbers, axis=0), atol=1e-4)
        yes, no = (f"there {noun(name).is_} {x}" for x in (noun(name).some, f"no {noun(name).one}"))
        says = [
            (p, feature(p.image) @ feature(yes) > feature(p.image) @ feature(no)) for p in photos
        ]
        right = [
            np.mean([said == kind for p, said in says if (name in p.inside) == kind])
            for kind in (True, False)
        ]
        assert row[3] == pytest.approx(100 * np.mean(right), abs=1e-3)
    for form in FORMS:
        np.testing.assert_allclose(cues[form.cue], found[form.cue], atol=1e-4)
    np.testing.assert_allclose(
        cues["all"], np.mean([cues[form.cue] for form in FORMS], axis=0), atol=1e-4
    )


def test_probes_answer_the_questions_that_texts_are_asked(problem, tmp_path):
    """With features that say what is there, probes are right about every photo."""
    content = instances_content()
    content["images"] = [{"id": i, "file_name": f"{i}.jpg"} for i in range(80)]
    there = np.random.default_rng(0).random((80, 4)) < 0.4
    there[:2] = [[True, False, False, False], [True, True, True, False]]
    content["annotations"] = [
        {"image_id": int(i), "category_id": int(c) + 1} for i, c in np.argwhere(there)
    ]
    write_json(tmp_path / "more" / "instances.json", content)
    problem = registry.get("both_polarity").load(AllThere((tmp_path / "more",)))
    images = np.array([there[int(ref.path[:-4])] for ref in problem.images], np.float32) + 0.1
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    texts = np.random.default_rng(1).normal(size=(len(problem.texts), 4)).astype(np.float32)
    found = numbers(problem.score(images, texts))
    assert found["probe_both"] > 0.95 and found["both_polarities"] < 0.7
    assert found["probe_absent"] >= found["probe_both"] <= found["probe_present"]


def test_photos_that_all_show_the_same_have_no_tables(tmp_path):
    content = instances_content()
    content["annotations"] = [{"image_id": i, "category_id": 2} for i in range(6)]
    write_json(tmp_path / "instances.json", content)
    problem = registry.get("both_polarity").load(AllThere((tmp_path,)))
    result = problem.score(*features(problem))
    assert not result.tables and "probe_both" not in numbers(result)


def test_the_report_shows_the_tables(problem, tmp_path):
    benchmark, out = registry.get("both_polarity"), tmp_path / "out"
    settings = {"models": {name: {"facts": {}} for name in ("a", "b")}, "seed": 0}
    kept = Results(out, settings, environment())
    kept.begin(benchmark, problem)
    for name in settings["models"]:
        kept.add("both_polarity", name, problem, problem.score(*features(problem)))
    page = report.write(out, DataRoots((tmp_path,)), gallery=0).read_text()
    document = json.loads((out / "results.json").read_text())
    for title, tables in document["benchmarks"]["both_polarity"]["tables"].items():
        assert title in page and list(tables) == ["a", "b"]
        for name, row in tables["a"]["rows"].items():
            assert f"<td>{escape(name)}</td>" in page and f"{row[2]:+.3f}" in page
    assert "probe both" in page and table_text(document).count("probe_both") == 1


def test_labels_decide_what_is_there(shared_data):
    problem = registry.get("both_polarity").load(AllThere((shared_data / "coco",)))
    from evals.reading import read_json

    content = read_json(shared_data / "coco" / "instances.json", dict)
    names = {row["id"]: row["name"] for row in content["categories"]}
    files = {row["id"]: row["file_name"] for row in content["images"]}
    inside = {(files[row["image_id"]], names[row["category_id"]]) for row in content["annotations"]}
    predictions = problem.score(*features(problem)).predictions
    rows = zip(predictions["item"], predictions["absent"], predictions["present"], strict=True)
    for item, absent, present in rows:
        assert (item, present) in inside and (item, absent) not in inside
    assert len(set(predictions["absent"])) > 40  # not always the same category


def test_liking_and_disliking_no_both_fail(problem):
    liking = numbers(problem.controls["prefers the negated text"]())
    assert liking["both_polarities"] == liking["all_four"] == 0
    assert (liking["absent"], liking["present"]) == (1, 0)
    disliking = numbers(problem.controls["prefers the affirmed text"]())
    assert disliking["both_polarities"] == disliking["all_four"] == 0
    assert (disliking["absent"], disliking["present"], disliking["mcq"]) == (0, 1, 0)


def test_only_the_words_tell_true_from_false(problem):
    """Where absent and present are exchanged, right becomes wrong: nothing hangs on positions."""
    images, texts = features(problem)
    result = problem.score(images, texts)
    mirrored = problem.score(-images, texts)  # every order is reversed
    for name in ("absent", "present", "mcq"):
        ours, theirs = numbers(result)[name], numbers(mirrored)[name]
        assert ours + theirs == pytest.approx(1) or name == "mcq"


def test_draws_depend_on_names_alone(tmp_path):
    write_json(tmp_path / "instances.json", instances_content())
    first = registry.get("both_polarity").load(AllThere((tmp_path,)))
    content = instances_content()
    for key in content:
        content[key] = content[key][::-1]
    for image in content["images"]:
        image["file_name"] = f"elsewhere/{image['file_name']}"
    write_json(tmp_path / "instances.json", content)
    second = registry.get("both_polarity").load(AllThere((tmp_path,)))
    pick = ("absent", "present")
    drawn = [
        dict(
            zip(
                [i.rpartition("/")[2] for i in p["item"]],
                zip(*(p[c] for c in pick), strict=True),
                strict=True,
            )
        )
        for p in (
            first.score(*features(first)).predictions,
            second.score(*features(second)).predictions,
        )
    ]
    assert drawn[0] == drawn[1]


def test_real_photos_are_found(shared_data):
    problem = registry.get("both_polarity").load(DataRoots((shared_data / "coco",)))
    assert problem.scored == problem.total and not problem.missing


def photos_of(folder, content):
    """Photos of an instance file: what is drawn for each, which are left out."""
    return read_photos(write_json(folder / "instances.json", content))


def test_present_and_absent(tmp_path):
    content = instances_content()
    inside = {
        i: {a["category_id"] for a in content["annotations"] if a["image_id"] == i}
        for i in range(6)
    }
    names = {c["id"]: c["name"] for c in content["categories"]}
    photos = {int(p.image.path[:12]): p for p in photos_of(tmp_path, content)}
    assert set(photos) == {i for i in range(6) if 0 < len(inside[i]) < 4}
    for i, photo in photos.items():
        there = {names[c] for c in inside[i]}
        assert photo.present in there and photo.absent not in there
        assert photo.second in there - {photo.present} if len(there) > 1 else photo.second == ""


def test_photos_with_everything_or_nothing_are_left_out(tmp_path):
    content = instances_content()
    content["annotations"] = [
        *({"image_id": 0, "category_id": c} for c in (1, 2, 3, 4)),
        {"image_id": 1, "category_id": 2},
    ]
    assert [p.image.path for p in photos_of(tmp_path, content)] == ["000000000001.jpg"]


@pytest.mark.parametrize(
    ("key", "record", "expected"),
    [
        (
            "annotations",
            {"image_id": 0, "category_id": 9},
            "category_id is not among the categories",
        ),
        ("annotations", {"category_id": 1}, '"image_id" is missing'),
        ("images", {"id": 9, "file_name": "000000000001.jpg"}, "an id occurs twice"),
        ("images", {"id": 9}, '"file_name" is empty'),
        ("categories", {"id": 9, "name": ""}, '"name" is empty'),
    ],
)
def test_bad_instance_files(tmp_path, key, record, expected):
    content = instances_content()
    content[key].append(record)
    with pytest.raises(InputError, match=r"instances\.json has \d problem") as caught:
        photos_of(tmp_path, content)
    assert expected in str(caught.value)


def test_another_json(tmp_path):
    with pytest.raises(InputError, match='the key "annotations" is missing'):
        photos_of(tmp_path, {"images": [{"id": 1, "file_name": "a.jpg"}]})
