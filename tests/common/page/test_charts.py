"""SVG that is well formed, in place and escaped."""

import xml.etree.ElementTree as ET

import pytest

from negclip_jax.common.page import charts


def estimate(value: float, half: float = 0.1, n: int = 10) -> dict:
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def parse(markup) -> ET.Element:
    return ET.fromstring(str(markup))


def numbers(svg: ET.Element, tag: str, attribute: str) -> list[float]:
    return [float(node.get(attribute)) for node in svg.iter(tag)]


def test_intervals_stand_where_the_numbers_say():
    """On an axis with room at both ends, so that a dot at 0 or 100 % is not cut."""
    svg = parse(charts.intervals([estimate(0.5), None, estimate(0.75)], chance=0.25))
    width = float(svg.get("viewBox").split()[2])
    axis = next(svg.iter("line"))
    start, end = (float(axis.get(x)) for x in ("x1", "x2"))
    radius = max(numbers(svg, "circle", "r"))
    assert start >= radius and end <= width - radius

    def at(share: float) -> float:
        return start + share * (end - start)

    assert numbers(svg, "circle", "cx") == [at(0.5), at(0.75)]
    colours = [node.get("fill") for node in svg.iter("circle")]
    assert colours == ["var(--m0)", "var(--m2)"]
    dashed = [node for node in svg.iter("line") if node.get("stroke-dasharray")]
    assert [float(node.get("x1")) for node in dashed] == [at(0.25)]


def test_published_values_are_ticks_with_their_source():
    published = {"model": "<b>CLIP</b>", "value": 0.4, "source": "a & b"}
    markup = charts.intervals([estimate(0.5)], published=[published])
    assert "<b>" not in str(markup)
    assert parse(markup).find(".//path/title").text == "<b>CLIP</b>: 40.0 (a & b)"


def test_published_values_of_another_set_are_hollow():
    published = {"model": "CLIP", "value": 0.4, "source": "a paper"}
    for size, fill in ((None, "var(--soft)"), (1234, "none")):
        chart = charts.intervals([estimate(0.5)], published=[published], published_of=size)
        (tick,) = parse(chart).iter("path")
        assert tick.get("fill") == fill and tick.get("stroke") == "var(--soft)"
        assert ("for all 1,234 items" in tick.find("title").text) == (size is not None)


def test_dots_at_the_ends_are_whole_and_names_clear_of_bars():
    groups = {"a very long name of a group": {"a": estimate(0, 0, 12345), "b": estimate(1, 0)}}
    svg = parse(charts.breakdown(groups, ["a", "b"]))
    width, radius = float(svg.get("viewBox").split()[2]), numbers(svg, "circle", "r")[0]
    low, high = numbers(svg, "circle", "cx")
    label = "".join(next(svg.iter("text")).itertext()).partition("a very long name")[0]
    assert high + radius <= width and low - radius > 5.8 * len(label)  # at 11 px a letter is 5.8


def test_a_breakdown_has_a_line_a_group_and_a_mark_a_model():
    groups = {
        "<no>": {"a": estimate(0.2, n=1234), "b": estimate(0.9)},
        "a very long name of a group": {"b": estimate(0.5)},
    }
    markup = charts.breakdown(groups, ["a", "b"])
    svg = parse(markup)
    texts = [node.text + (node.findtext("tspan") or "") for node in svg.iter("text")]
    assert "<no> n=1,234" in texts and "a very long na… n=10" in texts
    assert [node.get("fill") for node in svg.iter("circle")] == [
        "var(--m0)",
        "var(--m1)",
        "var(--m1)",
    ]
    rows = numbers(svg, "circle", "cy")
    assert rows == sorted(rows)


@pytest.mark.parametrize("flat", [False, True])
def test_the_curve_rises_with_negation_and_runs_with_retention(flat):
    points = [
        {"alpha": 0, "retention": 0.6, "negation": 0.5},
        {"alpha": 0.5, "retention": 0.6 if flat else 0.59, "negation": 0.7},
        {"alpha": 1, "retention": 0.6 if flat else 0.5, "negation": 0.8},
    ]
    svg = parse(charts.mixtures(points, best=0.5))
    xs, ys = numbers(svg, "circle", "cx"), numbers(svg, "circle", "cy")
    assert ys[0] > ys[1] > ys[2]  # SVG counts from the top
    assert xs[0] == xs[1] == xs[2] if flat else xs[0] > xs[1] > xs[2]
    filled = [node.get("fill") == "var(--m1)" for node in svg.iter("circle")]
    assert filled == [False, True, False]


def test_lines_lie_between_their_axes_and_labels_are_escaped():
    svg = str(charts.lines([(0, 1), (0, 0.5)], [(0, 1), (1, 1)], titles=("<x>", "y & z")))
    assert 'points="0.0,176.0 292.0,14.0"' in svg and 'points="0.0,14.0 146.0,14.0"' in svg
    assert "var(--m0)" in svg and "var(--m1)" in svg
    assert "&lt;x&gt;" in svg and "y &amp; z" in svg


def test_losses_fall_from_left_to_right():
    svg = parse(charts.losses([(50, 4.0), (100, 1.0)], [(0, 4.0), (100, 0.5)]))
    (line,) = svg.iter("polyline")
    assert line.get("points") == "172.0,8.0 314.0,84.5"
    assert numbers(svg, "circle", "cx") == [30, 314] and numbers(svg, "circle", "cy")[0] == 8
    assert [node.text for node in svg.iter("text")] == ["4.0", "0", "100 steps"]


def test_a_histogram_says_what_its_bars_count():
    svg = parse(charts.histogram([0.1, 0.2, 0.9], 0, 1, 2))
    titles = [node.text for node in svg.iter("title")]
    assert titles == ["0 to 0.5: 2", "0.5 to 1: 1"]
    assert numbers(svg, "rect", "height") == [92, 46]


def test_a_histogram_keeps_everything():
    svg = parse(charts.histogram([0, 0.05, 0.5, 1.0, 2.0, -1], 0, 1, 10))
    counts = [int(node.text.rpartition(" ")[2]) for node in svg.iter("title")]
    assert counts == [3, 0, 0, 0, 0, 1, 0, 0, 0, 2]
