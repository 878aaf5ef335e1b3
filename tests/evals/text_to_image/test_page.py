"""The page: both sides, verdicts, labels, and no markup from prompts or answers."""

import json
import re

import browser
import pytest
from PIL import Image

from evals.text_to_image import scores
from evals.text_to_image.judge import Verdict
from negclip_jax.common import storage

HTML = "<script>alert(1)</script>"


@pytest.fixture
def written(drawn, prompts):
    """Function of the judge and of picture -> verdict to the page's text."""
    out, pictures = drawn

    def write(judge, verdicts):
        facts = {"text encoder": "the pipeline's own", "odd": HTML}
        content = {
            "judge": judge,
            "models": {"base": facts, "tuned": facts},
            "notes": [f"a note with {HTML}"],
            "environment": {
                "command": ["x", HTML],
                "python": "3.11",
                "packages": {"torch": "2"},
                "git_revision": None,
            },
            **scores.document(prompts, pictures, verdicts, seed=0),
        }
        storage.write_json(out / scores.RESULTS, content)
        return scores.write_report(out).read_text()

    return write


def verdict(affirmative, negation, answer="no"):
    first = ("Is this a man?", "yes", affirmative, True)
    return Verdict(affirmative, negation, (first, ("Hat?", answer, negation, answer == "no")))


VQA = {"kind": "vqa", "label": "VQA judge gemma"}


def test_pictures_stand_side_by_side_with_their_verdicts(written, drawn):
    out, pictures = drawn
    verdicts = {p: verdict(True, p.model == "tuned") for p in pictures}
    text = written(VQA, verdicts)
    assert text.count('<section class="prompt">') == 3
    assert "<h1>Right pictures: base 0.0 %, tuned 100.0 %</h1>" in text
    assert text.index(">Pictures</h2>") < text.index(">Models</h2>")
    assert text.count('class="right"') == 6 and text.count('class="wrong"') == 6
    assert text.count(">there ✓<") == 12
    assert text.count(">absent ✓<") == text.count(">absent ✗<") == 6
    assert text.count("0 of 2 right") == text.count("2 of 2 right") == 3
    assert text.count("data:image/jpeg;base64,") == 12
    for picture in pictures:
        assert f'href="{picture.file}"' in text and (out / picture.file).is_file()
    section = text.split('<section class="prompt">')[1]
    assert section.index("<b>base</b>") < section.index("<b>tuned</b>")
    assert (
        "VQA judge gemma" in text
        and "100.0 %" in text
        and "+100.0 [+100.0, +100.0] (6 up, 0 down)" in text
    )


def test_the_page_fits_in_both_schemes(written, drawn):
    out, pictures = drawn
    written(VQA, {p: verdict(True, p.model == "tuned") for p in pictures})
    browser.check_fit(out / scores.PAGE)


def test_losses_come_first(written, drawn, prompts):
    _, pictures = drawn
    verdicts = {
        p: verdict(True, (p.model == "base") == (p.prompt == prompts[2].text)) for p in pictures
    }
    order = re.findall(r"<h3>(.*?)</h3>", written(VQA, verdicts))
    assert order[0] == prompts[2].text and len(order) == 3


def test_nothing_of_a_stranger_is_markup(written, drawn):
    _, pictures = drawn
    text = written(VQA, {p: verdict(True, False, HTML) for p in pictures})
    assert "<script" not in text
    assert "a room with no &lt;b&gt;window&lt;/b&gt;" in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "2 answers that are no plain yes or no" not in text  # four a prompt: two models
    assert text.count("4 answers that are no plain yes or no") == 3


def test_a_stand_in_is_labelled_wherever_a_number_stands(written, drawn):
    _, pictures = drawn
    judge = {"kind": "clip_stand_in", "label": "CLIP stand-in, not a VQA judge"}
    text = written(judge, {p: verdict(True, True) for p in pictures})
    assert "<h1>Right pictures by the CLIP stand-in: base 100.0 %" in text
    assert text.count("CLIP stand-in, not a VQA judge") == 2  # above all, and over the table
    assert "do not compare these numbers with those of a judge" in text


def test_without_a_judge(written):
    text = written(None, {})
    assert "No judge has looked at these pictures" in text
    assert "<h1>3 prompts, drawn with two text encoders</h1>" in text
    assert "<h2>Summary</h2>" not in text and text.count("not judged") == 12


def test_half_judged(written, drawn):
    _, pictures = drawn
    text = written(VQA, {p: verdict(True, True) for p in pictures[:5]})
    assert "5 of 12 pictures are judged" in text and text.count("not judged") == 7


def test_a_picture_that_is_gone_or_of_one_colour(written, drawn):
    out, pictures = drawn
    (out / pictures[0].file).unlink()
    Image.new("RGB", (8, 8)).save(out / pictures[1].file)
    text = written(VQA, {})
    assert text.count("is not there") == 1 and text.count("<img") == 11
    content = json.loads((out / scores.RESULTS).read_text())
    content["prompts"][0]["pictures"]["base"][1]["blank"] = True
    storage.write_json(out / scores.RESULTS, content)
    assert scores.write_report(out).read_text().count("one colour") == 1
