import collections
import json
import re

import numpy as np
import pytest

from negclip_jax.language.inflection import noun
from negclip_jax.language.mentions import find_kinds
from negclip_jax.language.negation import find_cues
from negclip_jax.language.text import tokenize
from quickstart import evaluate
from quickstart.evaluate import answer, credit, table_text, tables, tally
from quickstart.questions import (
    NEW_ORDERS,
    NEW_WORDS,
    RETRIEVED,
    ROWS,
    Question,
    Scene,
    build,
    describe,
    distinct,
    read_scenes,
)
from quickstart.tiny_clip import write_tiny_clip
from quickstart.world import KINDS, UNANNOTATED, make_world

RETRIEVAL = ["image_to_text", "text_to_image"]
ASKED = [row for row in ROWS if row not in RETRIEVAL]


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
    found = {row: cell["accuracy"] for row, cell in results["rows"].items()}
    assert found == dict.fromkeys(ASKED, 1)


def test_a_scorer_that_knows_nothing_lands_on_chance(questions):
    results = tables(questions, answer(questions, lambda pairs: np.zeros(len(pairs))))
    for row, (_, chance) in ROWS.items():
        if row in RETRIEVAL:
            continue
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


def test_kinds_that_nobody_annotated_are_denied_in_rows_of_their_own(scenes, questions):
    for q in questions:
        if q.row not in ("affirmative", "unseen_cues", "seen_cues"):
            texts = [text for choice in q.choices for text in choice if find_cues(tokenize(text))]
            denied = {max(KINDS, key=lambda kind, t=t: t.rfind(kind)) for t in texts}
            if q.row == "never_both":
                assert denied <= set(UNANNOTATED)
            elif q.row == "never_existence":
                assert len(denied & set(UNANNOTATED)) >= 1
            else:
                assert not denied & set(UNANNOTATED), q
    rows = collections.Counter(q.row for q in questions)
    assert rows["affirmative"] == len(scenes) >= rows["existence"] > 0.9 * len(scenes)
    assert rows["never_existence"] > rows["never_both"] > 5


class Told:
    """Features by name, in place of a model."""

    def __init__(self, images, texts):
        self._images, self._texts = images, texts

    def images(self, names):
        return np.array([self._images[name] for name in names], float)

    def texts(self, names):
        return np.array([self._texts[name] for name in names], float)


def test_retrieval_is_among_scenes_that_differ_and_shares_ties(scenes):
    assert len({frozenset(scene.objects) for scene in scenes}) == len(distinct(scenes)[0])
    (group,) = distinct(scenes[:4])
    names = [scene.image for scene in group]
    texts = [describe(scene.objects) for scene in group]
    # The second and the third look alike; the last is taken for the first.
    seen = dict(zip(names, np.eye(4)[[0, 1, 1, 0]], strict=True))
    read = dict(zip(texts, np.eye(4), strict=True))
    found = evaluate.retrieval(scenes[:4], Told(seen, read))
    assert found["image_to_text"] == [1, 1, 0, 0]
    assert found["text_to_image"] == [0.5, 0.5, 0.25, 0.25]


def test_groups_are_of_equal_size():
    many = [Scene(f"{i}.jpg", (("red", f"thing {i}"),), ()) for i in range(2 * RETRIEVED + 50)]
    assert [len(group) for group in distinct(many + many)] == [RETRIEVED, RETRIEVED]


def test_axes_tell_understanding_from_a_liking_for_words(scenes):
    kinds = sorted({kind for scene in scenes for kind in scene.present})
    place = {kind: i for i, kind in enumerate(kinds)}
    images = {s.image: [1 - 2 * (k not in s.present) for k in kinds] + [1] for s in scenes}

    def text(kind, negated, understood, likes):
        row = np.zeros(len(kinds) + 1)
        row[place[kind]] = 0.1 + understood * (1 - 2 * negated)
        row[-1] = likes * (1 - 2 * negated)
        return row

    for understood, likes in ((0.5, 0.0), (0.0, 0.3)):
        texts = {
            said: text(kind, negated, understood, likes)
            for kind in kinds
            for said, negated in (
                (f"there is {noun(kind).a}", False),
                (f"there is no {noun(kind).one}", True),
            )
        }
        found = evaluate.axes(scenes, Told(images, texts))
        assert found["gamma"] == pytest.approx(understood, abs=0.01)
        assert found["alpha"] == pytest.approx(likes, abs=0.02 + understood)
        assert found["beta"] == pytest.approx(0.1, abs=0.01)


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


def test_the_command_writes_all_rows_and_says_how_long_it_takes(
    world, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("negclip_jax.common.progress.FIRST_SECONDS", 0.0)
    monkeypatch.setattr(evaluate, "_AT_A_TIME", {"image": 30, "text": 200})
    write_tiny_clip(tmp_path / "clip", seed=0)
    out = tmp_path / "new" / "evaluation.json"
    evaluate.main([f"--model=base={tmp_path}/clip", f"--world={world}", f"--out={out}"])
    results = json.loads(out.read_text())
    assert list(results["models"]["base"]["rows"]) == list(ROWS)
    assert results["models"]["base"]["rows"]["affirmative"]["n"] == 48
    shown = capsys.readouterr()
    assert all(row in shown.out for row in ROWS)
    for what in ("30 images", "200 texts"):
        assert re.search(rf"/clip: batches of {what}: 1 of \d+, ETA \d+:\d\d\n", shown.err)


@pytest.mark.parametrize("model", ["base=/no/such/clip", "nameless"])
def test_a_bad_model_is_a_sentence(world, tmp_path, model, capsys):
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([f"--model={model}", f"--world={world}", f"--out={tmp_path}/e.json"])
    assert model.removeprefix("base=") in str(stopped.value) + capsys.readouterr().err


def test_the_probe_is_asked_the_questions_of_its_rows(tmp_path):
    make_world(tmp_path, train=40, heldout=10, seed=0)
    write_tiny_clip(tmp_path / "clip", seed=0)
    found = evaluate.probe(tmp_path / "clip", tmp_path / "train", tmp_path / "heldout", 0)
    assert [rows["existence"]["n"] for rows in (found["train"], found["heldout"])] == [37, 10]
    rows = {row: cell["accuracy"] for row, cell in found["train"].items()}
    assert set(rows) < set(ROWS) and rows["existence"] > 0.6
    assert rows["both_polarities"] <= min(rows["absent_polarity"], rows["present_polarity"])
    assert found["heldout"]["existence"]["accuracy"] < rows["existence"]
