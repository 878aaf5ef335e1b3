"""What a benchmark is: a file that is loaded to a `Problem`, and a problem that scores features.

A new benchmark is one file with a `BENCHMARK` and an entry in `benchmarks.toml`. It lists images
and texts and says what their unit features score; it never sees a model. The runner encodes each
distinct image and text once, over all benchmarks, and hands the rows to `Problem.score`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from evals.images import DataRoots, ImageRef
from negclip_jax.common import statistics


@dataclasses.dataclass(frozen=True)
class Metric:
    """One number: the (weighted) mean of a value in [0, 1] per item."""

    name: str  #: "accuracy", "accuracy_strict", "t2i_recall@5".
    values: np.ndarray  #: float64 `[N]`.
    #: `[N]`, unique ids that pair the values of two models; 0 to N - 1 for None.
    items: np.ndarray | None = None
    #: `[N]`, the image of each item, where items share images; None where they do not.
    clusters: np.ndarray | None = None
    #: float64 `[N]`, where the number is no plain mean, such as 1 / (size of the item's group) for
    #: a macro mean over groups; all equal for None.
    weights: np.ndarray | None = None
    chance: float | None = None  #: what guessing reaches.
    headline: bool = False  #: whether the summary table shows it; the others are in the details.
    unit: str = "images"  #: what clusters are, for the words of an interval.

    def __post_init__(self):
        for name in ("items", "clusters", "weights"):
            array = getattr(self, name)
            if array is not None and len(array) != len(self.values):
                raise ValueError(f"{self.name}: {len(array)} {name}, {len(self.values)} values")
        if len(self.values) and not (np.min(self.values) >= 0 and np.max(self.values) <= 1):
            raise ValueError(f"{self.name}: values must be in [0, 1] and not NaN")

    @property
    def mean(self) -> float:
        """The number itself."""
        return float(np.average(self.values, weights=self.weights))

    @property
    def ties(self) -> int:
        """Items of which the value is a share of a point, as the strict rule gives it to ties."""
        return int(((self.values > 0) & (self.values < 1)).sum())

    def estimate(self, *, seed: int = 0) -> statistics.Estimate:
        """The number with its 95 % interval. Raises ValueError where there are no items."""
        if not len(self.values):
            raise ValueError(f"{self.name}: no items, so there is no number")
        return statistics.estimate(
            self.values, weights=self.weights, clusters=self.clusters, unit=self.unit, seed=seed
        )

    def compare(self, before: "Metric", *, seed: int = 0) -> statistics.Comparison:
        """This model against the one `before`, on the items that both have.

        Raises ValueError where they have no item in common, or an item twice.
        """
        both = (before, self)
        items = [np.arange(len(m.values)) if m.items is None else m.items for m in both]
        for metric, ids in zip(both, items, strict=True):
            if len(np.unique(ids)) < len(ids):
                raise ValueError(f"{metric.name}: an item occurs twice, so items cannot be paired")
        common, rows, own_rows = np.intersect1d(items[0], items[1], return_indices=True)
        if not len(common):
            raise ValueError(f"{self.name}: the two models have no item in common")
        values = np.asarray(before.values)[rows], np.asarray(self.values)[own_rows]
        weights, clusters = (x if x is None else x[rows] for x in (before.weights, before.clusters))
        return statistics.compare(*values, weights=weights, clusters=clusters, seed=seed)


def by_both_rules(
    name: str, official: np.ndarray, strict: np.ndarray, images: Sequence, **described: Any
) -> list[Metric]:
    """A metric under the official rule, and as `NAME_strict` under the strict one.

    `official` and `strict` are float64 `[N]`, see `evals.scoring`; items cluster where they share
    one of `images`. Of the two, which share what is `described`, only the first may be a headline.
    """
    distinct, clusters = np.unique(images, return_inverse=True)
    described["clusters"] = clusters if len(distinct) < len(clusters) else None
    return [
        Metric(name, official, **described),
        Metric(f"{name}_strict", strict, **(described | {"headline": False})),
    ]


# Columns of `Result.predictions`; any other column is a group or a plain value for the parquet.
COLUMNS = ("item", "images", "texts", "scores", "answers", "predicted", "right")


# Numbers that are no shares of items: `columns` are names, `rows` the numbers of each by its name,
# None where one is not known. A column whose name ends in "%" holds percents.
Table = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Result:
    """What one model reached on one benchmark.

    Of `predictions`, columns of equal length with a row an item:

    - item: str id, equal to the metrics' `items`.
    - images: list of rows of `Problem.images`: the item's one image, or one for each option.
    - texts: list of str: the item's one text, or one for each option.
    - scores: list of float, one for each option (caption or image).
    - answers, predicted: lists of options that are right and that the model chose.
    - right: 1, 0, or 0.5 for a tie.
    - Other columns: groups (str) and whatever else is worth keeping.
    """

    metrics: Sequence[Metric]  #: the numbers; the first headline one is the benchmark's.
    predictions: Mapping[str, Sequence] = dataclasses.field(default_factory=dict)
    #: names of group columns that the report draws, with their titles.
    breakdowns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tables: Mapping[str, Table] = dataclasses.field(default_factory=dict)  #: other numbers.

    def ties(self, metric: Metric) -> dict[str, Any]:
        """How many items' answers tie with another option, and `strict`, which shares their points.

        `strict` is None where that is the metric itself.
        """
        strict = next((m for m in self.metrics if m.name == f"{metric.name}_strict"), None)
        return {"ties": (strict or metric).ties, "strict": strict and strict.mean}


@dataclasses.dataclass(frozen=True)
class Problem:
    """A loaded benchmark."""

    images: Sequence[ImageRef]  #: to encode; repeated entries cost nothing.
    texts: Sequence[str]  #: the same.
    #: unit-norm float32 features `[len(images), D]` and `[len(texts), D]` to the result.
    score: Callable[[np.ndarray, np.ndarray], Result]
    total: int  #: items of the published file.
    scored: int  #: items that remain, fewer than `total` where photos are missing.
    #: paths of the photos that are not there, each once. The runner refuses such a problem unless
    #: --allow-subset is given, and marks it in every output if it is.
    missing: Sequence[str] = ()
    file: str = ""  #: the published file that was read.
    notes: Sequence[str] = ()  #: lines for the report, about rules, filters and repairs.
    #: results that need no model ("takes the smaller box"), by their title, shown as rows beside
    #: the models' with the same metrics; computed when called.
    controls: Mapping[str, Callable[[], Result]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Published:
    """A number that somebody else reported, shown beside ours."""

    model: str  # as the source calls it, "CLIP ViT-B/32"
    metric: str  # name of our metric that it compares with
    value: float  # in [0, 1]
    source: str  # paper, repository or file


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One entry of the registry."""

    name: str  # on the command line
    title: str  # in the report
    source: str  # paper and repository
    licence: str  # of the annotation file, and of the photos where it differs
    download: str  # where file and photos come from
    # Reads the published file; raises InputError with what, where, what to do.
    load: Callable[[DataRoots], Problem]
    published: Sequence[Published] = ()  # known values
    # Items of the published file, all parts together; None where that is not known.
    size: int | None = None
    task: str = ""  # what an item asks, in one sentence for the report
    # Whether it measures what fine-tuning should keep rather than negation.
    retention: bool = False
