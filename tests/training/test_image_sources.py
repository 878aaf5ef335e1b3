"""Runs on every source are those on the folder: killed, continued, by several processes."""

import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from processes import train_and_be_killed
from tiny_runs import assert_equal, read_metrics
from tiny_shards import write_parquet, write_records
from tiny_tars import write_photos

from negclip_jax.training.loop import train
from negclip_jax.training.setup import prepare

STEPS = 4
CHANGES = {
    "train.total": f"{STEPS} steps",
    "data.caption_mode": "mix",
    "eval.every": "2 steps",
    "eval.batch_size": 8,
    "checkpoint.every": "2 steps",
    "optim.eps": 1e-3,  # large, so that updates are smooth in the gradient
    "data.cache_features": False,
    "data.exact_resize": True,
    # Every process compiles: no gradient through the blocks is less to compile.
    "optim.freeze": ("vision/.*", "visual_projection", "text/(blocks|ln_final)/.*"),
    "runtime.timeout": 60.0,
}


def tars(images: Path, folder: Path) -> str:
    names = sorted(os.listdir(images))
    for i in range(3):
        write_photos(folder / f"t-{i}.tar", images, names[i::3])
    return f"wds:{folder}/t-{{0..2}}.tar"


def records(images: Path, folder: Path) -> dict[str, str]:
    """Ten to a file, so that their names, `a-0.array_record/3`, are in the order of the photos."""
    pattern, called = write_records(images, folder, files=4)
    content = json.loads((images.parent / "pairs.json").read_text())
    for image in content["images"]:
        image["file_name"] = called[image["file_name"]]
    (folder / "called.json").write_text(json.dumps(content))
    return {"data.images": f"arrayrecord:{pattern}", "data.pairs": f"{folder}/called.json"}


def prepared(images: Path, folder: Path) -> dict[str, str]:
    """A data set as tensorflow-datasets leaves it, in TFDS_DATA_DIR."""
    tfds = pytest.importorskip("tensorflow_datasets")
    from tensorflow_datasets.core.utils import file_utils

    class CocoCaptions(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        __module__ = "coco_captions"
        BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS' interface)
            tfds.core.BuilderConfig(name="2014", version=tfds.core.Version("1.1.0"))
        ]

        def _info(self):
            kinds = {"image": tfds.features.Image(encoding_format="png")}
            kinds |= {"image/filename": tfds.features.Text(), "image/id": np.int64}
            kinds["captions"] = tfds.features.Sequence({"text": np.str_, "id": np.int64})
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(kinds))

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, name in enumerate(sorted(os.listdir(images))):
                content = io.BytesIO((images / name).read_bytes())
                known = {"image": content, "image/filename": name, "image/id": i, "captions": []}
                yield i, known

    CocoCaptions(data_dir=folder, file_format="array_record").download_and_prepare()
    # For this process, which may have imported tensorflow-datasets before.
    file_utils.add_data_dir(str(folder))
    return {"data.images": "tfds:coco_captions/train"}


SOURCES = {
    "wds": lambda *where: {"data.images": tars(*where)},
    "parquet": lambda *where: {"data.images": f"parquet:{write_parquet(*where)}"},
    "arrayrecord": records,
    "tfds": prepared,
}


@pytest.fixture(scope="module")
def specs(tiny_pairs, tmp_path_factory) -> Iterator[dict[str, dict[str, str]]]:
    """What to change in the configuration of a run on the folder."""
    folder = tmp_path_factory.mktemp("sources")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder))
        yield {name: write(tiny_pairs / "images", folder) for name, write in SOURCES.items()}
    if (tfds := sys.modules.get("tensorflow_datasets")) is not None:
        tfds.core.utils.file_utils.clear_registered_data_dirs()


@pytest.mark.parametrize("source", SOURCES)
def test_batches_are_those_of_the_folder(
    source, specs, make_config, tmp_path, one_device, not_compiled
):
    loaders = [
        prepare(make_config(CHANGES | changes), str(tmp_path / name)).loader
        for name, changes in (("ours", specs[source]), ("theirs", {}))
    ]
    ours, theirs = (list(loader.batches(0, 5)) for loader in loaders)  # an epoch and more
    assert len(ours) == 5 and any(batch["image"].std() > 1 for batch in ours)
    for a, b in zip(ours, theirs, strict=True):
        assert_equal(a, b)


# What is read is compared above; of "wds", several processes are killed below.
KILLED = [
    pytest.param(s, marks=pytest.mark.slow if s == "arrayrecord" else pytest.mark.long)
    for s in SOURCES
]


@pytest.mark.parametrize("source", KILLED)
def test_killed_and_started_again(
    source, specs, finished_run, short_run, make_config, forked, tmp_path, one_device
):
    """The features of images are kept here; the run that nothing disturbed read the folder."""
    changes = finished_run.changes | specs[source]
    workdir, file = tmp_path / "run", tmp_path / "changes.json"
    train_and_be_killed(forked, short_run | changes, file, workdir, 3)
    evaluators = {"custom": lambda _: lambda params: {"scale": float(params["logit_scale"])}}
    train(make_config(changes), str(workdir), evaluators)
    ours, theirs = (w / "metrics.jsonl" for w in (workdir, finished_run.workdir))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.fixture(scope="module")
def by_one(make_config, tmp_path_factory) -> dict:
    """Metrics of a run of one process on the folder."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    train(make_config(CHANGES), str(workdir))
    return read_metrics(workdir)


@pytest.fixture
def run(specs, short_run, forked):
    """Function of source, number of processes and workdir to how they ended; has four devices."""

    def run(source: str, processes: int, workdir: Path, **more) -> list[int]:
        cached = source.endswith("wds") == (processes == 2)
        changes = CHANGES | specs.get(source, {}) | {"data.cache_features": cached}
        options = {"processes": processes, "devices": 4 // processes, "seconds": 180}
        ends = forked.run(short_run | changes, workdir, **options, **more)
        return [end.status for end in ends]

    return run


LONG = [
    pytest.param(source, processes, marks=pytest.mark.long)
    for source in SOURCES
    for processes in (2, 4)
    if (source, processes) != ("wds", 2)
]


@pytest.mark.slow
@pytest.mark.parametrize(("source", "processes"), [("wds", 2), *LONG])
def test_several_processes_killed_and_started_again_equal_one(
    source, processes, run, by_one, tmp_path
):
    """`kill -9` of one stops all; then they end as one process on the folder does."""
    workdir = tmp_path / "run"
    ended = run(source, processes, workdir, events={1: {"killed_at_step": 4}})
    assert ended[1] == -signal.SIGKILL and 0 not in ended
    assert run(source, processes, workdir) == [0] * processes
    found = read_metrics(workdir)
    assert list(found) == list(by_one)
    for step, numbers in found.items():
        for name in numbers.keys() - {"grad_norm"}:
            np.testing.assert_allclose(
                numbers[name], by_one[step][name], 1e-5, 1e-6, err_msg=f"{step} {name}"
            )


@pytest.mark.long
@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("source", SOURCES)
def test_several_processes_are_bit_equal_to_those_on_the_folder(source, processes, run, tmp_path):
    """Of one number of processes: killed and started again here, undisturbed there."""
    killed = run(source, processes, tmp_path / "ours", events={0: {"killed_at_step": 3}})
    assert 0 not in killed
    assert run(source, processes, tmp_path / "ours") == [0] * processes
    cached = "wds" if source == "wds" else ""
    assert run(f"folder {cached}", processes, tmp_path / "theirs") == [0] * processes
    ours, theirs = (tmp_path / name / "metrics.jsonl" for name in ("ours", "theirs"))
    assert ours.read_bytes() == theirs.read_bytes()
