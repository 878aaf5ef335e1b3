"""FACTOR-Bench: two captions that name the same objects under another Boolean operator.

Source: Alshehri et al., "Similarity Is Not Logic" (ICML 2026, arXiv 2607.23052),
github.com/SultanMo/factored-vlm, `data/factor_bench.json` or `.jsonl`, the same samples one a line
(CC BY 4.0). Photos: COCO val2017, images.cocodataset.org/zips/val2017.zip.

File: `samples`, each with `sample_id`, `test_type` (operator 1,100, equivalence 450, compound 145),
`operator`, `image`, `caption_a`, `caption_b`, `correct` (a, b, or both, which equivalence alone
has) and `meta.equivalence_type`. The parses beside them are for scorers that a dual encoder is not.

Protocol (`eval.py`): a is chosen if it scores higher than b, and else b, so that a tie is right
where b is the answer. `accuracy` is over the operator split, the published number;
`accuracy_OPERATOR` over each operator (COMPOUND is its split). Two captions of the equivalence
split mean the same, and "both" says no more than that: "scissors is not missing" stands beside
photos without scissors. The published number is the share of them whose cosines differ by more than
0.001; `consistency` is the rest, under one rule, by type as well. A model that gives one score to
everything has a consistency of 100 %: it says something only beside the accuracy.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from evals.benchmark import Metric, Problem, Result
from evals.choices import POLARITY_CONTROLS, AccuracySpec, Choice, by_group, choice_problem
from evals.images import DataRoots, ImageRef
from evals.reading import Fields, read_items, read_json, read_json_lines

SPLITS = ("operator", "equivalence", "compound")
OPERATORS = ("NOT", "AND", "OR", "BUT_NOT", "NEITHER", "COMPOUND")
EQUIVALENCES = ("de_morgan", "double_negation", "commutativity")
SAME = 0.001  # of cosines that count as equal


def load(roots: DataRoots, *, download: str) -> Problem:
    """Reads the file, all three splits. Raises InputError."""
    file = roots.find("factor_bench.json", "factor_bench.jsonl", download=download)
    if file.suffix == ".jsonl":
        samples = read_json_lines(file)
    else:
        fields = Fields(file)
        samples = fields.sequence(read_json(file, dict), "samples", "the file")
        fields.done()
    items = read_items(file, enumerate(samples), _item)
    published = AccuracySpec("accuracy", {"split": {"operator"}}, headline=True)
    shown = {"numbers": (published, *by_group("operator", OPERATORS))}
    shown["breakdowns"] = {"operator": "by operator; of equivalences, how many score alike"}
    # Argmax of b and a, in this order.
    shown |= {"rule": "argmax", "controls": POLARITY_CONTROLS}
    problem = choice_problem(roots, file, items, **shown)
    scores = {title: _with_consistency(score) for title, score in problem.controls.items()}
    return dataclasses.replace(problem, score=_with_consistency(problem.score), controls=scores)


def _with_consistency(score: Callable[..., Result]) -> Callable[..., Result]:
    """The same result, its pairs of equivalent captions scored by whether they score alike."""

    def scored(*features: np.ndarray) -> Result:
        result = score(*features)
        columns = {name: list(column) for name, column in result.predictions.items()}
        rows = [i for i, split in enumerate(columns["split"]) if split == "equivalence"]
        gaps = [abs(np.subtract(*columns["scores"][row])) for row in rows]
        alike = np.array(gaps) <= SAME
        for row, same in zip(rows, alike, strict=True):
            columns["answers"][row] = [0, 1]
            columns["predicted"][row] = [0, 1] if same else columns["predicted"][row]
            columns["right"][row] = columns["right_official"][row] = float(same)
            for name in result.breakdowns.keys() - {"operator"}:
                columns[name][row] = "equivalent"  # no text of the two is the right one
        kinds = np.array([columns["operator"][row] for row in rows])
        items = np.array([columns["item"][row] for row in rows])
        _, images = np.unique([columns["images"][row][0] for row in rows], return_inverse=True)
        metrics = []
        for kind in ("", *EQUIVALENCES):
            of = kinds == kind if kind else np.ones(len(rows), bool)
            if of.any():
                name = f"consistency_{kind}" if kind else "consistency"
                metrics.append(Metric(name, alike[of].astype(float), items[of], images[of]))
        return dataclasses.replace(result, metrics=(*result.metrics, *metrics), predictions=columns)

    return scored


def _item(fields: Fields, index: str, record: dict) -> Choice:
    where = f"sample {index}"
    name = fields.unique(fields.text(record, "sample_id", where), where)
    image = ImageRef(fields.text(record, "image", where))
    texts = tuple(fields.text(record, key, where) for key in ("caption_b", "caption_a"))
    split = fields.option(record, "test_type", where, SPLITS)
    if split == "equivalence":
        fields.option(record, "correct", where, ("both",))
        meta = record.get("meta")
        kind = fields.option(meta, "equivalence_type", f"{where}.meta", EQUIVALENCES)
        return Choice(name, (image,), texts, 0, {"split": split, "operator": kind})
    operator = fields.option(record, "operator", where, OPERATORS)
    answer = fields.option(record, "correct", where, ("b", "a"))
    return Choice(name, (image,), texts, int(answer == "a"), {"split": split, "operator": operator})
