"""Photos whose captions share requests: fewer calls, the same answers, none at a wrong place."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fault_server import (
    POOL,
    FaultServer,
    arguments,
    first,
    has_photo,
    rewrites,
    says,
    shares,
    table,
    tables,
    world,
)

from bench.loopback import last_turn
from data_gen import settings
from data_gen.build import Models
from data_gen.cli import main
from data_gen.engines.probe import Capabilities
from data_gen.generate import prepare
from data_gen.manifest import error_codes

IMAGES, CAPTIONS = 7, 21  # in shards of 4 and 3
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "w"
    return folder, world(folder, IMAGES)


def run(scene, out, *more, faults=None, status=0, many=True) -> FaultServer:
    """Runs with a server that answers for several photos, unless `many` is False."""
    folder, shows = scene
    with FaultServer(shows, POOL, faults=faults or {}, many=many) as server:
        assert main(arguments(folder, out, server, *more)) == status
    return server


def asked(server: FaultServer) -> dict[str, int]:
    """Requests by stage, but for the probe's one proposal for several photos and one rewrite."""
    stages = server.counts.by_stage
    return {"propose": stages["propose"] - 1, "rewrite": stages["rewrite"] - 1}


def proposed(out) -> dict[str, list[str]]:
    """What the LLM named, by image."""
    found: dict[str, list[str]] = {}
    for row in table(out, "candidates"):
        if row["source"] == "llm":
            found.setdefault(row["image_id"], []).append(row["object"])
    return found


def check_places(scene, out) -> None:
    """Every caption has its own text, about an object that its photo does not show."""
    digests = {row["image_id"]: row["image_sha256"] for row in table(out, "items")}
    rows = [row for row in table(out, "pairs") if row["accepted"]]
    assert len(rows) == CAPTIONS
    for row in rows:
        text = f"{row['caption'].rstrip('. ')}, with no {row['object']} in sight."
        assert row["negated_caption"] == text
        assert row["object"] not in scene[1][digests[row["image_id"]]]


@pytest.fixture(scope="module")
def calm(scene, tmp_path_factory):
    """A run that nothing disturbed, and the bodies of its requests."""
    out = tmp_path_factory.mktemp("calm") / "run"
    server = run(scene, out)
    assert asked(server) == {"propose": 2, "rewrite": 2}
    check_places(scene, out)
    return out, server.counts.by_body


@pytest.fixture(scope="module")
def one_by_one(scene, tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "run"
    server = run(scene, out, "--config.llm.images_per_request=1")
    assert asked(server) == {"propose": IMAGES, "rewrite": IMAGES}
    check_places(scene, out)
    return out


def test_the_same_is_named_and_written_as_photo_by_photo(calm, one_by_one):
    assert proposed(calm[0]) == proposed(one_by_one)
    for name in ("items", "candidates", "verdicts"):
        rows = ([{**row, "key": None} for row in table(out, name)] for out in (calm[0], one_by_one))
        assert next(rows) == next(rows)


def test_the_calls_of_a_shared_request_count_once(calm, capsys):
    calls = json.loads((calm[0] / "manifest.json").read_text())["calls"]
    assert (calls["propose"]["calls"], calls["rewrite"]["calls"]) == (2, 2)
    assert main(["status", f"--out={calm[0]}"]) == 0
    assert "propose     2 calls" in capsys.readouterr().out
    assert main(["report", f"--out={calm[0]}"]) == 0


@pytest.mark.parametrize(
    "flags",
    [
        ("engine.concurrency=1", "engine.start_concurrency=1"),
        ("engine.concurrency=32", "engine.start_concurrency=32"),
        ("engine.window=1",),
        ("engine.window=5", "engine.cache=off"),
    ],
)
def test_tables_do_not_depend_on_how_much_is_in_flight(scene, calm, tmp_path, flags):
    run(scene, tmp_path / "run", *(f"--config.{flag}" for flag in flags))
    assert tables(tmp_path / "run") == tables(calm[0])


@pytest.mark.parametrize("number", [11, 12, 13, 15, 18, 19, 20])
def test_stopped_at_a_request_and_gone_on_it_is_the_same(scene, calm, tmp_path, number):
    """The server refuses the key from that request on; then it is repaired."""
    left = first(number)
    run(scene, tmp_path / "run", faults={"401": lambda body: not left(body)}, status=3)
    server = run(scene, tmp_path / "run")
    assert tables(tmp_path / "run") == tables(calm[0])
    assert set(server.counts.by_body) <= set(calm[1])


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_killed_or_interrupted_it_goes_on_to_the_same_bytes(scene, calm, forked, tmp_path, signum):
    folder, shows = scene
    with FaultServer(shows, POOL, many=True, latency=0.1) as server:
        command = arguments(folder, tmp_path / "run", server, "--config.engine.window=2")
        started = time.monotonic()
        process = forked.start(["-m", "data_gen", *command], tmp_path / "log")
        while server.counts.by_stage["verify"] < 6 and time.monotonic() < started + 60:
            time.sleep(0.005)
        os.kill(process.pid, signum)
        stopped = time.monotonic()
        assert process.wait(60) == (130 if signum == signal.SIGINT else -signum)
        assert time.monotonic() < stopped + 25  # no photo waits for one that never begins
        assert len(list((tmp_path / "run" / "done").glob("*"))) < 2
        assert main(command) == 0
    assert set(server.counts.by_body) <= set(calm[1])
    assert tables(tmp_path / "run") == tables(calm[0])


@pytest.mark.parametrize("words", ["shuffled", "one missing"])
def test_no_photo_and_no_caption_gets_the_answer_of_another(scene, calm, tmp_path, words):
    few = ("--config.llm.images_per_request=4",)  # the probe is answered as badly
    server = run(scene, tmp_path / "run", *few, faults={words: shares})
    assert server.given[words] > 4
    assert proposed(tmp_path / "run") == proposed(calm[0])
    check_places(scene, tmp_path / "run")
    assert {row["attempt"] for row in table(tmp_path / "run", "pairs")} == {0}  # none was refused
    spent = sum(asked(server).values())
    assert spent > 14 if words == "shuffled" else 4 < spent < 14


def test_a_server_that_cannot_is_asked_photo_by_photo(scene, one_by_one, tmp_path):
    server = run(scene, tmp_path / "run", many=False)
    assert server.counts.by_stage["propose"] == IMAGES
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["images_per_request"] == 1
    assert proposed(tmp_path / "run") == proposed(one_by_one)
    told = run(scene, tmp_path / "told", "--config.llm.images_per_request=4", many=False)
    assert told.counts.by_stage["propose"] == IMAGES  # after an answer that is none
    assert asked(told)["rewrite"] == 2
    check_places(scene, tmp_path / "told")


def test_a_refused_joint_request_costs_nothing_but_itself(scene, calm, tmp_path):
    out = tmp_path / "run"
    run(scene, out, faults={"400": says("Captions of photo 4:")})
    assert proposed(out) == proposed(calm[0])
    check_places(scene, out)
    calls = json.loads((out / "manifest.json").read_text())["calls"]["propose"]
    assert (calls["calls"], calls["errors"]) == (1 + 4 + 1, {"refused": 1})
    assert not error_codes(out)


def test_a_passing_fault_of_one_photo_is_repeated_for_it_alone(scene, calm, tmp_path):
    def of_the_run(body):
        return has_photo(body) and "red circle" not in last_turn(body)[0]

    faults = {"html": first(5, of_the_run)}
    server = run(scene, tmp_path / "run", "--config.engine.tries=1", faults=faults)
    assert server.given["html"] == 5 and asked(server) == {"propose": 2, "rewrite": 2}
    assert proposed(tmp_path / "run") == proposed(calm[0])
    check_places(scene, tmp_path / "run")


def as_an_earlier_version(out: Path) -> None:
    """The run's files as they were before photos shared requests."""
    for name in ("manifest.json", "capabilities.json"):
        content = json.loads((out / name).read_text())
        content.pop("images_per_request", None)
        for entry in content.values() if name == "capabilities.json" else ():
            entry.pop("several")
        content.get("config", {}).get("llm", {}).pop("images_per_request", None)
        (out / name).write_text(json.dumps(content))


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_of_an_earlier_version_goes_on_as_it_began(scene, one_by_one, tmp_path, finished):
    out, begun = tmp_path / "run", "--config.llm.images_per_request=1"
    left = first(20)
    faults = {} if finished else {"401": lambda body: not left(body)}
    run(scene, out, begun, faults=faults, status=0 if finished else 3)
    as_an_earlier_version(out)
    server = run(scene, out)
    assert tables(out) == tables(one_by_one)
    assert not finished or asked(server) == {"propose": 0, "rewrite": 0}
    marks = [json.loads(path.read_text()) for path in sorted((out / "done").iterdir())]
    assert marks == [json.loads(p.read_text()) for p in sorted((one_by_one / "done").iterdir())]


def test_only_shared_requests_make_shards_of_earlier_versions_again(scene):
    """What photos share requests by had no part in a run's fingerprint before there was such."""
    prints = set()
    for number in ("1", "2", "4"):
        urls = {"llm.url": "x", "mllm.url": "x", "input.images": f"{scene[0]}/photos"}
        captions = {"input.captions": f"{scene[0]}/captions.json"}
        given = {**urls, **captions, "llm.images_per_request": number}
        job = prepare(settings.load(None, given))
        can = Capabilities("m", images=True, several=True)
        prompts = {n: p for n, p in job.prompts.items() if n != "propose_many"}
        models = Models(llm_can=can, mllm_can=can)
        prints.add(job.settings_print(models))
        older = replace(job, prompts=prompts).settings_print(models)
        assert (older == job.settings_print(models)) == (number == "1")
    assert len(prints) == 3


def test_a_run_goes_on_as_it_began_when_another_server_answers(scene, calm, tmp_path):
    left = first(16)
    run(scene, tmp_path / "run", faults={"401": lambda body: not left(body)}, status=3)
    server = run(scene, tmp_path / "run", many=False)  # which the probe finds out
    assert server.counts.by_stage["propose"] <= IMAGES
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["images_per_request"] == 4
    check_places(scene, tmp_path / "run")


def test_the_published_script_asks_as_ever(scene, tmp_path):
    joint = []
    server = run(
        scene, tmp_path / "run", "--config=:per_caption",
        faults={"500": lambda body: shares(body) and joint.append(last_turn(body)[0])},
    )  # fmt: skip
    rewrites = len(table(tmp_path / "run", "pairs"))
    assert asked(server) == {"propose": CAPTIONS, "rewrite": rewrites} and rewrites > IMAGES
    assert all("A man rides a horse on a beach." in text for text in joint)  # the probe's
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["images_per_request"] == 1


def test_a_prompt_of_one_s_own_is_asked_for_each_photo(scene, one_by_one, tmp_path):
    (tmp_path / "prompts").mkdir()
    text = (ROOT / "data_gen" / "prompts" / "propose.txt").read_text()
    (tmp_path / "prompts" / "propose.txt").write_text(text.replace("You help", "Please help"))
    server = run(scene, tmp_path / "run", f"--config.prompts={tmp_path}/prompts")
    assert server.counts.by_stage["propose"] == IMAGES
    assert proposed(tmp_path / "run") == proposed(one_by_one)


def test_a_missing_photo_leaves_the_others_theirs(tmp_path):
    scene = tmp_path / "w", world(tmp_path / "w", IMAGES)
    (tmp_path / "w" / "photos" / "002.jpg").unlink()
    server = run(scene, tmp_path / "run")
    assert asked(server) == {"propose": 2, "rewrite": 2}
    assert [row["code"] for row in table(tmp_path / "run", "rejects")] == ["image_missing"]
    accepted = {row["image_id"] for row in table(tmp_path / "run", "pairs") if row["accepted"]}
    assert accepted == {str(i + 1) for i in range(IMAGES)} - {"3"}


def test_more_photos_ask_again_about_the_last_few_at_most(scene, calm, tmp_path):
    run(scene, tmp_path / "run", "--limit=6")
    server = run(scene, tmp_path / "run")
    assert tables(tmp_path / "run") == tables(calm[0])
    assert asked(server) == {"propose": 1, "rewrite": 1}


def test_rejected_texts_get_their_second_try_alone(scene, tmp_path):
    """Of a joint answer one text that breaks a rule; the others stay."""
    bad = {"no negation": lambda body: shares(body) and rewrites(body)}
    server = run(scene, tmp_path / "run", faults=bad)
    rows = table(tmp_path / "run", "pairs")
    assert [row["accepted"] for row in rows] == [False, True] * CAPTIONS
    assert {row["reasons"][0] for row in rows if not row["accepted"]} == {"no_cue"}
    assert asked(server) == {"propose": 2, "rewrite": 2 + CAPTIONS}


def test_batch_files_have_all_that_can_be_asked_at_once(scene, tmp_path):
    """Three rounds, although photos wait for each other, and one is read later than the others."""
    folder, shows = scene
    command = ["batch-export", f"--out={tmp_path}/run", f"--captions={folder}/captions.json"]
    command += [f"--images={folder}/photos", "--llm-model=m", "--mllm-model=m"]
    command += ["--config.llm.images_per_request=4", "--config.shard_images=4"]
    rounds = []
    with FaultServer(shows, POOL, many=True) as server:
        while main(command) == 1:
            asked = []
            for path in (tmp_path / "run" / "batch").glob("*.jsonl"):
                asked += [json.loads(line) for line in path.read_text().splitlines()]
                path.unlink()
            rounds.append(len(asked))
            assert len(rounds) < 5
            lines = (
                {"custom_id": r["custom_id"], "response": {"body": server._answer(r["body"])}}
                for r in asked
            )
            (tmp_path / "out.jsonl").write_text("\n".join(map(json.dumps, lines)))
            assert main(["batch-import", f"--out={tmp_path}/run", f"{tmp_path}/out.jsonl"]) == 0
    assert len(rounds) == 3 and (rounds[0], rounds[2]) == (2, 2)
    assert rounds[1] == len(table(tmp_path / "run", "verdicts"))
    check_places(scene, tmp_path / "run")
