"""Charts as inline SVG.

Colours are the page's variables `--m0`, `--m1`, ... in the order of the models. Every text is
escaped by `markupsafe`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

COLOURS = 6  # variables --m0 to --m5 that page.css declares
_ROW = 11  # height of one model's interval
Estimate = Mapping[str, Any]  # `value`, `low`, `high` in [0, 1], and `n`


def colour(place: int) -> str:
    """CSS colour of the model at this place."""
    return f"var(--m{place % COLOURS})"


def intervals(
    found: Sequence[Estimate | None],
    *,
    chance: float | None = None,
    published: Sequence[Mapping[str, Any]] = (),
    published_of: int | None = None,
) -> Markup:
    """One interval and dot per model on 0 to 100 %, chance dashed, published values as triangles.

    These are hollow where the published set has other items, `published_of`.
    """
    pad, width, height = 5, 240, 14 + _ROW * len(found)  # a dot at 0 or 100 % is whole
    span = width - 2 * pad
    marks = [_line(pad, height - 5, width - pad, height - 5)]
    if chance is not None:
        x = pad + chance * span
        title = _mark("title", "chance")
        dashed = {"stroke": "var(--soft)", "stroke_dasharray": "2 3"}
        marks.append(_mark("line", title, x1=x, x2=x, y1=0, y2=height - 4, **dashed))
    for value in published:
        title = f"{value['model']}: {100 * value['value']:.1f} ({value['source']})"
        title += f", for all {published_of:,} items" if published_of else ""
        tick = f"M{pad + value['value'] * span:.1f} {height - 12}l-4 7h8z"
        fill = "none" if published_of else "var(--soft)"
        marks.append(_mark("path", _mark("title", title), d=tick, fill=fill, stroke="var(--soft)"))
    for place, estimate in enumerate(found):
        if estimate is not None:
            marks += _interval(estimate, place, 6 + _ROW * place, pad, span)
    return _svg(width, height, marks)


def breakdown(groups: Mapping[str, Mapping[str, Estimate]], models: Sequence[str]) -> Markup:
    """A line per group: its name, its number of items, and an interval for each model."""
    width, label_width, axis = 380, 146, 18
    band, span = _ROW * len(models) + 8, width - label_width - 8
    height = band * len(groups) + axis
    marks = []
    for share, anchor in ((0, "start"), (0.5, "middle"), (1, "end")):
        x = label_width + share * span
        marks.append(_line(x, 0, x, height - axis))
        marks.append(_text(f"{100 * share:.0f} %", x, height - 5, anchor))
    for i, (name, estimates) in enumerate(groups.items()):
        top = i * band + 4
        n = max((estimate["n"] for estimate in estimates.values()), default=0)
        count = _mark("tspan", f"n={n:,}", opacity=0.7)
        label = name if len(name) <= 15 else name[:14] + "…"
        whole = _mark("title", name)
        marks.append(_text(Markup("{} {}{}").format(label, count, whole), 0, top + band // 2))
        for place, model in enumerate(models):
            if model in estimates:
                y = top + 4 + _ROW * place
                marks += _interval(estimates[model], place, y, label_width, span)
    return _svg(width, height, marks)


def mixtures(points: Sequence[Mapping[str, float]], best: float) -> Markup:
    """`negation` against `retention` of mixtures, a dot an `alpha`, the best one filled."""
    width, height, pad = 340, 230, 40
    foot = height - pad + 14

    def scaled(key: str, start: float, end: float) -> list[float]:
        values = [point[key] for point in points]
        least, span = min(values), (max(values) - min(values)) or 1.0
        return [start + (value - least) / span * (end - start) for value in values]

    places = list(
        zip(scaled("retention", pad, width - 24), scaled("negation", height - pad, 18), strict=True)
    )
    marks = [
        _line(pad - 12, foot, width - 8, foot),
        _line(pad - 12, 8, pad - 12, foot),
        _path(places, "var(--m1)", 1.5),
    ]
    for point, (x, y) in zip(points, places, strict=True):
        fill = "var(--m1)" if point["alpha"] == best else "var(--card)"
        marks.append(_mark("circle", cx=x, cy=y, r=4, fill=fill, stroke="var(--m1)"))
        marks.append(_text(f"{point['alpha']:g}", x + 7, y + 4))
    (left, right), (low, high) = (
        [100 * f(point[key] for point in points) for f in (min, max)]
        for key in ("retention", "negation")
    )
    marks += [
        _text(f"{left:.1f}", pad - 12, height - 10),
        _text(f"retention {right:.1f} %", width - 8, height - 10, "end"),
        _text(f"{low:.1f}", 0, height - pad + 10),
        _text(f"{high:.1f} % negation", 0, 10),
    ]
    return _svg(width, height, marks)


def lines(
    across: Sequence[Sequence[float]], up: Sequence[Sequence[float]], *, titles: tuple[str, str]
) -> Markup:
    """A line per model through its x (`across`) and y in [0, 1], axes from 0 to 100 %."""
    width, height, top, foot = 300, 200, 14, 176
    marks = [_line(0, y, width - 8, y) for y in (top, foot)]
    for place, (xs, ys) in enumerate(zip(across, up, strict=True)):
        scaled = [(x * (width - 8), foot - y * (foot - top)) for x, y in zip(xs, ys, strict=True)]
        marks.append(_path(scaled, colour(place), 1.5))
    marks += [
        _text(f"100 % {titles[1]}", 0, 10),
        _text("0", 0, height - 8),
        _text(f"{titles[0]} 100 %", width - 8, height - 8, "end"),
    ]
    return _svg(width, height, marks)


def losses(train: Sequence[tuple[int, float]], validation: Sequence[tuple[int, float]]) -> Markup:
    """A run's training loss as a line and its validation loss as dots, against the step from 0."""
    width, height, left = 320, 130, 30
    foot = height - 20
    top = max(value for _, value in [*train, *validation])
    last = max(step for step, _ in train)

    def scaled(series: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
        span = width - left - 6
        return [(left + s / last * span, 8 + (1 - v / top) * (foot - 8)) for s, v in series]

    marks = [_line(left, foot, width - 6, foot), _path(scaled(train), "var(--m2)", 2)]
    marks += [_mark("circle", cx=x, cy=y, r=3.5, fill="var(--m1)") for x, y in scaled(validation)]
    marks += [
        _text(f"{top:.1f}", 2, 14),
        _text("0", 2, foot),
        _text(f"{last} steps", width - 6, height - 5, "end"),
    ]
    return _svg(width, height, marks)


def histogram(values: Sequence[float], low: float, high: float, bins: int) -> Markup:
    """How many values fall into each of `bins` equal parts of [low, high]; outliers in the ends."""
    width, height = 320, 110
    counts, edges = np.histogram(np.clip(values, low, high), bins, (low, high))
    top, step, foot = max(1, counts.max()), width / bins, height - 18
    marks = []
    for i, n in enumerate(counts):
        title = _mark("title", f"{edges[i]:g} to {edges[i + 1]:g}: {n:,}")
        bar = foot * n / top
        box = {"x": i * step + 0.5, "y": foot - bar, "width": step - 1, "height": bar, "rx": 1}
        marks.append(_mark("rect", title, **box, fill="var(--m2)", opacity=0.8))
    marks += [
        _line(0, foot, width, foot),
        _text(f"{low:g}", 0, height - 4),
        _text(f"{high:g}", width, height - 4, "end"),
    ]
    return _svg(width, height, marks)


def _interval(
    estimate: Estimate, place: int, y: float, left: float, span: float
) -> tuple[Markup, Markup]:
    low, value, high = (left + estimate[key] * span for key in ("low", "value", "high"))
    bar = {"x1": low, "x2": high, "y1": y, "y2": y, "stroke": colour(place), "stroke_width": 2}
    return _mark("line", **bar), _mark("circle", cx=value, cy=y, r=3.5, fill=colour(place))


def _line(x1: float, y1: float, x2: float, y2: float) -> Markup:
    return _mark("line", x1=x1, x2=x2, y1=y1, y2=y2, stroke="var(--line)")


def _text(text: str, x: float, y: float, anchor: str = "start") -> Markup:
    return _mark("text", text, x=x, y=y, text_anchor=anchor)


def _path(points: Sequence[tuple[float, float]], stroke: str, width: float) -> Markup:
    at = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return _mark("polyline", fill="none", stroke=stroke, stroke_width=width, points=at)


def _mark(tag: str, content: str = "", **attributes: Any) -> Markup:
    """One element; content and attributes are escaped, numbers have one decimal place."""
    shown = Markup("").join(
        Markup(' {}="{}"').format(
            name.replace("_", "-"), f"{value:.1f}" if isinstance(value, float) else value
        )
        for name, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(tag, shown, content)


def _svg(width: float, height: float, marks: Sequence[Markup]) -> Markup:
    head = Markup('<svg viewBox="0 0 {} {}" style="max-width:{:.0f}px" role="img">')
    return head.format(width, height, 1.6 * width) + Markup("").join(marks) + Markup("</svg>")
