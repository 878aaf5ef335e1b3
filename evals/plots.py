"""Inline SVG for the report: intervals in a row, breakdowns by group, the interpolation curve.

Colours are the page's variables `--m0`, `--m1`, ... in the order of the models. Every text is
escaped by `markupsafe`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

COLOURS = 6  # variables --m0 to --m5 that report.html declares
_ROW, _LABEL, _WIDTH, _AXIS = 11, 104, 340, 18


def colour(index: int) -> str:
    """CSS colour of the model at this place."""
    return f"var(--m{index % COLOURS})"


def intervals(
    cells: Sequence[Mapping[str, Any] | None],
    *,
    chance: float | None = None,
    published: Sequence[Mapping[str, Any]] = (),
) -> Markup:
    """One interval and dot per model on 0 to 100 %, chance dashed, published values as ticks."""
    width, height = 240, 14 + _ROW * len(cells)
    marks = [_line(0, width, height - 5, height - 5, "var(--line)")]
    if chance is not None:
        marks.append(_dashed(chance * width, 0, height - 4))
    for value in published:
        title = f"{value['model']}: {100 * value['value']:.1f} ({value['source']})"
        marks.append(
            Markup(
                '<path d="M{0:.1f} {1}l-4 7h8z" fill="var(--soft)"><title>{2}</title></path>'
            ).format(value["value"] * width, height - 12, title)
        )
    for i, cell in enumerate(cells):
        if cell is not None:
            marks.append(_interval(cell, i, 6 + _ROW * i, lambda share: share * width))
    return _svg(width, height, marks)


def breakdown(groups: Mapping[str, Mapping[str, Mapping[str, Any]]], rows: Sequence[str]) -> Markup:
    """A line per group: its name, its number of items, and an interval for each model.

    Args:
      groups: {group: {model: estimate}}.
      rows: the models, in the order of their colours.
    """
    band = _ROW * len(rows) + 8
    height = band * len(groups) + _AXIS
    span = _WIDTH - _LABEL - 8

    def x(share: float) -> float:
        return _LABEL + share * span

    marks = [_line(x(share), x(share), 0, height - _AXIS, "var(--line)") for share in (0, 0.5, 1)]
    marks += [
        Markup('<text x="{0:.0f}" y="{1}" text-anchor="{3}">{2}</text>').format(
            x(share), height - 5, f"{100 * share:.0f} %", anchor
        )
        for share, anchor in ((0, "start"), (0.5, "middle"), (1, "end"))
    ]
    for i, (name, by_row) in enumerate(groups.items()):
        top = i * band + 4
        n = max((found["n"] for found in by_row.values()), default=0)
        label = name if len(name) <= 15 else name[:14] + "…"
        marks.append(
            Markup('<text x="0" y="{0:.0f}">{1} <tspan opacity=".7">{2}</tspan></text>').format(
                top + band / 2, label, f"n={n:,}"
            )
        )
        for j, row in enumerate(rows):
            if row in by_row:
                marks.append(_interval(by_row[row], j, top + 4 + _ROW * j, x))
    return _svg(_WIDTH, height, marks)


def curve(points: Sequence[Mapping[str, float]], best: float) -> Markup:
    """Negation against retention, one dot per alpha, the best one filled."""
    width, height, pad = 340, 230, 40

    def scale(key: str, low: float, high: float) -> Mapping[float, float]:
        values = [p[key] for p in points]
        least, span = min(values), (max(values) - min(values)) or 1.0
        return {v: low + (v - least) / span * (high - low) for v in values}

    xs, ys = scale("retention", pad, width - 24), scale("negation", height - pad, 18)
    places = [(xs[p["retention"]], ys[p["negation"]]) for p in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    marks = [
        _line(pad - 12, width - 8, height - pad + 14, height - pad + 14, "var(--line)"),
        _line(pad - 12, pad - 12, 8, height - pad + 14, "var(--line)"),
        Markup('<polyline fill="none" stroke="var(--m1)" stroke-width="1.5" points="{}"/>').format(
            line
        ),
    ]
    for point, (x, y) in zip(points, places, strict=True):
        fill = "var(--m1)" if point["alpha"] == best else "var(--card)"
        marks.append(
            Markup(
                '<circle cx="{0:.1f}" cy="{1:.1f}" r="4" fill="{2}" stroke="var(--m1)"/>'
                '<text x="{0:.1f}" y="{3:.1f}" dx="7">{4:g}</text>'
            ).format(x, y, fill, y + 4, point["alpha"])
        )
    (left, right), (low, high) = (
        tuple(f(p[key] for p in points) for f in (min, max)) for key in ("retention", "negation")
    )
    marks += [
        Markup('<text x="{}" y="{}">{:.1f}</text>').format(pad - 12, height - 10, 100 * left),
        Markup('<text x="{}" y="{}" text-anchor="end">retention {:.1f} %</text>').format(
            width - 8, height - 10, 100 * right
        ),
        Markup('<text x="{}" y="{}">{:.1f}</text>').format(0, height - pad + 10, 100 * low),
        Markup('<text x="{}" y="{}">{:.1f} % negation</text>').format(0, 10, 100 * high),
    ]
    return _svg(width, height, marks)


def lines(
    models: Sequence[tuple[Sequence[float], Sequence[float]]], *, across: str, up: str
) -> Markup:
    """A line per model through points (x, y), both axes from 0 to 100 %.

    Args:
      models: x and y of each, in [0, 1], in the order of the colours.
      across, up: what the axes are.
    """
    width, height, pad = 300, 200, 24

    def points(xs: Sequence[float], ys: Sequence[float]) -> str:
        places = zip(xs, ys, strict=True)
        return " ".join(
            f"{x * (width - 8):.1f},{height - pad - y * (height - pad - 14):.1f}" for x, y in places
        )

    marks = [_line(0, width - 8, y, y, "var(--line)") for y in (14, height - pad)]
    marks += [
        Markup('<polyline fill="none" stroke="{}" stroke-width="1.5" points="{}"/>').format(
            colour(i), points(xs, ys)
        )
        for i, (xs, ys) in enumerate(models)
    ]
    marks += [
        Markup('<text x="0" y="10">100 % {}</text>').format(up),
        Markup('<text x="0" y="{}">0</text>').format(height - 8),
        Markup('<text x="{}" y="{}" text-anchor="end">{} 100 %</text>').format(
            width - 8, height - 8, across
        ),
    ]
    return _svg(width, height, marks)


def _interval(found: Mapping[str, Any], index: int, y: float, x: Any) -> Markup:
    low, value, high = (x(found[key]) for key in ("low", "value", "high"))
    return Markup(
        '<line x1="{0:.1f}" x2="{1:.1f}" y1="{2}" y2="{2}" stroke="{3}" stroke-width="2"/>'
        '<circle cx="{4:.1f}" cy="{2}" r="3.5" fill="{3}"/>'
    ).format(low, high, y, colour(index), value)


def _dashed(x: float, top: float, bottom: float) -> Markup:
    return Markup(
        '<line x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}" stroke="var(--soft)" '
        'stroke-dasharray="2 3"><title>chance</title></line>'
    ).format(x, top, bottom)


def _line(x1: float, x2: float, y1: float, y2: float, stroke: str) -> Markup:
    return Markup('<line x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}" stroke="{}"/>').format(
        x1, x2, y1, y2, stroke
    )


def _svg(width: float, height: float, marks: Sequence[Markup]) -> Markup:
    head = Markup('<svg viewBox="0 0 {0} {1}" style="max-width:{2}px" role="img">').format(
        width, height, 1.4 * width
    )
    return head + Markup("").join(marks) + Markup("</svg>")
