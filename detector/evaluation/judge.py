"""Predictions + truth → the metrics, as a whole and by group, and how much the file container alone gives away."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from detector import metrics
from detector.errors import UsageError
from detector.evaluation.predictions import NOT_STATED, Predictions
from detector.evaluation.probe import ContainerProbe, probe_container
from detector.evaluation.truth import Truth, match
from detector.labels import Label

# Classes of size by the longer side in pixels; each bound is the largest side of its class.
SIZE_CLASSES = ((256, "up to 256 px"), (512, "257 to 512 px"), (1024, "513 to 1,024 px"), (2048, "1,025 to 2,048 px"),
                (np.inf, "over 2,048 px"))  # fmt: skip
GROUP_KINDS = ("source", "generator", "format", "size")


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The outcome.

    ``metrics`` is the content of ``metrics.json``: floats, ints and None only, never NaN. ``table`` holds the pictures
    that were judged: ``filename, truth, predicted, p_ai, source, generator, format, size, bytes, width, height``.
    """

    metrics: dict[str, Any]
    table: pd.DataFrame
    probe: ContainerProbe | None
    seed: int
    num_resamples: int


def judge(predictions: Predictions, truth: Truth, *, seed: int = 0, num_resamples: int = 1000) -> Judgement:
    """Compare predictions with the truth.

    Every prediction is counted once: ``num_images`` were judged, ``num_failed`` have no score (whether or not the
    truth names them), ``num_without_truth`` are scored but unknown to the truth. ``num_without_prediction`` counts the
    truth's pictures that the predictions do not list.

    Raises:
        UsageError: no picture is in both, or names are ambiguous (see :func:`detector.evaluation.truth.match`).
    """
    rows, num_without_prediction = match(predictions.table, truth)
    if not (rows >= 0).any():
        raise _no_overlap(predictions, truth)
    is_scored = (predictions.table["label"] >= 0).to_numpy()
    table = _judged_table(predictions.table[is_scored & (rows >= 0)], truth.table.iloc[rows[is_scored & (rows >= 0)]])
    labels, p_ai, predicted = (table[name].to_numpy() for name in ("truth", "p_ai", "predicted"))
    counts = {
        "num_failed": int((~is_scored).sum()),
        "num_without_truth": int((is_scored & (rows < 0)).sum()),
        "num_without_prediction": num_without_prediction,
    }
    intervals = metrics.bootstrap_intervals(labels, p_ai, predicted, num_resamples=num_resamples, seed=seed)
    found = {
        **metrics.compute_metrics(labels, p_ai, predicted),
        **counts,
        "intervals": _as_lists(intervals),
        "groups": {kind: _groups(table, kind, seed, num_resamples) for kind in GROUP_KINDS},
    }
    probe = probe_container(table, seed=seed)
    return Judgement(metrics=found, table=table, probe=probe, seed=seed, num_resamples=num_resamples)


def _no_overlap(predictions: Predictions, truth: Truth) -> UsageError:
    if not len(truth.table) or not len(predictions.table):
        empty = f"--truth {truth.path}" if not len(truth.table) else f"--predictions {predictions.path}"
        return UsageError(f"{empty} lists no pictures")
    return UsageError(
        f"no picture is in both files: the predictions name {predictions.table['filename'].iloc[0]!r}, "
        f"the truth {truth.table['filename'].iloc[0]!r}; the truth needs the predictions' filenames, "
        "with or without the leading ./<folder>/"
    )


def _judged_table(predicted: pd.DataFrame, true: pd.DataFrame) -> pd.DataFrame:
    """Join the two, row by row; what the predictions do not know of a file is taken from the truth."""
    true = true.set_index(predicted.index)
    width, height = (predicted[name].fillna(true[name]) for name in ("width", "height"))
    table = pd.DataFrame({
        "filename": predicted["filename"],
        "truth": true["label"],
        "predicted": predicted["label"],
        "p_ai": predicted["p_ai"],
        "source": true["source"],
        "generator": true["generator"],
        "format": predicted["format"].where(predicted["format"] != "", true["format"]),
        "size": _size_classes(pd.concat([width, height], axis=1).max(axis=1)),
        "bytes": predicted["bytes"],
        "width": width,
        "height": height,
    })  # fmt: skip
    return table.reset_index(drop=True)


def _size_classes(longer_side: pd.Series) -> pd.Series:
    bounds = [bound for bound, _ in SIZE_CLASSES]
    names = np.array([name for _, name in SIZE_CLASSES] + [""], dtype=object)
    index = np.where(longer_side.isna(), len(bounds), np.searchsorted(bounds, longer_side.fillna(0)))
    return pd.Series(names[index], index=longer_side.index)


def _groups(table: pd.DataFrame, kind: str, seed: int, num_resamples: int) -> dict[str, Any]:
    """Metrics of each group of one kind; nothing where no picture states it. Real pictures need no generator."""
    if not (table[kind] != "").any():
        return {}
    if kind == "generator":
        table = table[(table["generator"] != "") | (table["truth"] == Label.AI)]
    parts = {str(name): part for name, part in table.groupby(table[kind].replace("", NOT_STATED), sort=True)}
    order = [name for _, name in SIZE_CLASSES if name in parts] if kind == "size" else []
    order += [name for name in parts if name not in order]
    return {name: _group_metrics(parts[name], seed, num_resamples) for name in order}


def _group_metrics(part: pd.DataFrame, seed: int, num_resamples: int) -> dict[str, Any]:
    found = metrics.compute_metrics(part["truth"], part["p_ai"], part["predicted"])
    intervals = metrics.count_intervals(found["confusion"], num_resamples=num_resamples, seed=seed)
    return {**found, "intervals": _as_lists(intervals)}


def _as_lists(intervals: dict[str, metrics.Interval]) -> dict[str, list[float] | None]:
    return {name: None if interval is None else list(interval) for name, interval in intervals.items()}
