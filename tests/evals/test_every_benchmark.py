"""Every benchmark of the registry, new ones included: chance, 100 %, order, what it says."""

import dataclasses
import inspect
from pathlib import Path

import numpy as np
import pytest
from tiny_evals import AllThere, constant, features, mean, numbers, oracle, write_benchmark

from evals import choices, registry, report, retrieval
from evals.benchmark import Result
from evals.benchmarks import zeroshot
from evals.images import DataRoots
from evals.results import Results, headlines, table_text
from negclip_jax.common.errors import InputError

NAMES = registry.BENCHMARKS
ENVIRONMENT = {"command": [], "python": "3", "packages": {}, "devices": [], "git_revision": None}
SHUFFLED = {
    "choice_problem": choices.choice_problem,
    "retrieval_problem": retrieval.retrieval_problem,
    "classification_problem": retrieval.classification_problem,
}


@pytest.fixture(autouse=True, scope="module")
def few_classes():
    """Seven classes and three templates of each data set instead of a thousand and eighty."""
    real = zeroshot.read_prompts

    def few(name: str) -> zeroshot.Prompts:
        known = real(name)
        if name == "voc2007":
            return known
        return zeroshot.Prompts(known.classes[:7], known.keys[:7], known.templates[:3])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evals.benchmarks.zeroshot.read_prompts", few)
        yield


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Function of a benchmark's name to data folders with its tiny published file."""
    known: dict[str, DataRoots] = {}

    def of(name: str) -> DataRoots:
        if name not in known:
            known[name] = write_benchmark(name, tmp_path_factory.mktemp(name))
        return known[name]

    return of


def strict(result: Result) -> dict[str, float]:
    """Numbers of the strict rule; both_polarity has no other."""
    found = {m.name: m for m in result.metrics}
    return {name: m for name, m in found.items() if f"{name}_strict" not in found}


@pytest.mark.parametrize("name", NAMES)
def test_a_constant_model_lands_on_chance(name, roots):
    problem = registry.get(name).load(roots(name))
    for metric in strict(constant(problem)).values():
        if metric.name.startswith("consistency"):  # a constant model is: no guessing reaches it
            assert metric.chance is None and mean(metric) == 1
        else:
            assert mean(metric) == pytest.approx(metric.chance), metric.name


# What the published script gives to a model for which all options tie.
OFFICIAL_TIES = {
    "valse": 0,
    "valse_pieces": 0,
    "sugarcrepe": 0,
    "pope": 0,
    "cc_neg": 1,
    "factor_bench": 1 / 2,  # those of which b is the answer
    "aro_relation": 0,
    "aro_attribution": 0,
    "aro_coco_order": 1,
    "aro_flickr30k_order": 1,
}


@pytest.mark.parametrize("name", OFFICIAL_TIES)
def test_ties_under_the_official_rule(name, roots):
    problem = registry.get(name).load(roots(name))
    headline = next(metric for metric in constant(problem).metrics if metric.headline)
    assert mean(headline) == OFFICIAL_TIES[name] and not headline.name.endswith("_strict")


@pytest.mark.parametrize("name", NAMES)
def test_an_oracle_is_always_right(name, roots):
    result = oracle(registry.get(name).load(roots(name)))
    # A probe reads no text, and these photos have nothing in common.
    read = {n: value for n, value in numbers(result).items() if not n.startswith("probe_")}
    assert all(value == pytest.approx(1) for value in read.values()), read
    assert set(result.predictions["right"]) == {1.0}


def shuffle(items: list, seed: int = 0) -> list:
    """Items in another order, and the options of choices as well."""
    rng = np.random.default_rng(seed)
    mixed = [items[i] for i in rng.permutation(len(items))]
    return [_mixed_options(item, rng) for item in mixed]


def _mixed_options(item, rng):
    if isinstance(item, choices.Choice):
        order = rng.permutation(len(item.options))
        images, texts = (
            part if len(part) == 1 else tuple(part[i] for i in order)
            for part in (item.images, item.texts)
        )
        answer = int(np.flatnonzero(order == item.answer)[0])
        return dataclasses.replace(item, images=images, texts=texts, answer=answer)
    return item


@pytest.mark.parametrize("name", NAMES)
def test_positions_do_not_matter(name, roots, monkeypatch):
    benchmark = registry.get(name)
    module = inspect.getmodule(benchmark.load.func)
    plain = benchmark.load(roots(name))
    before = strict(plain.score(*features(plain)))
    builder = next((key for key in SHUFFLED if hasattr(module, key)), None)
    if builder is None:  # both_polarity lays its statements out itself; see its own test
        assert name == "both_polarity"
        return

    def build(roots, file, items, *rest, **options):
        return SHUFFLED[builder](roots, file, shuffle(list(items)), *rest, **options)

    monkeypatch.setattr(module, builder, build)
    mixed = benchmark.load(roots(name))
    after = strict(mixed.score(*features(mixed)))
    assert after.keys() == before.keys()
    for key, metric in before.items():
        assert dict(zip(metric.items, metric.values, strict=True)) == pytest.approx(
            dict(zip(after[key].items, after[key].values, strict=True))
        )


@pytest.mark.parametrize("name", NAMES)
def test_predictions_agree_with_the_numbers(name, roots):
    problem = registry.get(name).load(roots(name))
    result = problem.score(*features(problem))
    columns = {key: len(column) for key, column in result.predictions.items()}
    assert set(columns.values()) == {problem.scored}, columns
    assert problem.total == problem.scored and not problem.missing
    assert len(set(result.predictions["item"])) == problem.scored
    for metric in result.metrics:
        assert len(metric.items) == len(set(metric.items)) == len(metric.values)
    assert any(metric.headline for metric in result.metrics)
    assert set(result.breakdowns) <= set(result.predictions)
    scores = [len(row) for row in result.predictions["scores"]]
    options = zip(result.predictions["images"], result.predictions["texts"], strict=True)
    assert scores == [max(len(i), len(t)) for i, t in options]


@pytest.mark.parametrize("name", NAMES)
def test_controls_have_the_metrics_of_models(name, roots):
    problem = registry.get(name).load(roots(name))
    known = [metric.name for metric in problem.score(*features(problem)).metrics]
    known = [
        name for name in known if not name.startswith("probe_")
    ]  # they read a model's features
    for title, control in problem.controls.items():
        assert [metric.name for metric in control().metrics] == known, title


@pytest.mark.parametrize("name", NAMES)
def test_missing_photos_are_listed_and_leave_a_subset(name, roots, monkeypatch):
    full = registry.get(name).load(roots(name))
    gone = full.images[0].path
    real = DataRoots.missing
    monkeypatch.setattr(
        DataRoots,
        "missing",
        lambda self, paths: [p for p in dict.fromkeys(paths) if p == gone or real(self, [p])],
    )
    part = registry.get(name).load(roots(name))
    assert list(part.missing) == [gone]
    assert part.total == full.total and 0 < part.scored < full.scored
    ids = part.score(*features(part)).predictions["item"]
    assert set(ids) < set(full.score(*features(full)).predictions["item"])


@pytest.mark.parametrize("name", NAMES)
def test_all_photos_missing(name, roots, monkeypatch):
    monkeypatch.setattr(DataRoots, "missing", lambda self, paths: list(dict.fromkeys(paths)))
    problem = registry.get(name).load(roots(name))
    assert problem.scored == 0 and problem.missing and problem.total
    assert not problem.images and not problem.texts and not problem.controls


@pytest.mark.parametrize("name", NAMES)
def test_absent_file_says_what_and_where_to_get_it(name, tmp_path, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    with pytest.raises(InputError, match=r"not prepared|get it from") as caught:
        registry.get(name).load(DataRoots((tmp_path,)))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_says_what_it_is(name):
    benchmark = registry.get(name)
    module = inspect.getmodule(benchmark.load.func)
    assert benchmark.name == name
    assert all((benchmark.title, benchmark.source, benchmark.licence, benchmark.download))
    assert benchmark.task.endswith("?")
    assert "Source" in module.__doc__ and "rotocol" in module.__doc__
    assert len(Path(module.__file__).read_text().splitlines()) < 300


@pytest.mark.parametrize("name", [n for n in NAMES if registry.get(n).published])
def test_published_values_name_our_metrics(name, roots):
    problem = registry.get(name).load(roots(name))
    known = {metric.name for metric in problem.score(*features(problem)).metrics}
    for value in registry.get(name).published:
        assert value.metric in known and 0 < value.value < 1 and value.source


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_gives_one_score_to_everything_is_told(name, roots, tmp_path):
    """The official rule may give it 100 %, by where the file puts the answers."""
    benchmark = registry.get(name)
    problem = benchmark.load(roots(name))
    kept = Results(tmp_path, {"models": {"constant": {"facts": {}}}, "seed": 0}, ENVIRONMENT)
    kept.begin(benchmark, problem)
    kept.add(name, "constant", problem, constant(problem))
    metrics = kept.document["benchmarks"][name]["rows"]["constant"]["metrics"]
    shown = metrics[headlines(kept.document["benchmarks"][name])[0]]
    assert shown["ties"] == shown["n"] and shown["strict"] in (None, pytest.approx(shown["chance"]))
    told = f"{shown['n']:,} of {shown['n']:,} items tie"
    assert told in table_text(kept.document)
    assert report.write(tmp_path, roots(name), gallery=0).read_text().count(told) >= 2


def test_known_sizes_are_those_of_the_published_files(shared_data):
    folder = shared_data / "benchmarks"
    roots = AllThere(tuple(p for p in folder.iterdir() if p.name != "slices"))
    for name in (
        "valse",
        "negrefcocog",
        "negbench_mcq",
        "negbench_mcq_voc2007",
        "pope",
        "sugarcrepe",
    ):
        assert registry.get(name).load(roots).total == registry.get(name).size, name
    for name in ("negbench_retrieval", "negbench_retrieval_negated"):
        assert registry.get(name).load(roots).total == registry.get(name).size == 25_014
