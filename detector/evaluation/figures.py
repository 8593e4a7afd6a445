"""The report's figures as SVG: numbers and our own words only, never a stranger's text.

A figure is drawn in the light palette. :func:`inline` makes of it a piece of HTML whose colours are the page's CSS
variables, so that it follows a dark screen and a white sheet of paper alike.
"""

import io
import re
from typing import Any

import numpy as np

from detector import metrics
from detector.labels import Label
from detector.metrics import Floats, Ints

# Orange and blue of Okabe and Ito's palette, told apart with every kind of colour vision.
PALETTE = {"ink": "#1c2126", "muted": "#68717b", "line": "#d5dadf", "ai": "#c8500a", "real": "#0a67a8", "paper": "#ffffff"}
MAX_POINTS = 800  # more cannot be seen on a curve this wide
NUM_SCORE_BINS = 40
Measured = tuple[float | None, list[float] | None]  # a metric and its interval


def inline(svg: str, description: str) -> str:
    """An SVG document as an inline HTML element: page colours, no ids that could meet another figure's."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", body)
    for name, colour in PALETTE.items():
        body = body.replace(colour, f"var(--{name}, {colour})")
    return body.replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1)


def _new(width: float = 4.6, height: float = 3.5) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALETTE["line"])
    axes.tick_params(colors=PALETTE["muted"], length=3, labelsize=9)
    return figure, axes


def _name_axes(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x, color=PALETTE["ink"], fontsize=9.5)
    axes.set_ylabel(y, color=PALETTE["ink"], fontsize=9.5)


def _svg(figure: Any, name: str) -> str:
    import matplotlib as mpl

    target = io.StringIO()
    # Text stays text (small, searchable); the salt keeps the clip paths of two figures on one page apart.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None})
    return target.getvalue()


def _unit_square(axes: Any) -> None:
    axes.set(xlim=(-0.015, 1.015), ylim=(-0.015, 1.015), aspect="equal")
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(color=PALETTE["line"], linewidth=0.5)
    axes.set_axisbelow(True)


def _thinned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    if len(x) <= MAX_POINTS:
        return x, y
    kept = np.unique(np.linspace(0, len(x) - 1, MAX_POINTS).astype(np.int64))
    return x[kept], y[kept]


def in_words(measured: Measured, digits: int = 3) -> str:
    """A metric with its interval, for a person."""
    value, interval = measured
    if value is None:
        return "not defined"
    between = f" ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})" if interval else ""
    return f"{value:.{digits}f}{between}"


def draw_roc(labels: Ints, p_ai: Floats, *, area: Measured, operating_point: tuple[float, float], equal_error: float) -> str:
    """The ROC curve, with the point at which the published labels work and the equal error rate."""
    figure, axes = _new()
    _unit_square(axes)
    axes.plot([0, 1], [0, 1], color=PALETTE["muted"], linewidth=0.8, linestyle=(0, (4, 4)))
    axes.plot(*_thinned(*metrics.roc_points(labels, p_ai)), color=PALETTE["ai"], linewidth=2)
    axes.plot(*operating_point, "o", color=PALETTE["ink"], markersize=6, label="as published (threshold 0.5)")
    axes.plot(equal_error, 1 - equal_error, "D", markerfacecolor="none", markeredgecolor=PALETTE["ink"], markersize=6,
              label="misses = false alarms", linestyle="none")  # fmt: skip
    axes.plot([], [], " ", label=f"area {in_words(area)}")
    _name_axes(axes, "human-made pictures called AI", "AI pictures found")
    _legend(axes, "lower right")
    return _svg(figure, "roc")


def draw_precision_recall(labels: Ints, p_ai: Floats, *, average: Measured, operating_point: tuple[float, float] | None) -> str:
    """The precision-recall curve of AI; the dashed line is what guessing gives."""
    figure, axes = _new()
    _unit_square(axes)
    share = float(np.mean(labels == Label.AI))
    axes.axhline(share, color=PALETTE["muted"], linewidth=0.8, linestyle=(0, (4, 4)))
    precision, recall = metrics.precision_recall_points(labels, p_ai)
    axes.plot(*_thinned(recall, precision), color=PALETTE["ai"], linewidth=2, drawstyle="steps-post")
    if operating_point is not None:
        axes.plot(*operating_point, "o", color=PALETTE["ink"], markersize=6, label="as published (threshold 0.5)")
    axes.plot([], [], " ", label=f"average precision {in_words(average)}")
    _name_axes(axes, "recall: AI pictures found", "precision: right among called AI")
    _legend(axes, "lower left")
    return _svg(figure, "precision-recall")


def _legend(axes: Any, place: str) -> None:
    legend = axes.legend(loc=place, fontsize=8.5, frameon=True, handlelength=1.2, edgecolor="none",
                         facecolor=PALETTE["paper"], framealpha=0.85)  # fmt: skip
    for text in legend.get_texts():
        text.set_color(PALETTE["ink"])


def draw_calibration(labels: Ints, p_ai: Floats, *, error: Measured) -> str:
    """How often pictures of a given probability are AI; on the diagonal the probabilities can be taken at their word."""
    figure, axes = _new()
    _unit_square(axes)
    curve = metrics.calibration_curve(labels, p_ai)
    axes.plot([0, 1], [0, 1], color=PALETTE["muted"], linewidth=0.8, linestyle=(0, (4, 4)))
    axes.vlines(curve.mean_p_ai, curve.low, curve.high, color=PALETTE["ai"], linewidth=1.2, alpha=0.6)
    area = 14 + 110 * curve.num_images / curve.num_images.max()
    axes.scatter(curve.mean_p_ai, curve.share_ai, s=area, color=PALETTE["ai"], edgecolors=PALETTE["paper"], zorder=3)
    axes.plot([], [], " ", label=f"calibration error {in_words(error)}")
    _name_axes(axes, "stated probability of AI (line: 95% interval)", "share that is AI")
    _legend(axes, "upper left")
    return _svg(figure, "calibration")


def draw_scores(p_ai: Floats, is_upper: np.ndarray, names: tuple[str, str], *, wide: bool = False) -> str:
    """Histogram of ``p_ai``, one group above the line and one below; square-root counts, so that a few still show."""
    figure, axes = _new(9.6, 3.3) if wide else _new()
    bins = np.linspace(0, 1, NUM_SCORE_BINS + 1)
    for mask, sign, colour in ((is_upper, 1, PALETTE["ai"]), (~is_upper, -1, PALETTE["real"])):
        counts = np.sqrt(np.histogram(p_ai[mask], bins)[0])
        axes.stairs(sign * counts, bins, fill=True, color=colour, linewidth=0)
    top = max(abs(value) for value in axes.get_ylim())
    axes.set(xlim=(0, 1), ylim=(-top, top))
    axes.axhline(0, color=PALETTE["ink"], linewidth=0.8)
    axes.axvline(0.5, color=PALETTE["muted"], linewidth=0.8, linestyle=(0, (4, 4)))
    ticks = _round_counts(top**2)
    axes.set_yticks([*(-np.sqrt(ticks[::-1])), 0, *np.sqrt(ticks)], [f"{n:,}" for n in [*ticks[::-1], 0, *ticks]])
    for name, place, anchor, colour in ((names[0], 0.98, "top", "ai"), (names[1], 0.02, "bottom", "real")):
        axes.text(0.5, place, name, transform=axes.transAxes, ha="center", va=anchor, color=PALETTE[colour], fontsize=10,
                  fontweight="bold", bbox={"facecolor": PALETTE["paper"], "edgecolor": "none", "pad": 1.5})  # fmt: skip
    _name_axes(axes, "probability of AI", "pictures (square-root scale)")
    return _svg(figure, "scores")


def _round_counts(top: float) -> Ints:
    """About three round numbers that stay apart on a square-root axis."""
    steps = np.array([m * 10**e for e in range(10) for m in (1, 2, 5)])
    fitting = steps[steps <= max(top, 1)]
    return fitting[::-1][::2][:3][::-1].astype(np.int64)


def draw_confusion(cells: dict[str, int]) -> str:
    """The confusion matrix, rows being the truth; the shade is the share of the row."""
    figure, axes = _new(4.6, 3.5)
    axes.spines[:].set_visible(False)
    for y, (left, right, colour) in enumerate((("tp", "fn", "ai"), ("fp", "tn", "real"))):
        total = cells[left] + cells[right]
        for x, key in enumerate((left, right)):
            share = cells[key] / total if total else 0.0
            axes.add_patch(_tile(x, y, PALETTE[colour], 0.10 + 0.55 * share))
            axes.text(x + 0.5, y + 0.46, f"{cells[key]:,}", ha="center", va="center", fontsize=20, color=PALETTE["ink"])
            note = f"{share:.1%}" if total else "none in the truth"
            axes.text(x + 0.5, y + 0.74, note, ha="center", va="center", fontsize=9.5, color=PALETTE["ink"])
    axes.set(xlim=(0, 2), ylim=(2, 0))
    axes.set_xticks([0.5, 1.5], ["called AI", "called human-made"], fontsize=10)
    axes.set_yticks([0.5, 1.5], ["is AI", "is\nhuman-made"], fontsize=10)
    axes.tick_params(length=0, colors=PALETTE["ink"])
    axes.xaxis.tick_top()
    return _svg(figure, "confusion")


def _tile(x: float, y: float, colour: str, opacity: float) -> Any:
    from matplotlib.patches import FancyBboxPatch

    tile = FancyBboxPatch((x + 0.03, y + 0.04), 0.94, 0.92, boxstyle="round,pad=0,rounding_size=0.05")
    tile.set(facecolor=colour, alpha=opacity, linewidth=0)
    return tile
