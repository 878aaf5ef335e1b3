"""Texts for people to judge, there and back: the page in a browser, the sample, bad answers."""

import csv
import html
import io
import json
import re
import subprocess

import pytest
from browser import BROWSER
from handmade_run import NASTY, make_run

from data_gen.audit import audit
from data_gen.cli import main
from data_gen.label_sheet import COLUMNS, read_labels, sample, write_sample, write_sheet
from data_gen.records import read_table, write_table
from data_gen.texts import texts
from negclip_jax.common.errors import InputError

NAME = '"><img src=x onerror="document.title=\'taken over\'">.jpg'
ROWS = [
    {"pair_id": f"p{i}", "caption": f"a bus {i}", "negated_caption": "=no()", "rewriter": "llm"}
    for i in range(300)
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The handmade run with a hostile file name, foils that differ, and nothing known to be there:
    no statements."""
    folder = tmp_path_factory.mktemp("sheet")
    run = make_run(folder)
    (folder / "photos" / "1.jpg").rename(folder / "photos" / NAME)
    verdicts = read_table(run, "verdicts").to_pylist()
    rows = [row | {"verdict": row["verdict"].replace("present", "unsure")} for row in verdicts]
    write_table(run / "verdicts" / "part-00000.parquet", "verdicts", rows)
    rows = read_table(run, "pairs").to_pylist()
    for row in rows:
        row["file_name"] = row["file_name"].replace("1.jpg", NAME)
        row["foils"] = [f"A foil {row['pair_id']} with no bus {NASTY}"] if row["accepted"] else []
    write_table(run / "pairs" / "part-00000.parquet", "pairs", rows)
    return run


@pytest.fixture(scope="module")
def sheet(run, tmp_path_factory):
    to = tmp_path_factory.mktemp("to") / "new"
    assert main(["audit", f"--out={run}", f"--sheet={to}"]) == 0
    return to / "label_sheet.html"


def items(page: str) -> list[dict[str, str]]:
    found = re.findall(r'<p class="item" data-id="(.*?)" data-name="(.*?)" hidden>(.*?)</p>', page)
    return [
        dict(zip(("id", "name", "text"), map(html.unescape, row), strict=True)) for row in found
    ]


def test_the_page_shows_texts_of_both_kinds_and_tells_neither(sheet):
    page = sheet.read_text()
    rows = items(page)
    assert len(rows) == 4  # of three accepted pairs; the photo of one is gone
    assert {row["name"] for row in rows} == {NAME, "2.png"} and page.count("<img") == 2
    assert sum("foil" in row["text"] for row in rows) == 2
    bare = re.sub(r"<style>.*?</style>|<script.*</script>|data:[^\"]*", "", page, flags=re.DOTALL)
    for word in ("truth", "writer", "template", "verdict", "foil-"):
        assert word not in bare


def test_statements_are_on_the_sheet_with_both_truths(tmp_path):
    run = make_run(tmp_path)
    said = write_sheet(run, tmp_path)
    shown = {row["text"] for row in items((tmp_path / "label_sheet.html").read_text())}
    rows = [row for _, found in texts(run) for row in found if row["file_name"] != "3.jpg"]
    assert len(shown) > 6 and shown == {row["text"] for row in rows}
    assert "texts of 2 photos; 1 photo is not in" in said


def test_hostile_names_and_captions_are_text(sheet):
    page = sheet.read_text()
    assert NAME not in page and NASTY not in page
    assert "&lt;script&gt;alert" in page and page.count("<script") == 1
    assert "default-src 'none'; img-src data:;" in page
    assert not re.search(r'(src|href)="(?!data:)', page) and "http:" not in page


def test_a_seed_draws_and_the_same_seed_draws_the_same(run, tmp_path):
    def drawn(seed: int) -> list[str]:
        write_sheet(run, tmp_path, 4, seed)
        return [row["id"] for row in items((tmp_path / "label_sheet.html").read_text())]

    assert drawn(1) == drawn(1)
    assert len({tuple(sorted(drawn(seed))) for seed in range(8)}) > 1


def test_a_text_that_two_pairs_have_is_drawn_once(tmp_path):
    run = make_run(tmp_path)
    rows = [r | {"foils": ["A foil"]} for r in read_table(run, "pairs").to_pylist()]
    rows += [rows[1] | {"pair_id": f"q{i}"} for i in range(9)]
    write_table(run / "pairs" / "part-00000.parquet", "pairs", rows)
    write_sheet(run, tmp_path)
    shown = [row["id"] for row in items((tmp_path / "label_sheet.html").read_text())]
    assert len(shown) == len(set(shown)) > 2


def test_a_sheet_needs_photos_and_pairs(run, tmp_path):
    with pytest.raises(InputError, match=r"none of 3 photos is in .*give --images=DIR"):
        write_sheet(run, tmp_path, images=tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        write_sheet(run, tmp_path, images=tmp_path / "none")
    with pytest.raises(InputError, match="--number is 0; at least 2"):
        write_sheet(run, tmp_path, 0)
    empty = make_run(tmp_path / "empty")
    write_table(empty / "pairs" / "part-00000.parquet", "pairs", [])
    with pytest.raises(InputError, match="no accepted pair"):
        write_sheet(empty, tmp_path)
    manifest = json.loads((empty / "manifest.json").read_text())
    manifest["config"]["input"]["images"] = None
    (empty / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="made without photos; give --images=DIR"):
        write_sheet(empty, tmp_path)


# Presses keys in the page, opens it a second time, and shows the file that it saves.
DRIVER = """<body><script>
const seen = [];
function open(then) {
  const frame = document.createElement("iframe");
  [frame.src, frame.width, frame.height] = ["label_sheet.html", 390, 844];
  frame.onload = () => then(frame.contentWindow, frame.contentDocument);
  document.body.append(frame);
}
const told = page => page.getElementById("told").textContent;
open((view, page) => {
  seen.push(page.documentElement.scrollWidth, page.title);
  seen.push([...page.images].map(image => image.naturalWidth));
  for (const key of ["t", "F", " ", "ArrowLeft", "ArrowLeft", "t", "ArrowRight", "x"])
    view.dispatchEvent(new KeyboardEvent("keydown", {key}));
  seen.push(told(page));
  open((view, page) => {
    seen.push(told(page));
    page.querySelector("[data-answer=false]").click();
    seen.push(told(page));
    view.Blob = function (parts) { seen.push(parts.join("")); };
    view.URL.createObjectURL = () => "";
    view.HTMLAnchorElement.prototype.click = () => {};  // a download would keep the browser open
    page.getElementById("save").click();
    document.title = JSON.stringify(seen);
  });
});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_keys_answer_answers_stay_and_the_saved_file_is_read(sheet, run, tmp_path):
    driver = sheet.with_name("driver.html")
    driver.write_text(DRIVER)
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--dump-dom", driver.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    seen = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout)[1]))
    width, title, photos, first, again, last, content = seen
    assert width == 390 and title == "Label sheet: r1"
    assert min(photos) > 0
    assert first == "4 of 4, 3 answered" == again
    assert last == "4 answered"
    saved = tmp_path / "answers.csv"
    saved.write_bytes(content.encode())
    labels = read_labels(saved)
    rows = items(sheet.read_text())
    assert list(labels.answers) == [row["id"] for row in rows]
    assert list(labels.answers.values()) == [True, True, None, False]
    table = list(csv.reader(io.StringIO(saved.read_bytes().decode("utf-8-sig"), newline="")))
    assert [row[1:3] for row in table[1:]] == [[row["name"], row["text"]] for row in rows]
    assert main(["audit", f"--out={run}", f"--labels={saved}"]) == 0


def test_shares_of_false_texts_that_are_true(run, sheet, tmp_path):
    rows = items(sheet.read_text())
    answers = {"foil p1": "true", "foil p2": "", "with no": "false"}
    told = [
        f"{row['id']},{next(word for part, word in answers.items() if part in row['text'])}"
        for row in rows
    ]
    (tmp_path / "answers.csv").write_text("\r".join(["text_id,label", *told]))  # an old Mac's ends
    said = audit(run, labels=tmp_path / "answers.csv")
    found = json.loads((run / "audit.json").read_text())["judged_texts"]
    every = found[0]
    assert (every["false_but_true"]["k"], every["false_but_true"]["n"]) == (1, 1)
    assert (every["true_but_false"]["k"], every["true_but_false"]["n"]) == (2, 2)
    assert {row["name"] for row in found if row["by"] == "writer"} == {"grammar", "llm"}
    assert "all texts: false texts that are true 100.0 % [20.7, 100.0] (1 of 1); true" in said
    assert "3 of 4 rows have a label" in said


def test_a_sample_depends_on_ids_alone():
    chosen = sample(ROWS, 20)
    assert sample(ROWS[::-1], 20) == chosen
    assert len({row["pair_id"] for row in chosen}) == 20
    assert [row["pair_id"] for row in chosen] != [row["pair_id"] for row in ROWS[:20]]


def test_a_sample_of_pairs_is_written_and_read(tmp_path):
    path = tmp_path / "audit_sample.csv"
    write_sample(ROWS, path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 200 and tuple(rows[0]) == COLUMNS
    assert {row["negated_caption"] for row in rows} == {"'=no()"}  # no formula in a spreadsheet
    assert read_labels(path).answers == {}
    for row, label in zip(rows, ("yes", "Y", "no", "0", " right ", ""), strict=False):
        row["label"] = label
    for mark in (",", ";", "\t"):  # as spreadsheets of other countries save it
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, delimiter=mark)
            writer.writeheader()
            writer.writerows(rows)
        labels = read_labels(path)
        assert list(labels.answers.values()) == [True, True, False, False, True]
        assert (labels.key, labels.rows) == ("pair_id", 200)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pair_id,label\np1,maybe\n", r"labels are yes or no, not line 2 \('maybe'\)"),
        ("text_id,label\r\na,\r\nb,both\r\n", r"true, false or cannot tell, not line 3 \('both'\)"),
        ("id,label\np1,yes\n", r"no columns pair_id and label \(it has id, label\)"),
        ("text_id,answer\na,true\n", r"no columns .*\(it has text_id, answer\)"),
        ("", r"no columns pair_id and label \(it is empty\)"),
        ("text_id,label\na,true\nb,\na,false\n", "same text_id in line 4, as line 2 does"),
        ("pair_id,label\n" + "p,x\n" * 7, r"line 6 \('x'\) and 2 more"),
        ('pair_id,label\np1,"yes, it is\n', "not line 2"),
        ("pair_id\np1\n", r"\(it has pair_id\)"),
    ],
)
def test_bad_labels_are_one_line_errors(tmp_path, text, message):
    path = tmp_path / "x.csv"
    path.write_bytes(text.encode())
    with pytest.raises(InputError, match=message) as caught:
        read_labels(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", "pair_id,label\np1,yes\n".encode("utf-16")])
def test_what_is_no_csv_is_named(tmp_path, content):
    (tmp_path / "x.csv").write_bytes(content)
    for name in ("x.csv", "none.csv"):
        with pytest.raises(InputError, match="cannot be read as CSV"):
            read_labels(tmp_path / name)


def test_answers_of_another_run_are_refused_and_some_are_named(run, sheet, tmp_path):
    path = tmp_path / "answers.csv"
    path.write_text("text_id,label\nx,true\ny,false\n")
    with pytest.raises(
        InputError, match=r"none of 2 labels belongs to a text .*\(line 2, line 3\)"
    ):
        audit(run, labels=path)
    path.write_text(f"text_id,label\nx,true\n{items(sheet.read_text())[0]['id']},false\n,\n")
    said = audit(run, labels=path)
    assert "1 label belongs to no text of this run: line 2" in said
    assert f"{path}: 2 of 3 rows have a label" in said
