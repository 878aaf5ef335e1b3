"""docs/scaling.md: its tables are what the command writes, and one of its rows is made anew."""

import dataclasses
import json

import jax
import pytest
from tiny_runs import ROOT

from bench import scaling
from bench.scaling import ACCELERATORS, Accelerator
from negclip_jax.models.clip import TextConfig
from negclip_jax.runtime import timing

DOCUMENT, FIGURES = ROOT / "docs" / "scaling.md", ROOT / "docs" / "scaling.json"


@pytest.fixture(scope="module")
def figures() -> dict:
    return json.loads(FIGURES.read_text())


def test_the_document_shows_the_figures(figures):
    text = DOCUMENT.read_text()
    assert scaling.render(text, figures["results"]) == text, "run python -m bench.scaling --reuse"
    changed = [dict(r, program_flops=2 * r["program_flops"]) for r in figures["results"]]
    assert scaling.render(text, changed) != text


@pytest.mark.long
def test_a_row_of_the_document_made_anew(figures):
    if figures["versions"]["jax"] != jax.__version__:
        pytest.skip(f"the document was made with JAX {figures['versions']['jax']}")
    case = scaling.STEPS[0]
    (ours,) = scaling.measure(8, [case])
    (written,) = scaling.chosen(figures["results"], [case], 8)
    assert json.loads(json.dumps(ours)) == written


def test_rows_are_in_their_places(figures):
    results = figures["results"]
    assert len(results) == sum(len(cases) for cases in scaling.CASES.values())
    for devices, cases in scaling.CASES.items():
        assert [r["devices"] for r in scaling.chosen(results, cases, devices)] == [devices] * len(
            cases
        )


def test_what_bounds_a_step_is_bold():
    assert scaling._bound((0.002, 0.0011, 0.0123)) == "2.0 / 1.1 / **12**"
    assert scaling._bound((1.5, 0.00042, 0.0)) == "**1,500** / 0.42 / 0.00"


def test_a_batch_is_compute_bound_from_where_the_longest_time_is_that_of_products(figures):
    (result,) = scaling.chosen(figures["results"], [scaling.STEPS[3]], 8)
    for device in scaling.ACCELERATORS:
        batch, bound = scaling.compute_bound_batch(result, device, 8)
        assert not bound and batch <= result["pairs"] * 8
        products, memory, links = scaling.times(result, device)
        assert products > max(memory, links)
    slow_memory = dataclasses.replace(device, memory_rate=device.memory_rate / 1e3)
    slow_links = dataclasses.replace(device, link_rate=1.0)
    for slow, word in ((slow_memory, "memory"), (slow_links, "links")):
        assert scaling.compute_bound_batch(result, slow, 8) == (131_072, word)


def test_costs_grow_with_pairs_and_shrink_with_the_cache():
    v5e, v6e, _ = scaling.ACCELERATORS
    text = scaling.hours("vit_l_14", "text", 1e6, v5e)
    assert scaling.hours("vit_l_14", "text", 1e7, v5e) == pytest.approx(10 * text)
    assert scaling.hours("vit_l_14", "all", 1e6, v5e) > 5 * text
    assert scaling.hours("vit_l_14", "text", 1e6, v6e) == pytest.approx(text * 197 / 918)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reuse"], "--reuse needs --json=FILE"),
        (["--reuse", "--json=absent.json"], "--reuse needs --json=FILE"),
        (["--out=absent.md"], r"absent\.md does not exist"),
    ],
)
def test_user_errors_are_one_line(arguments, message):
    with pytest.raises(SystemExit, match=message):
        scaling.main(arguments)


def test_tables_are_rewritten_in_place(tmp_path, capsys):
    document = tmp_path / "doc.md"
    names = scaling.tables(json.loads(FIGURES.read_text())["results"])
    places = "\n".join(f"<!-- table: {name} -->\nold\n<!-- end -->" for name in names)
    document.write_text(f"before\n{places}\nafter\n")
    scaling.main([f"--out={document}", f"--json={FIGURES}", "--reuse"])
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| TPU v5e" in text
    scaling.main([f"--json={FIGURES}", "--reuse"])
    assert "| TPU v5e" in capsys.readouterr().out
    old = tmp_path / "old.json"
    old.write_text(json.dumps({"results": []}))
    with pytest.raises(SystemExit, match=r"no figures of Case\(.* on 8 devices: leave out --reuse"):
        scaling.main([f"--json={old}", "--reuse"])
    document.write_text("no marks")
    with pytest.raises(SystemExit, match="no marks <!-- table: accelerators or"):
        scaling.main([f"--out={document}", f"--json={FIGURES}", "--reuse"])


# Least times from peaks, against sums written out.
DEVICE = Accelerator("X", 1e12, 1e9, 1e9, link_rate=100.0, group=4, network_rate=10.0, sources=())


def message(kind: str, size: int, devices: int, times: int = 1) -> dict:
    return {"kind": kind, "size": size, "devices": devices, "times": times, "loops": 0}


@pytest.mark.parametrize(
    ("sent", "seconds"),
    [
        (message("all-reduce", 400, 4), 2 * 300 / 100),
        (message("all-gather", 400, 4, times=3), 3 * 300 / 100),
        (message("reduce-scatter", 100, 4), 300 / 100),
        (message("collective-permute", 100, 4), 75 / 100),
        # Two groups: each device carries a quarter of the other group's half.
        (message("all-gather", 800, 8), 600 / 100 + 400 / 4 / 10),
        (message("all-reduce", 800, 8), 2 * (600 / 100 + 400 / 4 / 10)),
        (message("all-reduce", 800, 1), 0),
    ],
)
def test_seconds_of_messages(sent, seconds):
    assert scaling.message_seconds([sent], DEVICE) == pytest.approx(seconds)
    assert scaling.message_seconds([sent, sent], DEVICE) == pytest.approx(2 * seconds)


def test_memory_traffic_written_out():
    tower = TextConfig(width=8, heads=2, mlp_width=32, layers=3)
    in_and_out = 4 * (8 + 8) + 2 * (8 + 32)  # query, key, value, output; both of the MLP
    passes, layers, tokens, bfloat16 = 3, 3, 5, 2
    activations = passes * layers * tokens * bfloat16 * in_and_out
    assert scaling.memory_traffic([(tower, 5)], trained=100) == activations + 40 * 100
    assert scaling.memory_traffic([(tower, 5)] * 2, trained=0) == 2 * activations


@pytest.mark.parametrize("device", ACCELERATORS, ids=lambda device: device.name)
def test_peaks_are_those_that_runs_report_against(device):
    kind = {"TPU v5e": "TPU v5e", "TPU v6e": "TPU v6", "H100 SXM": "NVIDIA H100"}[device.name]
    assert timing.peak_flops(kind, 1, "bfloat16") == pytest.approx(device.flops, rel=1e-3)
    assert all(source.startswith("https://") for source in device.sources)
