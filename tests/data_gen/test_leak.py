"""Whether words alone tell true texts from false ones: on texts that do, and that do not."""

import sys

import pytest

from data_gen import leak
from negclip_jax.common.errors import InputError

OBJECTS = ("dog", "cat", "bus", "car", "cup", "tree")


def texts(false_form: str, images: int = 40) -> list[leak.Text]:
    """A true and a false text an image; objects are absent as often as present."""
    found = []
    for i in range(images):
        absent, present = OBJECTS[i % 6], OBJECTS[(i * 5 + 1 + i // 6) % 6]
        pair = ((f"a street with no {absent}", True), (false_form.format(present), False))
        found += [leak.Text(f"image{i}", f"pair{i}", *text, "template:no") for text in pair]
    return found


def test_a_form_that_is_always_false_is_found():
    result = leak.measure(texts("there is a {}"))
    assert result["accuracy"]["rate"] == 1.0
    assert result["chance"] == 0.5
    assert result["leaks"]
    assert {row["word"] for row in result["words"]} >= {"there is", "no"}
    assert all(row["true"] == 0 or row["false"] == 0 for row in result["words"][:4])
    assert "'no' 40:0" in "\n".join(leak.lines(result))


def test_one_pen_with_objects_exchanged_leaks_nothing():
    result = leak.measure(texts("a street with no {}"))
    assert result["accuracy"]["rate"] <= 0.55
    assert not result["leaks"]


def test_a_text_is_never_judged_by_what_its_own_image_taught():
    """Each image has a word of its own in its true texts: seen in training it would tell all."""
    found = []
    for i in range(20):
        for j in range(2):
            group = f"{i}/{j}"
            found.append(leak.Text(str(i), group, f"word{i} here", True, "f"))
            found.append(leak.Text(str(i), group, "other here", False, "f"))
    assert leak.measure(found)["accuracy"]["rate"] in (0.0, 1.0)  # by "other" alone
    mixed = [t._replace(text=t.text.replace("other", f"noise{i}")) for i, t in enumerate(found)]
    assert leak.measure(mixed)["accuracy"]["rate"] < 0.6


def test_forms_are_told_apart():
    good = [t._replace(form="good") for t in texts("a street with no {}")]
    bad = [t._replace(form="bad", image=f"b{t.image}", group=f"b{t.group}")
           for t in texts("cup of {} not")]  # fmt: skip
    forms = {row["form"]: row["accuracy"]["rate"] for row in leak.measure(good + bad)["forms"]}
    assert forms["bad"] == 1.0 > forms["good"]


def test_too_little_to_judge():
    assert leak.measure([]) is None
    assert leak.measure(texts("there is a {}", images=4)) is None
    assert leak.measure([t for t in texts("there is a {}") if t.truth]) is None
    assert leak.lines(None)


def test_without_scikit_learn_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[audit\]'"):
        leak.measure(texts("there is a {}"))
