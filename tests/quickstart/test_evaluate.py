import json
import re

import numpy as np
import pytest

from negclip_jax.language.mentions import find_kinds
from negclip_jax.language.negation import find_cues
from negclip_jax.language.text import tokenize
from quickstart import evaluate
from quickstart.evaluate import answer, credit, table_text, tables, tally
from quickstart.questions import NEW_ORDERS, NEW_WORDS, ROWS, Question, build, read_scenes
from quickstart.tiny_clip import write_tiny_clip
from quickstart.world import KINDS, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("world")
    make_world(out, train=1, heldout=48, seed=5)
    return out / "heldout"


@pytest.fixture(scope="module")
def scenes(world):
    return read_scenes(world / "instances.json", 0)


@pytest.fixture(scope="module")
def questions(scenes):
    return build(scenes)


def is_true(scene, text):
    """Reads a caption independently of the templates: what is affirmed and what is negated."""
    tokens = tokenize(text)
    found = {kind: spans[0][0] for kind in KINDS if (spans := find_kinds(kind, tokens))}
    cue = find_cues(tokens)
    coloured = {f"{colour} {kind}" for colour, kind in scene.objects}
    for name in re.findall(r"(?:red|orange|yellow|green|blue|purple) \w+", text):
        if name not in coloured:
            return False
    if not cue:
        return set(found) <= set(scene.present)
    # Two kinds: the caption "a Y" comes first and the negation after it, or the other way round.
    pick = max if re.match(r"an? (?!picture)", text) else min
    negated = pick(found, key=found.get)
    return negated not in scene.present and set(found) - {negated} <= set(scene.present)


def oracle(scenes):
    by_file = {scene.image: scene for scene in scenes}
    return lambda pairs: np.array([float(is_true(by_file[f], text)) for f, text in pairs])


def test_an_oracle_that_reads_the_captions_is_always_right(scenes, questions):
    results = tables(questions, answer(questions, oracle(scenes)))
    assert {row: cell["accuracy"] for row, cell in results["rows"].items()} == dict.fromkeys(
        ROWS, 1
    )


def test_a_scorer_that_knows_nothing_lands_on_chance(questions):
    results = tables(questions, answer(questions, lambda pairs: np.zeros(len(pairs))))
    for row, (_, chance) in ROWS.items():
        assert results["rows"][row]["accuracy"] == pytest.approx(chance, abs=1e-4)


def test_one_that_reads_no_as_yes_fails(scenes, questions):
    truth = oracle(scenes)

    def deaf(pairs):
        return truth([(f, re.sub(r"there is no (\w+)", r"\1", text)) for f, text in pairs])

    rows = tables(questions, answer(questions, deaf))["rows"]
    assert rows["existence"]["accuracy"] == 0
    assert rows["affirmative"]["accuracy"] == 1
    assert rows["present_polarity"]["accuracy"] == 0.5


def test_one_that_likes_no_cannot_win_both_polarities(questions):
    likes = lambda pairs: np.array([" no " in text for _, text in pairs], float)  # noqa: E731
    rows = tables(questions, answer(questions, likes))["rows"]
    assert rows["absent_polarity"]["accuracy"] == 1
    assert rows["both_polarities"]["accuracy"] == 0


def test_the_order_of_options_does_not_matter(questions):
    values = {}

    def random(pairs):
        rng = np.random.default_rng(0)
        for pair in sorted(set(pairs)):
            values.setdefault(pair, rng.random())
        return np.array([values[pair] for pair in pairs])

    turned = [
        Question(q.row, q.image, tuple((c[0], *reversed(c[1:])) for c in q.choices), q.group)
        for q in questions
    ]
    assert np.array_equal(answer(questions, random), answer(turned, random))


def test_credit_shares_ties():
    assert credit([1, 0]) == 1
    assert credit([0, 1]) == 0
    assert credit([1, 1]) == 0.5
    assert credit([2, 2, 2]) == pytest.approx(1 / 3)
    assert credit([2, 2, 1]) == 0.5


def test_ties_are_counted_and_said():
    """A model that gives one score to everything."""
    questions = [Question("existence", "1.jpg", (("true", "false"),)), *[BOTH] * 2]
    found = tables(questions, answer(questions, lambda pairs: np.zeros(len(pairs))))
    assert found["rows"]["existence"] == tally([0.5])
    assert found["rows"]["both_polarities"]["tied"] == 2
    every = {"rows": {row: found["rows"].get(row, tally([1])) for row in ROWS}}
    text = table_text({"flat": every})
    assert "flat: 1 of 1 answers of existence tie and share their point" in text
    assert "2 of 2 answers of both_polarities" in text and "of affirmative tie" not in text


BOTH = Question("both_polarities", "1.jpg", (("true", "false"), ("true too", "false too")))


def test_a_score_that_is_not_a_number_loses():
    question = Question("existence", "1.jpg", (("true", "false"),))
    nan = lambda pairs: [float("nan") if t == "true" else 0.0 for _, t in pairs]  # noqa: E731
    assert answer([question], nan) == [0]


def test_nothing_asked_has_no_accuracy():
    with pytest.raises(ValueError, match="no items"):
        tally([])


def test_questions_depend_on_the_seed_only(world, scenes):
    assert read_scenes(world / "instances.json", 0) == scenes
    assert read_scenes(world / "instances.json", 1) != scenes


def test_unseen_cues_hold_both_new_words_and_new_orders(questions):
    groups = {q.group for q in questions if q.row == "unseen_cues"}
    kinds = {group.split(": ")[0] for group in groups}
    assert kinds == {"new word", "new order"}
    assert {g.split(": ")[1].split(",")[0] for g in groups if "new word" in g} == set(NEW_WORDS)
    assert len(NEW_ORDERS) >= 3


def test_no_unseen_cue_is_asked_as_a_seen_one(questions):
    unseen = {q.group for q in questions if q.row == "seen_cues"}
    assert not unseen & set(NEW_WORDS)


def test_the_command_writes_all_rows(world, tmp_path, capsys):
    from quickstart.tiny_clip import write_tiny_clip

    write_tiny_clip(tmp_path / "clip", seed=0)
    out = tmp_path / "new" / "evaluation.json"
    evaluate.main([f"--model=base={tmp_path}/clip", f"--world={world}", f"--out={out}"])
    results = json.loads(out.read_text())
    assert list(results["models"]["base"]["rows"]) == list(ROWS)
    assert results["models"]["base"]["rows"]["existence"]["n"] == 48
    shown = capsys.readouterr().out
    assert all(row in shown for row in ROWS)


@pytest.mark.parametrize("model", ["base=/no/such/clip", "nameless"])
def test_a_bad_model_is_a_sentence(world, tmp_path, model, capsys):
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([f"--model={model}", f"--world={world}", f"--out={tmp_path}/e.json"])
    assert model.removeprefix("base=") in str(stopped.value) + capsys.readouterr().err


def test_the_probe_finds_a_plane_and_weighs_both_answers_alike():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((400, 5))
    labels = features @ [1, -2, 0, 0, 0] > 2.5  # few are true
    weights = evaluate.fit_probe(features, labels)
    found = features @ weights[:-1] + weights[-1] > 0
    assert found[labels].mean() > 0.97 and (~found[~labels]).mean() > 0.9
    assert weights[1] < -1 < 0.5 < weights[0] and np.abs(weights[2:5]).max() < 0.5 * weights[0]


def test_the_probe_is_asked_the_questions_of_its_rows(tmp_path):
    make_world(tmp_path, train=40, heldout=10, seed=0)
    write_tiny_clip(tmp_path / "clip", seed=0)
    found = evaluate.probe(tmp_path / "clip", tmp_path / "train", tmp_path / "heldout", 0)
    assert [rows["existence"]["n"] for rows in (found["train"], found["heldout"])] == [40, 10]
    rows = {row: cell["accuracy"] for row, cell in found["train"].items()}
    assert set(rows) < set(ROWS) and rows["existence"] > 0.9, "64 features of 40 scenes"
    assert rows["both_polarities"] <= min(rows["absent_polarity"], rows["present_polarity"])
    assert found["heldout"]["existence"]["accuracy"] < rows["existence"]
