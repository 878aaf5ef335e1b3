"""Whether words alone tell true texts from false ones, without the photo.

Where they do, a loss over these texts can fall to zero without an image, and so teaches none. It is
measured by a classifier that sees texts only: naive Bayes over words and pairs of words, asked in
five folds by image which text of a group is the true one.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from negclip_jax.common import extras
from negclip_jax.common.progress import told
from negclip_jax.common.statistics import Share

TOLERATED = 0.05  # above chance
FOLDS = 5
GROUPS = 20_000  # measured at most: a sample, which keeps a million pairs within a minute
_SHOWN = 12  # words and forms
_SEEN = 5  # times a word must occur to be shown


class Text(NamedTuple):
    """A text with what is known about it."""

    image: str  # its image's id: a fold holds all texts of an image
    group: str  # of the texts among which one is chosen, at least one true and one false
    text: str
    truth: bool
    form: str  # of its words, as its writer calls it


def measure(texts: Sequence[Text]) -> dict[str, Any] | None:
    """How often the classifier picks a true text, against chance; None without false texts.

    Returns:
      `accuracy`: share of groups (as `Share`) in which it picks a true text; of equal scores the
      false one counts. `chance`: the mean share of true texts in a group. `forms`: both for each
      form of the true texts, most frequent first. `words`: those that give the truth away,
      strongest first: how often in true and in false texts. `leaks`: whether the accuracy is above
      chance by more than `TOLERATED`.

    Raises InputError where scikit-learn is not installed.
    """
    groups = collections.defaultdict(list)
    for i, text in enumerate(texts):
        groups[text.group].append(i)
    mixed = [g for g in groups.values() if len({texts[i].truth for i in g}) == 2]
    if len({texts[group[0]].image for group in mixed}) < FOLDS:
        return None
    extras.require("sklearn", extra="audit", why="the test whether texts betray their truth")
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.model_selection import GroupKFold
    from sklearn.naive_bayes import MultinomialNB

    vectorizer = CountVectorizer(ngram_range=(1, 2), token_pattern=r"[^\s.,;:!?\"()]+", min_df=2)
    counts = vectorizer.fit_transform([text.text for text in texts])
    truth = np.array([text.truth for text in texts])
    score = np.zeros(len(texts))  # log-odds of being true, by a model that never saw the image
    folds = list(GroupKFold(FOLDS).split(counts, groups=[text.image for text in texts]))
    for learned, held in told(folds, "folds of a classifier of texts"):
        model = MultinomialNB(fit_prior=False).fit(counts[learned], truth[learned])
        score[held] = np.subtract(*model.predict_log_proba(counts[held]).T[::-1])

    by_form = collections.defaultdict(list)
    for group in mixed:
        true = [i for i in group if truth[i]]
        best_false = max(score[i] for i in group if not truth[i])
        picked = bool(max(score[i] for i in true) > best_false)
        by_form[texts[true[0]].form].append((picked, len(true) / len(group)))
    everything = _summary([row for rows in by_form.values() for row in rows])
    forms = [{"form": form, **_summary(rows)} for form, rows in by_form.items()]
    forms.sort(key=lambda row: (-row["accuracy"]["n"], row["form"]))

    in_true, in_false = (np.asarray(counts[rows].sum(0))[0] for rows in (truth, ~truth))
    odds = np.log(in_true + 0.5) - np.log(in_false + 0.5)
    odds -= np.log(in_true.sum() / max(in_false.sum(), 1))
    words = vectorizer.get_feature_names_out()
    often = np.flatnonzero(in_true + in_false >= _SEEN)
    strongest = sorted(often, key=lambda i: (-abs(odds[i]), words[i]))[:_SHOWN]
    return everything | {
        "leaks": everything["accuracy"]["rate"] > everything["chance"] + TOLERATED,
        "forms": forms[:_SHOWN],
        "words": [
            {"word": str(words[i]), "true": int(in_true[i]), "false": int(in_false[i])}
            for i in strongest
        ],
    }


def _summary(rows: Sequence[tuple[bool, float]]) -> dict[str, Any]:
    share = Share.of(sum(picked for picked, _ in rows), len(rows))
    return {"accuracy": share._asdict(), "chance": sum(c for _, c in rows) / len(rows)}


def lines(result: Mapping[str, Any] | None) -> list[str]:
    """The measure for the terminal."""
    if result is not None and "error" in result:
        return [result["error"]]
    if result is None:
        return ["texts alone: too few groups of true and false texts to judge"]
    said = "they betray their truth by" if result["leaks"] else "no more than chance, by"
    words = ", ".join(f"{w['word']!r} {w['true']}:{w['false']}" for w in result["words"][:6])
    accuracy = Share(**result["accuracy"])
    return [
        f"true text found by words alone  {accuracy}, chance {100 * result['chance']:.1f} %",
        f"  {said} (true:false) {words}",
    ]
