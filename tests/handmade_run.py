"""A run directory made by hand: tables, manifest, photos and boxes, for what reads them."""

import json

from PIL import Image

from data_gen.records import write_table
from negclip_jax.common import storage

STAGES = ("propose", "verify", "rewrite")
NASTY = '<script>alert("x")</script> & {{ 7 * 7 }}'


def make_run(folder):
    """A run of three photos in `folder`/run with a model's verdicts, one of them falsely absent."""
    run, photos = folder / "run", folder / "photos"
    photos.mkdir(parents=True)
    Image.new("RGB", (320, 200), (200, 30, 30)).save(photos / "1.jpg")
    Image.new("L", (50, 400), 90).save(photos / "2.png")
    images = {1: "1.jpg", 5: "1.jpg", 2: "2.png", 3: "3.jpg", 4: "3.jpg"}  # by caption
    items = [
        {"image_id": file[0], "file_name": file, "caption_id": str(n), "caption": f"A bus {n}"}
        for n, file in images.items()
    ]
    write_table(run / "items" / "part-00000.parquet", "items", items)
    session = {"status": "done", "time": "now", "seconds": 61.0}
    (run / "sessions.jsonl").write_text(f"{json.dumps(session)}\n{{damaged\n")
    (run / "done").mkdir()
    mark = {"fingerprint": "x", "rows": {"images": 3, "items": 5}, "sha256": {}}
    storage.write_json(run / "done" / "part-00000.json", mark)
    write_table(run / "candidates" / "part-00000.parquet", "candidates", _candidates())
    write_table(run / "verdicts" / "part-00000.parquet", "verdicts", _verdicts())
    write_table(run / "pairs" / "part-00000.parquet", "pairs", _pairs())
    write_table(
        run / "rejects" / "part-ingest.parquet",
        "rejects",
        [{"image_id": "4", "code": "image_missing", "detail": "4.jpg"}],
    )
    storage.write_json(run / "manifest.json", _manifest(photos))
    (folder / "instances.json").write_text(json.dumps(_instances()))
    return run


def _candidates():
    rows = [("1", "dog", None), ("1", "cat", None), ("1", "car", "mentioned"), ("2", "cat", None),
            ("2", "dog", None), ("3", "lamp", None)]  # fmt: skip
    return [
        {"image_id": image, "object": name, "source": "llm", "reject_reason": reason}
        for image, name, reason in rows
    ]


def _verdicts():
    rows = [("1", "dog", "absent", 0.95), ("1", "cat", "present", 0.1), ("2", "cat", "absent", 0.7),
            ("2", "dog", "unsure", 0.5), ("3", "lamp", "absent", 0.9)]  # fmt: skip
    return [
        {
            "image_id": image,
            "object": name,
            "verdict": verdict,
            "p_yes": (1 - p_absent) * 0.9,
            "p_no": p_absent * 0.9,
            "mass": 0.9,
            "method": "logprobs",
            "model": "tiny",
        }
        for image, name, verdict, p_absent in rows
    ]


def _pairs():
    def row(number, image, name, text, reasons=(), p_absent=0.9, attempt=0, file="1.jpg"):
        return {
            "pair_id": f"p{number}",
            "image_id": image,
            "file_name": file,
            "caption_id": str(number),
            "caption": f"A bus {number} {NASTY}",
            "object": name,
            "negated_caption": text,
            "foils": ["A foil with no bus"],
            "pipeline": "absence",
            "rewriter": "llm" if number % 2 else "template:with-no",
            "cue": "no",
            "cue_position": "after",
            "clip_tokens": 12,
            "attempt": attempt,
            "accepted": not reasons,
            "reasons": list(reasons),
            "p_no": p_absent * 0.9,
            "mass": 0.9,
            "keys": dict.fromkeys(STAGES),
            "models": dict.fromkeys(STAGES),
            "prompt_ids": dict.fromkeys(STAGES),
            "run_id": "r1",
        }

    return [
        row(1, "1", "dog", f"A bus 1 with no dog {NASTY}", p_absent=0.95),
        row(2, "2", "cat", "A bus 2 with no cat", p_absent=0.7, file="2.png"),
        row(3, "3", "lamp", "A bus 3 with a lamp", ["no_cue", "affirmed"], file="3.jpg"),
        row(4, "3", "lamp", "A bus with no lamp", file="3.jpg", attempt=1),
    ]


def _manifest(photos):
    numbers = {"calls": 6, "errors": {"timeout": 1}, "prompt_tokens": 2_000_000,
               "completion_tokens": 6, "cached_tokens": 1000, "attempts": 7,
               "latency_ms_p50": 3.0, "latency_ms_p95": 9.0}  # fmt: skip
    prices = {"llm_input": 1.0, "llm_output": 1.0, "mllm_input": 2.0, "mllm_output": 1.0}
    return {
        "run_id": "r1",
        "config": {
            "pipeline": "absence",
            "prices": prices,
            "input": {"images": str(photos)},
            "rewrite": {},
            "seed": 0,
            "export": {"max_per_object": None},
        },
        "roles": {"propose": "llm", "verify": "mllm", "rewrite": "llm"},
        "verify_method": "logprobs",
        "captions": 5,
        "images": 3,
        "ingest_rejects": 1,
        "counts": {},
        "calls": {"verify": numbers},
        "capabilities": {"mllm": {"model": "tiny-llava"}},
        "inputs": {"captions": {"path": "c.json", "bytes": 1, "sha256": "abc123"}},
        "packages": {"pyarrow": "1"},
        "prompts": {"verify-1": [["user", f"Is there a dog? {NASTY}"]]},
        "python": "3.11",
        "git": None,
    }


def _instances():
    names = ["dog", "cat"]
    return {
        "images": [{"id": i, "width": 100, "height": 100} for i in (1, 2, 3)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "area": 900, "bbox": [0, 0, 30, 30]},
            {"id": 2, "image_id": 2, "category_id": 1, "area": 900, "bbox": [0, 0, 30, 30]},
        ],
    }
