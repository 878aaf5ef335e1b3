"""Runs of many shards: the same bytes as of one, and memory that does not grow with the run."""

import json
import tracemalloc

import pytest
from handmade_run import make_run

from bench.generation import write_coco
from data_gen import generate, leak, report
from data_gen.audit import audit
from data_gen.cli import main
from data_gen.export import export
from data_gen.labels import write_labels
from data_gen.manifest import left_out, status
from data_gen.records import write_table
from data_gen.report import RunSummary, write_report
from negclip_jax.common import storage, strict_json

EXPORTED = ("pairs.json", "pairs.parquet", "statements.parquet", "labels.json", "published.json")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One run in one shard and the same in eight, exported, audited and reported."""
    folder = tmp_path_factory.mktemp("scale")
    write_coco(folder, 24)
    command = ["run", f"--captions={folder}/captions.json", f"--instances={folder}/instances.json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate.Job, "run_id", lambda self, models: "r1")  # it is in every pair
        for size in (100, 3):
            out = folder / str(size)
            assert main([*command, f"--config.shard_images={size}", f"--out={out}"]) == 0
            (out / "sessions.jsonl").unlink()  # the seconds that it took
            export(out, out / "export")
            audit(out, folder / "instances.json")
            write_report(out)
    return folder


@pytest.mark.parametrize("name", [*(f"export/{name}" for name in EXPORTED), "audit.json",
                                  "report.html", "audit_sample.csv"])  # fmt: skip
def test_shards_change_no_byte(runs, name):
    one, many = (runs / size / name for size in ("100", "3"))
    assert one.read_bytes() == many.read_bytes() and len(one.read_bytes()) > 500


def test_files_are_what_json_would_write_of_the_whole(runs):
    for name in ("pairs.json", "published.json"):
        text = (runs / "3" / "export" / name).read_text()
        assert text == json.dumps(json.loads(text), ensure_ascii=False)
    source = json.loads((runs / "captions.json").read_text())
    published = json.loads((runs / "3" / "export" / "published.json").read_text())
    updated = [row.pop("updated_caption", None) for row in published["annotations"]]
    assert published == source and sum(text is not None for text in updated) > 50
    assert list(published) == ["info", "images", "annotations"]


def test_an_input_that_is_not_plain_is_published_all_the_same(runs, tmp_path, monkeypatch):
    def irregular(path, **options):
        yield "info", False, {}
        raise strict_json.Irregular

    monkeypatch.setattr(strict_json, "members", irregular)
    export(runs / "3", tmp_path)
    expected = runs / "3" / "export" / "published.json"
    assert (tmp_path / "published.json").read_bytes() == expected.read_bytes()


def many_shards(folder, number: int, photos: int):
    """A run of that many shards, each of so many photos with five captions and pairs each."""
    run = make_run(folder)
    images, captions = [], []
    for shard in range(number):
        part, tables = f"part-{shard:05d}.parquet", {}
        for i in range(photos * shard, photos * shard + photos):
            about = {"image_id": f"{i}", "file_name": f"{i:012d}.jpg"}
            images.append({"id": i, "file_name": about["file_name"]})
            for name, state in (("dog", "absent"), ("cat", "unsure")):
                verdict = {"object": name, "verdict": state, "mass": 0.9, "method": "logprobs"}
                verdict |= {"p_no": 0.5 + i % 400 / 1000, "p_yes": 0.1, "image_id": f"{i}"}
                tables.setdefault("verdicts", []).append(verdict)
                tables.setdefault("candidates", []).append(
                    {"image_id": f"{i}", "object": name, "source": "llm"}
                )
            for k in range(5):
                # Few different texts: words of texts are kept, up to a number.
                text = f"A bus {i % photos} near a place {k}"
                item = {"caption_id": f"{5 * i + k}", "caption": text}
                captions.append({"id": 5 * i + k, "image_id": i, "caption": item["caption"]})
                tables.setdefault("items", []).append(about | item)
                pair = {"pair_id": f"p{5 * i + k}", "object": "dog", "rewriter": "llm"}
                pair |= {"negated_caption": f"{item['caption']} with no dog", "accepted": k > 0}
                pair |= {"reasons": [] if k else ["no_cue"], "cue": "no", "clip_tokens": 12}
                pair |= {"p_no": 0.8, "mass": 0.9, "pipeline": "absence", "run_id": "r1"}
                pair |= {"models": {"rewrite": "m"}, "foils": ["A foil with no bus"]}
                tables.setdefault("pairs", []).append(about | item | pair)
        for name, rows in tables.items():
            write_table(run / name / part, name, rows)
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    boxes = {"images": images, "categories": [{"id": 1, "name": "dog"}], "annotations": []}
    (folder / "instances.json").write_text(json.dumps(boxes))
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["inputs"]["captions"]["path"] = str(folder / "captions.json")
    storage.write_json(run / "manifest.json", manifest)
    return run


COMMANDS = {
    "export": lambda run: export(run, run / "export"),
    "labels": lambda run: write_labels(run, run / "labels.json"),
    "report": write_report,
    "audit": lambda run: audit(run, run.parent / "instances.json"),
    "status": lambda run: (status(run), left_out(run)),
}


@pytest.fixture(scope="module", params=[20, pytest.param(100, marks=pytest.mark.long)])
def sizes(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    return [many_shards(folder / str(number), number, request.param) for number in (1, 3, 12)]


# Those that keep most take as much time as all others together.
MOST = ("export", "report", "audit")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in MOST else ()) for n in COMMANDS]
)
def test_four_times_the_captions_take_no_more_memory(sizes, name, monkeypatch):
    monkeypatch.setattr(leak, "GROUPS", 25)  # the sample of the audit, which is full then
    monkeypatch.setattr(report, "SAMPLE", 100)  # and that of the report

    def peak(run) -> int:
        tracemalloc.start()
        COMMANDS[name](run)
        _, found = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return found

    COMMANDS[name](sizes[0])  # fills the caches of words
    few, many = map(peak, sizes[1:])
    more = captions_of(sizes[2]) - captions_of(sizes[1])
    # What order or counting needs of each caption is bytes, not Python objects. Tables of words and
    # names grow with the first captions, by less than the room beside them.
    assert many - few < 200 * more + 60_000, (
        f"{few:,} bytes, and {many:,} with {more:,} captions more"
    )


def captions_of(run) -> int:
    return len(json.loads((run.parent / "captions.json").read_text())["annotations"])


def test_what_is_counted_as_it_is_read_is_right(sizes, monkeypatch):
    monkeypatch.setattr(report, "SAMPLE", 100)
    summary = RunSummary(sizes[1])
    number = captions_of(sizes[1])
    assert summary.rewrites.number == number == summary.rewrites.captions
    assert summary.rewrites.accepted == 0.8 * number == len(summary.rewrites.lengths)
    assert len(summary.rewrites.drawn) == 100 and len(summary.rewrites.doubtful) == 30
    assert [(row["code"], row["n"], len(row["examples"])) for row in summary.reasons()] == [
        ("no_cue", number // 5, 5)
    ]
    verdicts = [("absent", number // 5), ("unsure", number // 5)]
    assert summary.asked.verdicts.most_common() == verdicts
    # Each text of the first shard comes thrice.
    assert summary.rewrites.repeated() == 0.8 * number and summary.asked.absent == number
