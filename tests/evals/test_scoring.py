"""The rules for ties and ranks, against loops and torch."""

import itertools
import math

import numpy as np
import pytest

from evals import scoring

torch = pytest.importorskip("torch")
RNG = np.random.default_rng(0)


def test_strict_credit_shares_the_point():
    scores = np.array([[2, 1, 0], [1, 1, 0], [1, 1, 1], [0, 1, 1]], np.float32)
    np.testing.assert_allclose(scoring.credit(scores, np.zeros(4, int)), [1, 1 / 2, 1 / 3, 0])
    np.testing.assert_allclose(scoring.credit(scores, np.full(4, 2)), [0, 0, 1 / 3, 1 / 2])


def test_credit_ignores_padding():
    scores = np.array([[1, 1, np.nan], [-np.inf, -np.inf, np.nan]], np.float32)
    np.testing.assert_allclose(scoring.credit(scores, np.array([0, 1])), [1 / 2, 1 / 2])


def test_official_rules_differ_only_where_there_is_a_tie():
    scores = np.array([[2, 1], [1, 2], [1, 1], [0.5, np.nan]], np.float32)
    first, second = np.zeros(4, int), np.array([1, 1, 1, 0])
    assert scoring.official(scores, first, "argmax").tolist() == [1, 0, 1, 1]
    assert scoring.official(scores, second, "argmax").tolist() == [0, 1, 0, 1]
    assert scoring.official(scores, first, "greater").tolist() == [1, 0, 0, 1]
    assert scoring.official(scores, second, "greater").tolist() == [0, 1, 0, 1]
    with pytest.raises(ValueError, match="argmax or greater"):
        scoring.official(scores, first, "best")


def test_a_score_that_is_no_number_loses():
    images = np.array([[np.nan, 0], [1, 0]], np.float32)
    texts = np.array([[1, 0], [-1, 0]], np.float32)
    scores = scoring.inner(images, np.array([0, 1]), texts, np.array([0, 1]))
    assert scores.tolist() == [-np.inf, -1]


def test_equal_on_paper_is_equal_here():
    """float32 sums depend on the order of the terms; what is scored must not."""
    image = RNG.normal(size=(1, 512)).astype(np.float32)
    texts = RNG.normal(size=(1, 512)).astype(np.float32)
    gallery = np.repeat(image, 1001, axis=0)  # BLAS sums the last columns in another order
    ranks = scoring.rank(texts, gallery, [[1000]])
    assert ranks.tied.item() == 1001 and ranks.better.item() == 0
    pair = scoring.inner(image, np.zeros(1, int), texts, np.zeros(1, int))
    assert pair.item() == ranks.score.item()


def expected_all_above(true, false):
    """By going through every order in which ties may fall."""
    options = [(s, True) for s in true] + [(s, False) for s in false]
    wins = total = 0
    for order in itertools.permutations(range(len(options))):
        ranked = sorted(order, key=lambda i: (-options[i][0], order.index(i)))
        total += 1
        wins += all(options[i][1] for i in ranked[: len(true)])
    return wins / total


@pytest.mark.parametrize(
    ("true", "false"),
    [((1, 1), (1, 1)), ((2, 1), (1, 0)), ((2, 1), (1, 1)), ((1, 1), (1, 0)), ((1, 0), (1, 0)),
     ((3, 2), (1, 0)), ((1, 0), (3, 2))],
)  # fmt: skip
def test_all_above_is_the_chance_under_random_ties(true, false):
    points = scoring.all_above(np.array([true], float), np.array([false], float))
    assert points.item() == pytest.approx(expected_all_above(true, false))


def clip_benchmark_recall(scores, positives, k):
    """CLIP_benchmark's recall_at_k > 0, by torch.topk."""
    scores = torch.from_numpy(scores)
    top = torch.topk(scores, k, dim=1).indices
    right = torch.zeros_like(scores, dtype=torch.bool)
    for query, rows in enumerate(positives):
        right[query, list(rows)] = True
    return right.gather(1, top).any(1).numpy().astype(float)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_recall_equals_topk(k):
    queries = RNG.normal(size=(600, 6)).astype(np.float32)  # more than one chunk of rows
    gallery = RNG.normal(size=(40, 6)).astype(np.float32)
    positives = [RNG.choice(40, size=1 + i % 4, replace=False) for i in range(600)]
    ranks = scoring.rank(queries, gallery, positives)
    scores = (queries.astype(np.float64) @ gallery.astype(np.float64).T).astype(np.float32)
    expected = clip_benchmark_recall(scores, positives, k)
    np.testing.assert_array_equal(ranks.recall(k), expected)
    np.testing.assert_array_equal(ranks.recall_strict(k), expected)
    assert 0 < expected.mean() < 1


def test_ranks_with_ties_against_a_loop():
    gallery = RNG.integers(-1, 2, (12, 2)).astype(np.float32)  # many equal entries
    queries = RNG.integers(-1, 2, (30, 2)).astype(np.float32)
    positives = [sorted(RNG.choice(12, size=1 + i % 3, replace=False)) for i in range(30)]
    ranks = scoring.rank(queries, gallery, positives)
    for i, query in enumerate(queries):
        scores = gallery @ query
        order = np.argsort(-scores, kind="stable").tolist()
        assert ranks.stable[i] == min(order.index(p) for p in positives[i])
        rivals = [j for j in range(12) if j not in positives[i]]
        assert ranks.rival_score[i] == max(scores[rivals]) == scores[ranks.rival[i]]
        best = max(scores[positives[i]])
        better, tied = int((scores > best).sum()), int((scores == best).sum())
        good = int((scores[positives[i]] == best).sum())
        for k in (1, 3, 5):
            places = min(max(k - better, 0), tied)
            missed = math.comb(tied - good, places) / math.comb(tied, places)
            assert ranks.recall_strict(k)[i] == pytest.approx(1 - missed)


def test_a_gallery_of_right_entries_alone_has_no_rival():
    ranks = scoring.rank(np.ones((1, 2), np.float32), np.ones((2, 2), np.float32), [[0, 1]])
    assert ranks.rival.item() == -1 and ranks.rival_score.item() == -np.inf
    assert ranks.recall(1).item() == ranks.recall_strict(1).item() == 1


def test_chance_of_recall_is_what_a_constant_scorer_gets():
    positives = [[0], [1, 2], [3, 4, 5]]
    same = np.ones((3, 2), np.float32)
    ranks = scoring.rank(same, np.ones((6, 2), np.float32), positives)
    for k in (1, 2, 5, 10):
        chance = scoring.chance_of_recall(6, [len(p) for p in positives], k)
        assert ranks.recall_strict(k).mean() == pytest.approx(chance)


def test_mean_directions_as_torch():
    features = torch.nn.functional.normalize(torch.randn(12, 5, generator=torch.manual_seed(0)))
    expected = torch.nn.functional.normalize(features.reshape(3, 4, 5).mean(1), dim=-1)
    ours = scoring.mean_directions(features.numpy(), 4)
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    opposite = np.array([[1, 0], [-1, 0]], np.float32)
    assert np.isfinite(scoring.mean_directions(opposite, 2)).all()  # no direction, no crash
