"""The comparison as a picture: F1 of every backbone, the published value beside it."""

from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

from detector.training.comparison_results import Result, ranked

_OURS, _COLLAPSED, _PUBLISHED, _INK, _MUTED = "#0a67a8", "#b9c2cb", "#c8500a", "#1c2126", "#68717b"
_BAR_HEIGHT = 0.62
_OURS_AT, _PUBLISHED_AT = 1.13, 1.26  # right edges of the columns of numbers, in units of F1


def draw_comparison(results: Sequence[Result], published: Mapping[str, float | None], title: str, file: BinaryIO) -> None:
    """Draw one horizontal bar per backbone as a PNG, best on top.

    Args:
        results: in any order.
        published: F1 of AI by name, from the published comparison; None or absent draws no mark.
        title: what was measured, one line.
        file: open for writing bytes.
    """
    from matplotlib.figure import Figure

    rows = ranked(results)
    figure = Figure(figsize=(9, 1.6 + 0.44 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, result in enumerate(rows):
        _draw_row(axes, place, result, published.get(result.model))
    for column, heading in ((_OURS_AT, "here"), (_PUBLISHED_AT, "published")):
        axes.text(column, -0.75, heading, ha="right", fontsize=9, color=_MUTED)
    axes.set_yticks(range(len(rows)), [result.model for result in rows])
    axes.set(xlim=(-0.005, _PUBLISHED_AT + 0.01), ylim=(len(rows) - 0.4, -1.1))
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.set_xlabel("F1, AI being positive", loc="left")
    axes.grid(axis="x", color="#e4e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(length=0, colors=_INK)
    axes.set_title(title, loc="left", fontsize=10, color=_INK)
    _add_legend(figure, rows, published)
    figure.savefig(file, format="png", dpi=120)


def _draw_row(axes: Any, place: int, result: Result, published: float | None) -> None:
    axes.barh(place, result.f1 or 0.0, height=_BAR_HEIGHT, color=_COLLAPSED if result.collapsed else _OURS)
    axes.text(_OURS_AT, place, _number(result), ha="right", va="center", fontsize=9, color=_INK)
    if published is not None:
        axes.plot([published] * 2, [place - 0.4, place + 0.4], color=_PUBLISHED, linewidth=2.2, solid_capstyle="butt", zorder=3)
        axes.text(_PUBLISHED_AT, place, f"{published:.4f}", ha="right", va="center", fontsize=9, color=_PUBLISHED)
    if result.collapsed:
        axes.text(0.012, place, "collapsed", va="center", fontsize=9, color=_INK, zorder=4)


def _number(result: Result) -> str:
    if result.failed is not None:
        return "failed"
    return "undefined" if result.f1 is None else f"{result.f1:.4f}"


def _add_legend(figure: Any, rows: Sequence[Result], published: Mapping[str, float | None]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(color=_OURS, label="this comparison")]
    if any(result.collapsed for result in rows):
        handles.append(Patch(color=_COLLAPSED, label="collapsed: one answer for every picture"))
    if any(published.get(result.model) is not None for result in rows):
        handles.append(Line2D([], [], color=_PUBLISHED, linewidth=2.2, label="published, on the contest data of 2022"))
    figure.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False, fontsize=8.5)
