"""Every command, and every user error as a one-line message with the right exit status."""

import json

import pytest
from fault_server import POOL, FaultServer, arguments, table, world

from data_gen.cli import main


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "w"
    return folder, world(folder, 4)


@pytest.fixture(scope="module")
def finished(scene, tmp_path_factory):
    folder, shows = scene
    out = tmp_path_factory.mktemp("run") / "run"
    with FaultServer(shows, POOL) as server:
        assert main(arguments(folder, out, server)) == 0
    return out


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("run --out={out}", "--captions is missing"),
        ("run --out={out} --captions={c}", "give --instances, or --llm-url and --mllm-url"),
        ("run --out={out} --captions={c} --llm-url=http://x/v1", "give --instances"),
        (
            "run --out={out} --captions={c} --llm-url=http://x/v1 --mllm-url=http://x/v1",
            "--images is missing",
        ),
        (
            "run --out={out} --captions={c} --mllm-url=x --llm-url=y --images={p}",
            "no server address",
        ),
        ("run --out={out} --captions={c} --config.verify.mas=1", "no configuration key"),
        (
            "run --out={out} --captions={c} --config.verify.min_answer_probability=2",
            "must be between 0 and 1",
        ),
        ("run --out={out} --captions={c} --config=:none", "unknown variant 'none'"),
        ("run --out={out} --captions={c} --pipeline=vqa", "pipeline vqa needs"),
        ("run --out={out} --captions={c} --pipeline=vqa --questions=q", "belong together"),
        ("run --out={out} --captions={none} --instances={c}", "cannot be read: No such file"),
        ("run --out={out} --captions={c} --config.propose.by=llm", "give --llm-url"),
        (
            "run --out={out} --captions={c} --instances={c} --images=.",
            "none of the first 4 photos is in",
        ),
        ("status --out={none}", "holds no run of data_gen"),
        ("export --out={none}", "holds no run of data_gen"),
        ("probe", "there is nothing to probe"),
        ("batch-import --out={out} {none}", "cannot be read"),
    ],
)
def test_mistakes(scene, tmp_path, capsys, command, said):
    paths = {"out": tmp_path / "out", "none": tmp_path / "none", "p": scene[0] / "photos"}
    paths["c"] = scene[0] / "captions.json"
    status = main(command.format(**paths).split())
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ") and "Traceback" not in error
    assert status == 2 and (not said.startswith("give") or not (tmp_path / "out").exists())


def test_an_unknown_flag(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["run", "--out=x", "--captoins=y"])
    assert caught.value.code == 2 and "--captoins=y" in capsys.readouterr().err


def test_probe(scene, capsys):
    with FaultServer(scene[1], POOL, logprobs=False, choice=True, prefix_cache=True) as server:
        assert main(["probe", f"--llm-url={server.url}", f"--mllm-url={server.url}"]) == 0
    found, look, rewrite, doubt = capsys.readouterr().out.splitlines()  # one server, asked once
    assert found == (
        "llm and mllm: loopback (logprobs no, choice structured_outputs, JSON schema no, "
        "several questions in one request no, 2341 tokens a photo, prefix cache yes, "
        "several photos in one text request no, context 8192)"
    )
    assert "Is there a red circle in this image? (there is one) 'no'" in look
    assert "does it see photos?" in doubt
    assert "'A man rides a horse on a beach, with no umbrella in sight.'" in rewrite


def test_status(finished, capsys):
    assert main(["status", f"--out={finished}"]) == 0
    said = capsys.readouterr().out
    assert "images      4 of 4 in 1 finished shards" in said
    assert "captions    12 of 12" in said and "12 accepted" in said
    assert "absent" in said and "verify      " in said and "done at" in said


def test_retry_of_a_stage(scene, tmp_path, capsys):
    folder, shows = scene
    out = tmp_path / "run"
    with FaultServer(shows, POOL) as server:
        command = arguments(folder, out, server)
        assert main(command) == 0
        before = server.counts.by_stage.copy()
        assert main(["retry", "--stage=rewrite", *command[1:]]) == 0
        assert "4 answers forgotten" in capsys.readouterr().out
        assert server.counts.by_stage["rewrite"] == 2 * before["rewrite"] - 1  # of the probe
        assert server.counts.by_stage["verify"] == before["verify"]
        assert main(["retry", "--stage=nothing", *command[1:]]) == 2
    assert "it has those of: propose, rewrite, verify" in capsys.readouterr().err


def test_plan_from_assumptions_and_from_a_run(scene, finished, capsys):
    folder, _ = scene
    base = ["plan", f"--captions={folder}/captions.json", f"--images={folder}/photos"]
    urls = ["--llm-url=http://x/v1", "--mllm-url=http://x/v1", "--config.prices.mllm_input=1000000"]
    assert main([*base, *urls]) == 0
    assumed = capsys.readouterr().out
    assert "4 images, 12 captions; rates assumed" in assumed and "hours: unknown" in assumed
    assert main([*base, *urls, f"--out={finished}"]) == 0
    measured = capsys.readouterr().out
    assert "rates measured on 4 images" in measured and "12 pairs" in measured
    verdicts = table(finished, "verdicts")
    tokens = sum(row["prompt_tokens"] for row in verdicts)
    assert f"{tokens:,}" in measured and "hours of waiting" in measured


def test_plan_measures_a_sample_that_the_run_then_has(scene, tmp_path, capsys):
    folder, shows = scene
    with FaultServer(shows, POOL) as server:
        command = arguments(folder, tmp_path / "run", server)
        assert main(["plan", *command[1:], "--sample=2"]) == 0
        said = capsys.readouterr().out
        assert "rates measured on 2 images" in said and "verdicts absent" in said
        sampled = server.counts.by_stage.copy()
        assert main(command) == 0
        assert server.counts.by_stage["propose"] == 2 * sampled["propose"] == 4
    assert main(["plan", *command[1:3], "--sample=2", "--instances=x"]) == 2


def test_the_manifest_explains_the_run(finished):
    manifest = json.loads((finished / "manifest.json").read_text())
    rows = table(finished, "pairs")
    assert manifest["counts"]["pairs"] == len(rows) and manifest["counts"]["accepted"] == 12
    assert {row["run_id"] for row in rows} == {manifest["run_id"]}
    # An object that other captions name was proposed by no prompt.
    assert set(rows[0]["prompt_ids"].values()) - {None} <= set(manifest["prompts"])
    assert manifest["verify_method"] == "logprobs" and manifest["capabilities"]["mllm"]["images"]
    assert len(manifest["inputs"]["captions"]["sha256"]) == 64
    assert manifest["calls"]["verify"]["prompt_tokens"] > 0 and manifest["packages"]["pyarrow"]


def answers(requests: list[str], server: FaultServer) -> list[str]:
    """What a batch service writes, last request first."""
    lines = []
    for request in map(json.loads, reversed(requests)):
        body = server._answer(request["body"])
        response = {"status_code": 200, "body": body}
        lines.append(json.dumps({"custom_id": request["custom_id"], "response": response}))
    return lines


def test_batch_files_there_and_back(scene, finished, tmp_path, capsys):
    """Rounds of export, service and import, out of order, end in the same pairs."""
    folder, shows = scene
    out = tmp_path / "run"
    inputs = [f"--captions={folder}/captions.json", f"--images={folder}/photos"]
    models = [
        "--llm-model=loopback",
        "--mllm-model=loopback",
        "--config.verify.questions_per_round=2",
    ]
    rounds = 0
    with FaultServer(shows, POOL) as server:
        while main(["batch-export", f"--out={out}", *inputs, *models]) == 1:
            rounds += 1
            assert rounds < 5
            written = sorted((out / "batch").glob("*.jsonl"))
            requests = [line for path in written for line in path.read_text().splitlines()]
            (tmp_path / "output.jsonl").write_text("\n".join(answers(requests, server)))
            for path in written:
                path.unlink()
            assert main(["batch-import", f"--out={out}", str(tmp_path / "output.jsonl")]) == 0
            assert f"{len(requests)} imported, 0 failed" in capsys.readouterr().out
    assert rounds == 4  # propose, verify in two waves, rewrite
    ours, live = table(out, "pairs"), table(finished, "pairs")
    assert [row["negated_caption"] for row in ours] == [row["negated_caption"] for row in live]


@pytest.mark.parametrize("command", ["audit", "status", "report", "export", "--help", "run --help"])
def test_a_reader_that_stops_is_no_error(finished, forked, tmp_path, command):
    """`audit | head`: what is written to a closed pipe is no error."""
    more = {"audit": [f"--out={finished}", f"--instances={tmp_path}/i.json"]}
    boxes = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "dog"}]}
    (tmp_path / "i.json").write_text(json.dumps(boxes))
    given = [] if "--help" in command else more.get(command, [f"--out={finished}"])
    argv = ["-m", "data_gen", *command.split(), *given]
    (end,) = forked.finish([argv], events=[{"nobody_reads": True}])
    assert end.output == "" and end.status == (0 if "--help" in command else 141)
