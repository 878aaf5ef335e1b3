"""Tiny published files of every benchmark, and features that stand in for a model's."""

import csv
import functools
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from evals import registry
from evals.benchmark import Problem, Result
from evals.images import DataRoots

SIZE = (64, 48)  # of every tiny photo


class AllThere(DataRoots):
    """Data folders in which no photo is missing: for whole annotation files without photos."""

    def missing(self, paths):
        return []

    def size(self, path):
        return (10_000, 10_000)


@functools.cache
def feature(key, width: int = 8) -> np.ndarray:
    """A unit vector that depends on the image reference or the text alone, float32."""
    rng = np.random.default_rng(zlib.crc32(repr(key).encode()))
    vector = rng.normal(size=width)
    vector = (vector / np.linalg.norm(vector)).astype(np.float32)
    vector.setflags(write=False)
    return vector


def features(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Random unit features of a problem's images and texts."""
    images = np.stack([feature(ref) for ref in problem.images])
    return images, np.stack([feature(text) for text in problem.texts])


def constant(problem: Problem) -> Result:
    """The result of a model for which everything is the same."""
    return problem.score(
        np.full((len(problem.images), 4), 0.5, np.float32),
        np.full((len(problem.texts), 4), 0.5, np.float32),
    )


def oracle(problem: Problem) -> Result:
    """The result of a model whose right pairs score higher than any other.

    Images are axes, and a text points to those that it is right for.
    """
    predictions = problem.score(*features(problem)).predictions
    right = np.zeros((len(problem.images), len(problem.texts)), np.float32)
    rows = {text: row for row, text in enumerate(problem.texts)}
    for i, (images, texts) in enumerate(
        zip(predictions["images"], predictions["texts"], strict=True)
    ):
        for answer in predictions["answers"][i]:
            image = images[answer] if len(images) > 1 else images[0]
            right[image, rows[texts[answer] if len(texts) > 1 else texts[0]]] = 1
        if "class" in predictions:  # every prompt of the class, not the first alone
            name = predictions["class"][i]
            right[images[0], [row for text, row in rows.items() if name in text]] = 1
    return problem.score(np.eye(len(problem.images), dtype=np.float32), right.T.copy())


def mean(metric) -> float:
    """The number of a metric."""
    return float(np.average(metric.values, weights=metric.weights))


def numbers(result: Result) -> dict[str, float]:
    """All numbers of a result by name."""
    return {metric.name: mean(metric) for metric in result.metrics}


def write_photos(folder: Path, names) -> None:
    """Noise photos, so that no two are the same."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(zlib.crc32(str(name).encode()))
        Image.fromarray(rng.integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)).save(path)


def write_benchmark(name: str, folder: Path) -> DataRoots:
    """The tiny published file of a benchmark with all of its photos."""
    assert name in WRITERS, f"write a tiny file of {name} in tests/tiny_evals.py"
    WRITERS[name](folder)
    missing = registry.get(name).load(DataRoots((folder,))).missing
    write_photos(folder / "photos", [Path(path).name for path in missing])
    return DataRoots((folder,))


def write_json(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_csv(path: Path, rows: list[dict]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def valse_record(i: int, valid: bool = True) -> dict:
    texts = f"There is no thing {i}.", f"There is a thing {i}."
    caption, foil = texts if i % 2 else texts[::-1]
    votes = {"caption": 3 if valid else 1, "foil": 0, "other": 0}
    return {"image_file": f"v7w_{i // 2}.jpg", "caption": caption, "foil": foil, "mturk": votes}


def _valse(piece: str) -> Callable[[Path], object]:
    def write(folder: Path):
        records = {f"{piece}_{i}": valse_record(i, i != 3) for i in range(6)}
        write_json(folder / "valse" / f"{piece}.json", records)

    return write


def _valse_pieces(folder: Path) -> None:
    from evals.benchmarks.valse import PIECES

    for piece in PIECES:
        _valse(piece)(folder)


def negrefcocog_record(i: int, answer: int = 0) -> dict:
    boxes = [[0, 0, 20.5 + i, 48], [10, 4.25, 54, 30 + i]]
    name = f"COCO_train2014_{i // 2:012d}.jpg"
    cue = ("not", "without", "no")[i % 3]
    phrase = f"thing {i} {cue} hat"
    return {"image": name, "phrase": phrase, "ref_bbox": boxes[answer], "bbox_list": boxes}


def _negrefcocog(folder: Path) -> None:
    records = [negrefcocog_record(i, int(i > 2)) for i in range(6)]
    write_json(folder / "NegRefCOCOg.json", records)


def mcq_row(i: int, path: str = "data/coco/images/val2017/{:012d}.jpg", answer: int = 0) -> dict:
    a, n, b = (f"{kind}{'abcdefghijklmnop'[i]}" for kind in ("cat", "dog", "cow"))
    right = {
        "positive": f"This image features {a} and {b}.",
        "negative": f"There is no {n} in this image.",
        "hybrid": f"This image features {a}, but there is no {n}.",
    }
    template = list(right)[i % 3]
    options = [f"{n} is shown, but no {a}.", f"This image shows {n}.", f"This image lacks {a}."]
    options.insert(answer, right[template])
    captions = {f"caption_{j}": option for j, option in enumerate(options)}
    row = {"image_path": path.format(i // 2), "correct_answer": answer, **captions}
    return row | {"correct_answer_template": template}


def _mcq(file: str, path: str) -> Callable[[Path], object]:
    return lambda folder: write_csv(folder / file, [mcq_row(i, path, i % 4) for i in range(9)])


def retrieval_row(i: int, path: str, captions) -> dict:
    row = {"positive_objects": "['cat']", "negative_objects": "['dog']"}
    return row | {"filepath": path.format(i), "image_id": i, "captions": str(captions)}


def _retrieval(file: str, path: str, extra: str = "") -> Callable[[Path], object]:
    def write(folder: Path):
        rows = []
        for i in range(12):
            texts = [f"it's thing {i}, view {j}{extra}" for j in range(2 + i % 2)]
            rows.append(retrieval_row(i, path, texts[0] if "mp4" in path else texts))
        write_csv(folder / file, rows)

    return write


def pope_record(i: int) -> dict:
    label = "yes" if i % 2 else "no"
    text = f"Is there {'an axe' if i % 3 else 'a cup'} {i} in the image?"
    image = f"COCO_val2014_{i // 3:012d}.jpg"
    return {"question_id": i + 1, "image": image, "text": text, "label": label}


def _pope(folder: Path) -> None:
    for setting in ("random", "popular", "adversarial"):
        lines = [json.dumps(pope_record(i)) for i in range(8)]
        (folder / f"coco_pope_{setting}.json").write_text("\n".join(lines) + "\n")


def factor_sample(kind: str, i: int, correct: str) -> dict:
    """A sample of FACTOR-Bench; `kind` is an operator or, of equivalences, their type."""
    split = {"a": "operator", "b": "operator", "both": "equivalence"}[correct]
    return {
        "sample_id": f"{kind}_{i}",
        "test_type": "compound" if kind == "COMPOUND" else split,
        "operator": "DE_MORGAN" if correct == "both" else kind,
        "image": f"val2017/{i:012d}.jpg",
        "caption_a": f"{kind} no thing {i}",
        "caption_b": f"{kind} thing {i}",
        "correct": correct,
        "meta": {"equivalence_type": kind if correct == "both" else None},
    }


def _factor_bench(folder: Path) -> None:
    from evals.benchmarks.factor_bench import EQUIVALENCES, OPERATORS

    samples = [factor_sample(kind, i, "ab"[i % 2]) for kind in OPERATORS for i in range(4)]
    samples += [factor_sample(kind, i, "both") for kind in EQUIVALENCES for i in range(3)]
    write_json(folder / "factor_bench.json", {"name": "FACTOR-Bench", "samples": samples})


def _sugarcrepe(folder: Path) -> None:
    from evals.benchmarks.sugarcrepe import CATEGORIES

    for c, category in enumerate(CATEGORIES):
        records = {
            str(3 * i): {
                "filename": f"{i:012d}.jpg",
                "caption": f"{category} {i}",
                "negative_caption": f"{category} not {i}",
            }
            for i in range(2 + c)
        }
        write_json(folder / f"{category}.json", records)


def cc_neg_content(count: int = 6) -> dict:
    annotations = [
        {
            "json": {"caption": f"a cat, and a dog {i}"},
            "sop_data": {"negative-prompt": f"a cat, and not a dog {i}"},
        }
        for i in range(count)
    ]
    folder = "/workspace/datasets/cc3m/cc3m_subset_images_extracted_final"
    return {
        "image_paths": [f"{folder}/{i:09d}.jpg" for i in range(count)],
        "annotations": annotations,
    }


def _cc_neg(folder: Path) -> None:
    import torch

    torch.save(cc_neg_content(), folder / "ccneg_preprocessed.pt")


def genome_record(i: int) -> dict:
    box = {"bbox_x": 3, "bbox_y": i % 4, "bbox_w": 40, "bbox_h": 30 + i % 5}
    texts = {"true_caption": f"the cat on mat {i}", "false_caption": f"the mat on cat {i}"}
    group = {
        "relation_name": ("on", "to the left of", "under")[i % 3],
        "attributes": ["red", "wet"],
    }
    return {"image_path": f"{i}.jpg", **box, **texts, **group}


def _genome(name: str, count: int) -> Callable[[Path], object]:
    return lambda folder: write_json(folder / name, [genome_record(i) for i in range(count)])


def _order(name: str) -> Callable[[Path], object]:
    def write(folder: Path):
        cases = [
            {
                "image": f"val2014/COCO_val2014_{i // 2:012d}.jpg",
                "caption_options": [f"order {i} {'abcde'[j:] + 'abcde'[:j]}" for j in range(5)],
            }
            for i in range(6)
        ]
        write_json(folder / name, cases)

    return write


def karpathy_content(count: int = 12, split: str = "test") -> dict:
    images = [
        {
            "filename": f"COCO_val2014_{i:012d}.jpg",
            "filepath": "val2014",
            "split": split if i % 4 else "train",
            "cocoid": i,
            "sentences": [{"raw": f"Thing {i}, view {j}."} for j in range(2 + i % 2)],
        }
        for i in range(count)
    ]
    return {"images": images, "dataset": "coco"}


def _flickr_lines(folder: Path) -> None:
    lines = [f"{i}.jpg,Thing {i}, view {j}." for i in range(12) for j in range(2)]
    (folder / "flickr30k_test_karpathy.txt").write_text("\n".join(["image,caption", *lines]) + "\n")


def _class_folders(name: str, prompts: str) -> Callable[[Path], object]:
    def write(folder: Path):
        from evals.benchmarks import zeroshot

        keys = zeroshot.read_prompts(prompts).keys
        write_photos(
            folder / name, [f"{key}/{i}.png" for key in keys for i in range(1 + len(key) % 2)]
        )

    return write


def voc_annotation(objects: list[tuple[str, tuple[int, int, int, int]]]) -> str:
    parts = []
    for kind, corners in objects:
        names = ("xmin", "ymin", "xmax", "ymax")
        box = "".join(f"<{n}>{v}</{n}>" for n, v in zip(names, corners, strict=True))
        parts.append(f"<object><name>{kind}</name><bndbox>{box}</bndbox></object>")
    return f"<annotation>{''.join(parts)}</annotation>"


def _voc(folder: Path) -> None:
    root = folder / "VOCdevkit" / "VOC2007"
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "Annotations").mkdir()
    kinds = ("cat", "dog", "sofa", "bus", "person", "train", "cow")
    for i, kind in enumerate(kinds):
        objects = [(kind, (1, 2, 30 + i, 40)), (kinds[i - 1], (8, 8, 60, 44))]
        (root / "Annotations" / f"{i:06d}.xml").write_text(voc_annotation(objects))
    names = "\n".join(f"{i:06d}" for i in range(len(kinds)))
    (root / "ImageSets" / "Main" / "test.txt").write_text(names + "\n")


def instances_content() -> dict:
    names = ("cat", "dog", "umbrella", "scissors")
    pairs = [(i, c + 1) for i in range(6) for c in range(4) if (i >> (c % 2)) & 1 or c == i % 4]
    return {
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(names)],
        "images": [{"id": i, "file_name": f"{i:012d}.jpg"} for i in range(6)],
        "annotations": [{"image_id": i, "category_id": c} for i, c in pairs],
    }


_COCO = "data/coco/images/val2017/{:012d}.jpg"
_VOC = "data/voc2007/VOCdevkit/VOC2007/JPEGImages/{:06d}.jpg"
_VIDEO = "data/video/MSRVTT/videos/all/video{}.mp4"
_NEGATED = "COCO_val_negated_retrieval_llama3.1_rephrased_affneg_true.csv"
WRITERS: dict[str, Callable[[Path], object]] = {
    "valse": _valse("existence"),
    "valse_pieces": _valse_pieces,
    "negrefcocog": _negrefcocog,
    "negbench_mcq": _mcq("COCO_val_mcq_llama3.1_rephrased.csv", _COCO),
    "negbench_mcq_voc2007": _mcq("VOC2007_mcq_llama3.1_rephrased.csv", _VOC),
    "negbench_mcq_msrvtt": _mcq("msr_vtt_mcq_rephrased_llama.csv", _VIDEO),
    "negbench_retrieval": _retrieval("COCO_val_retrieval.csv", _COCO),
    "negbench_retrieval_negated": _retrieval(_NEGATED, _COCO, " without a dog"),
    "negbench_msrvtt": _retrieval("msr_vtt_retrieval.csv", _VIDEO),
    "negbench_msrvtt_negated": _retrieval(
        "msr_vtt_retrieval_rephrased_llama.csv", _VIDEO, ", no cat"
    ),
    "cc_neg": _cc_neg,
    "pope": _pope,
    "both_polarity": lambda folder: write_json(folder / "instances.json", instances_content()),
    "factor_bench": _factor_bench,
    "sugarcrepe": _sugarcrepe,
    "aro_relation": _genome("visual_genome_relation.json", 7),
    "aro_attribution": _genome("visual_genome_attribution.json", 26),
    "aro_coco_order": _order("coco_order.json"),
    "aro_flickr30k_order": _order("flickr30k_order.json"),
    "coco_retrieval": lambda folder: write_json(folder / "dataset_coco.json", karpathy_content(20)),
    "flickr30k_retrieval": _flickr_lines,
    "imagenet": _class_folders("imagenet/val", "imagenet"),
    "cifar10": _class_folders("cifar10/test", "cifar10"),
    "cifar100": _class_folders("cifar100/test", "cifar100"),
    "voc2007": _voc,
}
