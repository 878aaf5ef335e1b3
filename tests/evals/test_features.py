"""Evaluation on image features that another library computed: the numbers of the photos."""

import json
import re
import shutil

import numpy as np
import pytest

from evals import __main__ as command_line
from evals import models
from evals.images import DataRoots
from negclip_jax.common.errors import InputError
from negclip_jax.data import feature_files
from negclip_jax.data.feature_files import ImageFeatures
from negclip_jax.data.images import ImageRef
from negclip_jax.embeddings.encoder import GivenImages
from negclip_jax.pretrained import CLIP

pytestmark = pytest.mark.usefixtures("one_device_mesh")


@pytest.fixture(autouse=True)
def keeps_logging(monkeypatch):
    monkeypatch.setattr("negclip_jax.runtime.console.set_up_logging", lambda: None)


@pytest.fixture
def own(tiny_benchmarks, tiny_checkpoint):
    """Names, features and model of the benchmark's photos, as `feature_files.write` takes them."""
    model = CLIP.from_pretrained(tiny_checkpoint)
    photos = sorted((tiny_benchmarks / "photos").iterdir())
    names = [f"elsewhere/{photo.name}" for photo in photos]
    return names, np.asarray(model.encode_image(model.preprocess(photos))), "x/base"


@pytest.fixture
def evaluate(tiny_benchmarks, tiny_checkpoint, tmp_path, monkeypatch):
    """Function of a feature file's content and flags to exit status and scores by benchmark."""

    def run(content, *flags: str) -> tuple[int, dict]:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        command = [f"--model=m={tiny_checkpoint}", f"--data={tiny_benchmarks}", *flags]
        if content is not None:
            feature_files.write(tmp_path / "f.parquet", *content)
            command.append(f"--features={tmp_path / 'f.parquet'}")
        status = command_line.main([*command, f"--out={tmp_path / 'out'}"])
        written = tmp_path / "out" / "results.json"
        found = json.loads(written.read_text()) if written.is_file() else {}
        return status, found

    return run


def scores(found: dict) -> dict:
    return {
        name: entry["rows"]["m"]["metrics"]["accuracy"]["value"]
        for name, entry in found["benchmarks"].items()
    }


def test_the_numbers_are_those_of_the_photos(evaluate, own, tiny_benchmarks):
    status, photos = evaluate(None)
    assert status == 0
    (tiny_benchmarks / "photos").unlink()
    status, given = evaluate(own)
    assert status == 0 and scores(given) == scores(photos) and len(scores(given)) == 2
    said = given["settings"]["models"]["m"]
    assert said["facts"]["preprocessing"].startswith("image features of x/base in ")
    changed = (own[0], own[1] * np.linspace(-1, 2, len(own[0]))[:, None].astype(np.float32), own[2])
    other = evaluate(changed)[1]
    assert other["settings"]["models"]["m"]["fingerprint"]["image"] != said["fingerprint"]["image"]
    assert scores(other) != scores(given)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda n, f, m: (n[:-1], f[:-1], m), r"1 photos are not in .*f\.parquet.*: 9\.png"),
        (lambda n, f, m: (n, f[:, 1:], m), r"features of 39 numbers, .* texts have 40"),
        (lambda n, f, m: (n, np.where(f == f[3], np.nan, f), m), r"1 photos are not .*: 11\.png"),
        (lambda n, f, m: (n, np.where(f == f[4], 0, f), m), r"1 photos are not in .*: 2\.png"),
        (lambda n, f, m: (["x", *n[1:]], f, m), r"1 photos are not in .*: 0\.png"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_told_in_one_line(evaluate, own, change, said, capsys):
    status, found = evaluate(change(*own))
    assert status == 1 and not found.get("benchmarks")
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert re.search(said, lines[0])


def test_a_subset_is_scored_where_it_is_allowed(evaluate, own):
    status, found = evaluate((own[0][1:], own[1][1:], own[2]), "--allow-subset")
    assert status == 0 and found["benchmarks"]["tiny"]["missing"] == 1


def names_of(tmp_path, names: list[str], rows=None) -> DataRoots:
    rows = np.eye(len(names), 4, dtype=np.float32) if rows is None else rows
    feature_files.write(tmp_path / "f.parquet", names, rows, "")
    return DataRoots((tmp_path,), features=ImageFeatures(str(tmp_path / "f.parquet")))


def test_names_are_found_as_those_of_photos_are(tmp_path):
    names = ["val2014/COCO_val2014_000000000139.jpg", "VOC2007/000001.jpg", "other/000001.jpg"]
    roots = names_of(tmp_path, [*names, "é.JPG"])
    for wanted, found in (
        ("val2014/COCO_val2014_000000000139.jpg", names[0]),
        ("images/val2017/000000000139.jpg", names[0]),
        ("VOC2007/JPEGImages/000001.jpg", names[1]),
        ("e\u0301.jpg", "é.JPG"),
        ("celeba/000001.jpg", None),
        ("none.jpg", None),
    ):
        assert roots.feature_of(wanted) == found
    assert roots.missing(["none.jpg", names[1], "none.jpg"]) == ["none.jpg"]
    with pytest.raises(InputError, match=r"a\.jpg may be p/a\.jpg or q/a\.jpg in .*, which differ"):
        names_of(tmp_path, ["p/a.jpg", "q/a.jpg"]).feature_of("a.jpg")
    same = names_of(tmp_path, ["p/a.jpg", "q/a.jpg"], np.ones((2, 4), np.float32))
    assert same.feature_of("a.jpg") == "p/a.jpg"


def test_parts_of_photos_have_no_features(tmp_path):
    roots = names_of(tmp_path, ["a.jpg", "b.jpg"])
    ref, part = ImageRef("a.jpg"), ImageRef("b.jpg", (0, 0, 1, 1))
    images = GivenImages([ref, part], *roots.given)
    np.testing.assert_array_equal(images.features([ref]), np.eye(1, 4))
    with pytest.raises(InputError, match=r"1 images cannot be used: b\.jpg: .* of whole photos"):
        images.features([ref, part])
    assert images.unusable([ref, ImageRef("c.jpg")]) == {
        ImageRef("c.jpg"): f"c.jpg has no feature in {tmp_path / 'f.parquet'}"
    }


def test_features_of_another_model_are_refused_where_the_run_says_its_base(
    finished_run, tmp_path, monkeypatch
):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run.workdir, workdir)
    config = json.loads((workdir / "config.json").read_text())
    features = names_of(tmp_path, ["a"], np.ones((1, 40), np.float32)).features
    features.model = "x/other"
    assert models.load(str(workdir), features=features).features is features  # a folder's name

    def based_on(base: str, trained_on=None):
        said = {"model": config["model"] | {"checkpoint": base}}
        said |= {"data": config["data"] | {"features": trained_on}}
        (workdir / "config.json").write_text(json.dumps(config | said))
        return models.load(str(workdir), features=features)

    with pytest.raises(InputError, match=r"the model x/other, and .* was trained from x/base"):
        based_on("x/base")
    assert based_on("x/other") and based_on("timm/other") and based_on("x/base", "f.parquet")
