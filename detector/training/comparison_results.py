"""The rows of a comparison, their order, and ``comparison.csv``."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

CSV_FILE = "comparison.csv"
COLUMNS = ("model", "f1", "precision", "recall", "accuracy", "parameters", "train_seconds", "images_per_second", "collapsed")
_FORMATS = {"train_seconds": ".2f", "images_per_second": ".2f"}


@dataclass(frozen=True, kw_only=True)
class Result:
    """How one backbone did. An undefined metric is None; all of them are None where the backbone failed.

    Attributes:
        model: its name.
        f1, precision, recall, accuracy: on the test split, AI being positive.
        parameters: number of weights, with its two-class head.
        train_seconds: seconds in training steps; start-up, evaluations and saving are left out.
        images_per_second: test pictures decoded, resized and scored per second by all scoring processes together; loading
            the model and the first batch are left out.
        collapsed: whether it gives one answer for every test picture.
        failed: why there is no result, or None.
    """

    model: str
    f1: float | None = None
    precision: float | None = None
    recall: float | None = None
    accuracy: float | None = None
    parameters: int | None = None
    train_seconds: float | None = None
    images_per_second: float | None = None
    collapsed: bool | None = None
    failed: str | None = None

    def row(self) -> dict[str, Any]:
        """Its values by column."""
        values = asdict(self)
        return {name: values[name] for name in COLUMNS}


def ranked(results: Sequence[Result]) -> list[Result]:
    """Best F1 first; ties by accuracy, then by name; an undefined F1 after all others, and failures last."""

    def key(result: Result) -> tuple[bool, float, float, str]:
        """Ascending: what is worse is larger."""
        return result.failed is not None, -_number(result.f1), -_number(result.accuracy), result.model

    return sorted(results, key=key)


def best_of(results: Sequence[Result]) -> Result | None:
    """The first of them that tells anything apart; the first where none does. None where all failed."""
    finished = [result for result in ranked(results) if result.failed is None]
    return next((result for result in finished if not result.collapsed), finished[0] if finished else None)


def comparison_csv(results: Sequence[Result]) -> str:
    """:data:`COLUMNS`, best first; an undefined value and all values of a failed backbone are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([_cell(name, value) for name, value in result.row().items()] for result in ranked(results))
    return text.getvalue()


def read_result(value: Mapping[str, Any] | None, *, identity: str, name: str) -> Result | None:
    """The result in a backbone's own file, under the name it has now; None where there is none of this comparison."""
    if value is None or value.get("identity") != identity:
        return None
    try:
        return Result(**{**value["result"], "model": name})
    except (KeyError, TypeError):
        return None


def _number(value: float | None) -> float:
    return -math.inf if value is None else value


def _cell(name: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return format(value, _FORMATS.get(name, ".6f")) if isinstance(value, float) else str(value)
