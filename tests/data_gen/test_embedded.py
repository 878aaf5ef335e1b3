"""Without any model: real COCO captions, photos and boxes into pairs that training reads."""

import json
import subprocess
import sys

import pytest
from fault_server import FaultServer, table, tables

from data_gen.annotations import InstanceVerifier
from data_gen.cli import main
from negclip_jax.data.pairs import read_pairs

IMAGES = 341


def command(data, out, *more):
    return [
        "run",
        f"--captions={data}/coco/captions.json",
        f"--images={data}/coco/photos",
        f"--instances={data}/coco/instances.json",
        f"--out={out}",
        "--config.shard_images=100",
        f"--config.check.tokenizer={data}/clip_tokenizer",
        *more,
    ]


@pytest.fixture(scope="module")
def finished(shared_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("embedded") / "run"
    assert main(command(shared_data, out)) == 0
    return out


@pytest.mark.slow
def test_pairs_are_true_of_the_photos_and_training_reads_them(shared_data, finished, capsys):
    assert main(["export", f"--out={finished}"]) == 0
    assert "python launch.py" in capsys.readouterr().out
    pairs = read_pairs(finished / "export" / "pairs.json")
    boxes = InstanceVerifier(shared_data / "coco" / "instances.json")
    assert len(pairs) > 3 * IMAGES
    for pair in pairs:
        assert pair.object not in boxes.present[pair.image_id]
        assert (shared_data / "coco" / "photos" / pair.image).is_file()
    # Of the others' photos nothing is known to be there, or only what may be a toy.
    assert sum(bool(pair.foils) for pair in pairs) > 0.7 * len(pairs)
    # "A cat, but no dog" stands for captions that name all that is there, and may repeat.
    assert len({pair.negated for pair in pairs}) > 0.93 * len(pairs)


@pytest.mark.slow
def test_training_starts_from_the_export_as_it_is(
    shared_data, finished, make_config, one_device, tmp_path
):
    from negclip_jax.training.loop import train

    assert main(["export", f"--out={finished}", f"--to={tmp_path}"]) == 0
    changes = {
        "data.pairs": str(tmp_path / "pairs.json"),
        "data.images": str(shared_data / "coco" / "photos"),
        "data.foils": 2,
        "train.total": "2 steps",
        "eval.every": "2 steps",
    }
    assert int(train(make_config(changes), str(tmp_path / "run")).step) == 2
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "val/foil_accuracy" in metrics


@pytest.mark.slow
def test_report_and_audit_of_the_run(shared_data, finished, capsys):
    instances = shared_data / "coco" / "instances.json"
    assert main(["audit", f"--out={finished}", f"--instances={instances}"]) == 0
    assert "accepted pairs whose object is there  0.0 %" in capsys.readouterr().out
    assert main(["report", f"--out={finished}"]) == 0
    page = (finished / "report.html").read_text()
    accepted = sum(row["accepted"] for row in table(finished, "pairs"))
    assert f"{accepted:,}" in page and (finished / "audit_sample.csv").is_file()


def test_the_grammar_has_many_cues_and_positions(finished):
    rows = [row for row in table(finished, "pairs") if row["accepted"]]
    assert len({row["cue"] for row in rows}) >= 6
    assert {row["cue_position"] for row in rows} >= {"before", "after"}
    assert all(row["rewriter"].startswith("template:") for row in rows)
    assert all(row["clip_tokens"] <= 77 for row in rows)
    assert {row["method"] for row in table(finished, "verdicts")} == {"instances"}


@pytest.mark.slow
def test_the_same_command_writes_the_same_bytes(shared_data, finished, tmp_path):
    assert main(command(shared_data, tmp_path / "again", "--config.engine.window=3")) == 0
    assert tables(tmp_path / "again") == tables(finished)
    seeds = [tmp_path / "1", tmp_path / "2"]
    for out in seeds:
        assert main(command(shared_data, out, f"--seed={out.name}", "--limit=20")) == 0
    assert tables(seeds[0]) != tables(seeds[1])


def test_missing_and_broken_photos_are_rejects(shared_data, tmp_path):
    (tmp_path / "photos" / "val2017").mkdir(parents=True)
    content = json.loads((shared_data / "coco" / "captions.json").read_text())
    names = sorted((i["id"], i["file_name"]) for i in content["images"])[:3]
    source = shared_data / "coco" / "photos"
    for _, name in names[:2]:
        (tmp_path / "photos" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "photos" / name).write_bytes((source / name).read_bytes())
    broken = tmp_path / "photos" / names[1][1]
    broken.write_bytes(broken.read_bytes()[:2000])
    more = (f"--images={tmp_path / 'photos'}", "--limit=3")
    assert main(command(shared_data, tmp_path / "run", *more)) == 0
    codes = {row["file_name"]: row["code"] for row in table(tmp_path / "run", "rejects")}
    assert codes == {names[1][1]: "image_undecodable", names[2][1]: "image_missing"}
    assert {row["file_name"] for row in table(tmp_path / "run", "pairs")} == {names[0][1]}


@pytest.mark.slow
def test_no_jax_is_needed(shared_data, tmp_path):
    program = (
        "import sys\n"
        "for name in ('jax', 'jaxlib', 'flax', 'optax', 'orbax', 'torch', 'transformers'):\n"
        "    sys.modules[name] = None\n"  # an import of it fails
        "from data_gen.cli import main\n"
        "sys.exit(main(sys.argv[1:]) or main(['export', sys.argv[5]]))\n"
    )
    arguments = command(shared_data, tmp_path / "run", "--limit=5")
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert read_pairs(tmp_path / "run" / "export" / "pairs.parquet")


def test_questions_of_vqa_without_a_model(shared_data, tmp_path):
    content = json.loads((shared_data / "coco" / "captions.json").read_text())
    image = min(content["images"], key=lambda i: i["id"])["id"]
    asked = ["Is the man wearing a hat?", "Is it raining?", "Is there a bus?", "What is it?"]
    said = [("no", 10), ("no", 9), ("no", 5), ("a cat", 10)]
    questions = [
        {"question_id": i, "image_id": image, "question": text} for i, text in enumerate(asked)
    ]
    answers = [
        {"question_id": i, "answers": [{"answer": word}] * n + [{"answer": "yes"}] * (10 - n)}
        for i, (word, n) in enumerate(said)
    ]
    (tmp_path / "q.json").write_text(json.dumps({"questions": questions}))
    (tmp_path / "a.json").write_text(json.dumps({"annotations": answers}))
    out = tmp_path / "run"
    more = ("--pipeline=vqa", f"--questions={tmp_path}/q.json", f"--answers={tmp_path}/a.json")
    assert main(command(shared_data, out, *more)) == 0
    rows = [row for row in table(out, "pairs") if row["accepted"]]
    assert {row["question"] for row in rows} == set(asked[:2])
    assert {row["object"] for row in rows} == {"hat", "raining"}
    assert all(
        "n" in row["cue"] and row["caption"].rstrip(".") in row["negated_caption"] for row in rows
    )


@pytest.mark.slow
def test_boxes_answer_first_and_the_model_what_they_leave_open(shared_data, tmp_path):
    names = {"dog": "annotated", "lamp": "not annotated", "kite": "annotated", "curtain": "not"}
    content = json.loads((shared_data / "coco" / "captions.json").read_text())
    objects = {str(image["id"]): list(names) for image in content["images"]}
    (tmp_path / "objects.json").write_text(json.dumps(objects))
    with FaultServer({}, ["dog"]) as server:
        more = (f"--objects={tmp_path / 'objects.json'}", f"--mllm-url={server.url}", "--limit=40")
        assert main(command(shared_data, tmp_path / "run", *more)) == 0
    verdicts = table(tmp_path / "run", "verdicts")
    methods = {(row["object"], row["method"]) for row in verdicts}
    assert ("lamp", "logprobs") in methods and ("dog", "instances") in methods
    boxes = InstanceVerifier(shared_data / "coco" / "instances.json")
    for row in table(tmp_path / "run", "pairs"):
        assert row["object"] not in boxes.present.get(row["image_id"], ())


def test_a_word_of_a_caption_is_no_object_where_boxes_know_the_photo(shared_data, tmp_path):
    """An orange cat is no orange, a truck bed no bed: neither is denied as if it were there."""
    texts = {1: "An orange and white cat on a rug", 2: "A man reaches into the truck bed"}
    names = json.loads((shared_data / "coco" / "instances.json").read_text())["categories"]
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 9, "height": 9} for i in texts]
    rows = [{"id": i, "image_id": i, "caption": text} for i, text in texts.items()]
    other = {"id": 3, "file_name": "3.jpg", "width": 9, "height": 9}  # with all that can be denied
    boxes = [
        {"id": i, "image_id": 3, "category_id": name["id"], "bbox": [0, 0, 5, 5], "area": 25}
        for i, name in enumerate(names)
    ]
    for name, content in (
        ("captions", {"images": images, "annotations": rows}),
        ("instances", {"images": [*images, other], "categories": names, "annotations": boxes}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    inputs = [f"--{name}={tmp_path}/{name}.json" for name in ("captions", "instances")]
    assert main(["run", "--export", *inputs, f"--out={tmp_path}/run"]) == 0
    pairs = read_pairs(tmp_path / "run" / "export" / "pairs.json")
    assert len(pairs) == 2 and not any(pair.foils for pair in pairs)
    assert all(texts[i].lower()[3:] in pairs[i - 1].negated.lower() for i in texts)
