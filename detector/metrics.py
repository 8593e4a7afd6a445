"""How good the predictions are: pure functions of numpy arrays, AI being the positive class.

Everywhere below ``labels`` is the truth, int [N], 0 = AI and 1 = Real; ``p_ai`` is the probability of AI, float [N];
``predicted`` is the label that was published, int [N] (by default AI where ``p_ai`` is at least one half). A value that
is not defined is NaN inside this module and None in what :func:`compute_metrics` returns; it is never 0. What compares
the two classes (F1, precision, balanced accuracy, ROC, average precision, equal error rate) needs both in the truth.
scikit-learn is imported inside the functions, so that importing this module costs next to nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detector.labels import Label

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

COUNT_METRICS = ("f1", "f1_real", "f1_macro", "accuracy", "balanced_accuracy", "precision", "recall", "tpr", "tnr")
SCORE_METRICS = ("roc_auc", "average_precision", "equal_error_rate", "brier", "expected_calibration_error")
METRIC_NAMES = COUNT_METRICS + SCORE_METRICS
CALIBRATION_BINS = 15  # equal widths over [0, 1], as in Guo et al. 2017, "On Calibration of Modern Neural Networks"
CONFIDENCE = 0.95
Z = 1.959964  # the normal quantile that leaves 95 % in the middle
# Draws of single pictures in one bootstrap of the score metrics: 1,000 resamples up to 50,000 pictures, fewer beyond.
MAX_DRAWS = 50_000_000
MIN_RESAMPLES = 200


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Truth and predictions of N pictures, checked: finite probabilities in [0, 1], labels 0 or 1, equal lengths."""

    labels: Ints
    p_ai: Floats
    predicted: Ints

    @classmethod
    def of(cls, labels: ArrayLike, p_ai: ArrayLike, predicted: ArrayLike | None = None) -> "Judged":
        """Check the arrays and give them their types.

        Raises:
            ValueError: other lengths, labels that are not 0 or 1, probabilities that are not numbers in [0, 1].
        """
        truth = np.asarray(labels).astype(np.int64).ravel()
        probability = np.asarray(p_ai).astype(np.float64).ravel()
        guess = predict(probability) if predicted is None else np.asarray(predicted).astype(np.int64).ravel()
        if not len(truth) == len(probability) == len(guess):
            raise ValueError(f"{len(truth)} labels, {len(probability)} probabilities and {len(guess)} predictions differ")
        if not np.isin(truth, (0, 1)).all() or not np.isin(guess, (0, 1)).all():
            raise ValueError("labels must be 0 (AI) or 1 (Real)")
        if not ((probability >= 0) & (probability <= 1)).all():
            raise ValueError("probabilities must be numbers between 0 and 1")
        return cls(labels=truth, p_ai=probability, predicted=guess)

    @property
    def is_ai(self) -> NDArray[np.bool_]:
        """Which pictures are AI in truth, bool [N]."""
        return self.labels == Label.AI

    @property
    def has_both_classes(self) -> bool:
        """Whether the truth holds both classes."""
        return bool(len(self.labels) and self.is_ai.any() and not self.is_ai.all())


def predict(p_ai: ArrayLike) -> Ints:
    """The likelier label, int [N]: AI where ``p_ai`` is at least one half."""
    return np.where(np.asarray(p_ai, dtype=np.float64) >= 0.5, int(Label.AI), int(Label.REAL)).astype(np.int64)


def is_collapsed(predicted: ArrayLike) -> bool:
    """Whether a model gives the same label to everything: a training run that learnt nothing. False for no predictions."""
    values = np.asarray(predicted).ravel()
    return bool(values.size) and bool((values == values[0]).all())


def confusion(labels: ArrayLike, predicted: ArrayLike) -> dict[str, int]:
    """Counts ``tp, fn, fp, tn`` with AI as the positive class: ``fp`` are real pictures taken for AI."""
    truth_ai, guess_ai = np.asarray(labels) == Label.AI, np.asarray(predicted) == Label.AI
    return {
        "tp": int((truth_ai & guess_ai).sum()),
        "fn": int((truth_ai & ~guess_ai).sum()),
        "fp": int((~truth_ai & guess_ai).sum()),
        "tn": int((~truth_ai & ~guess_ai).sum()),
    }


def _ratio(numerator: ArrayLike, denominator: ArrayLike) -> Floats:
    top, bottom = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    return np.divide(top, bottom, out=np.full(np.broadcast(top, bottom).shape, np.nan), where=bottom > 0)


def count_metrics(tp: ArrayLike, fn: ArrayLike, fp: ArrayLike, tn: ArrayLike) -> dict[str, Floats]:
    """:data:`COUNT_METRICS` of confusion counts, each argument of any shape [...]; float [...] with NaN = not defined."""
    tp, fn, fp, tn = (np.asarray(cell, dtype=np.float64) for cell in (tp, fn, fp, tn))
    num_ai, num_real = tp + fn, fp + tn
    both = np.where((num_ai > 0) & (num_real > 0), 1.0, np.nan)
    tpr, tnr = _ratio(tp, num_ai), _ratio(tn, num_real)
    f1, f1_real = both * _ratio(2 * tp, 2 * tp + fp + fn), both * _ratio(2 * tn, 2 * tn + fp + fn)
    return {
        "f1": f1,
        "f1_real": f1_real,
        "f1_macro": (f1 + f1_real) / 2,
        "accuracy": _ratio(tp + tn, num_ai + num_real),
        "balanced_accuracy": (tpr + tnr) / 2,
        "precision": both * _ratio(tp, tp + fp),
        "recall": tpr,
        "tpr": tpr,
        "tnr": tnr,
    }


def roc_points(labels: ArrayLike, p_ai: ArrayLike) -> tuple[Floats, Floats]:
    """False and true positive rate at every threshold, each float [K], from (0, 0) to (1, 1). Needs both classes."""
    from sklearn.metrics import roc_curve

    false_rate, true_rate, _ = roc_curve(np.asarray(labels) == Label.AI, p_ai, drop_intermediate=False)
    return false_rate, true_rate


def precision_recall_points(labels: ArrayLike, p_ai: ArrayLike) -> tuple[Floats, Floats]:
    """Precision and recall of AI at every threshold, each float [K], ending at (1, 0). Needs both classes."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(np.asarray(labels) == Label.AI, p_ai)
    return precision, recall


def crossing(false_rate: Floats, true_rate: Floats) -> float:
    """The equal error rate of a ROC from (0, 0) to (1, 1): where misses equal false alarms, linear between two points."""
    gap = 1 - true_rate - false_rate  # falls from 1 to -1
    after = int(np.argmax(gap <= 0))
    if after == 0 or gap[after] == 0:
        return float(false_rate[after])
    share = gap[after - 1] / (gap[after - 1] - gap[after])
    return float(false_rate[after - 1] + share * (false_rate[after] - false_rate[after - 1]))


def _calibration_terms(judged: Judged) -> tuple[Ints, Floats]:
    """Per picture: the bin of the predicted label's probability, int [N], and right (0 or 1) minus that probability."""
    confidence = np.where(judged.predicted == Label.AI, judged.p_ai, 1 - judged.p_ai)
    # The bins are open on the left, ((m - 1) / M, m / M], as in the paper.
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    return bins, (judged.predicted == judged.labels) - confidence


def _calibration_error(bins: Ints, gaps: Floats) -> float:
    return float(np.abs(np.bincount(bins, weights=gaps, minlength=CALIBRATION_BINS)).sum() / len(bins))


def expected_calibration_error(labels: ArrayLike, p_ai: ArrayLike, predicted: ArrayLike | None = None) -> float:
    """Mean distance of confidence from accuracy, weighted by bin size: the ECE of Guo et al. 2017, equation 3.

    Confidence is the probability of the predicted label; :data:`CALIBRATION_BINS` bins of equal width. NaN for N = 0.
    """
    judged = Judged.of(labels, p_ai, predicted)
    return _calibration_error(*_calibration_terms(judged)) if len(judged.labels) else float("nan")


@dataclass(frozen=True, kw_only=True)
class CalibrationCurve:
    """For each bin of ``p_ai`` that holds pictures, each [B]: mean probability, share that is AI in truth with its 95 %
    interval (Wilson 1927), how many.
    """

    mean_p_ai: Floats
    share_ai: Floats
    low: Floats
    high: Floats
    num_images: Ints


def calibration_curve(labels: ArrayLike, p_ai: ArrayLike, num_bins: int = CALIBRATION_BINS) -> CalibrationCurve:
    """The reliability diagram of ``p_ai``: ``num_bins`` bins of equal width over [0, 1], empty ones left out."""
    judged = Judged.of(labels, p_ai)
    bins = np.minimum((judged.p_ai * num_bins).astype(np.int64), num_bins - 1)
    totals = [np.bincount(bins, weights=w, minlength=num_bins) for w in (None, judged.p_ai, judged.is_ai)]
    count, sum_p_ai, num_ai = (total[totals[0] > 0] for total in totals)
    centre = (num_ai + Z**2 / 2) / (count + Z**2)
    half = Z / (count + Z**2) * np.sqrt(num_ai * (count - num_ai) / count + Z**2 / 4)
    return CalibrationCurve(
        mean_p_ai=sum_p_ai / count, share_ai=num_ai / count, low=centre - half, high=centre + half, num_images=count
    )


def _score_metrics(judged: Judged) -> dict[str, float]:
    """:data:`SCORE_METRICS`, NaN = not defined."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    found = dict.fromkeys(SCORE_METRICS, float("nan"))
    if len(judged.labels):
        found["brier"] = float(np.mean((judged.p_ai - judged.is_ai) ** 2))  # Brier 1950, of the event "AI"
        found["expected_calibration_error"] = _calibration_error(*_calibration_terms(judged))
    if judged.has_both_classes:
        found["roc_auc"] = float(roc_auc_score(judged.is_ai, judged.p_ai))
        found["average_precision"] = float(average_precision_score(judged.is_ai, judged.p_ai))
        found["equal_error_rate"] = crossing(*roc_points(judged.labels, judged.p_ai))
    return found


def _defined(values: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: float(value) if np.isfinite(value) else None for name, value in values.items()}


def compute_metrics(labels: ArrayLike, p_ai: ArrayLike, predicted: ArrayLike | None = None) -> dict[str, Any]:
    """Every metric of :data:`METRIC_NAMES` (float, or None where not defined), ``confusion`` and ``num_images``.

    Raises:
        ValueError: see :meth:`Judged.of`.
    """
    judged = Judged.of(labels, p_ai, predicted)
    cells = confusion(judged.labels, judged.predicted)
    values = _defined(count_metrics(**cells)) | _defined(_score_metrics(judged))
    return {**values, "confusion": cells, "num_images": len(judged.labels)}


Interval = tuple[float, float] | None


def count_intervals(cells: Mapping[str, int], *, num_resamples: int = 1000, seed: int = 0) -> dict[str, Interval]:
    """95 % bootstrap intervals of :data:`COUNT_METRICS` from the four counts of :func:`confusion` alone.

    Resampling the pictures of each class with replacement and counting is drawing the class's right answers from a
    binomial distribution, so a million pictures cost no more than ten. See :func:`bootstrap_intervals`.
    """
    rng = np.random.default_rng(seed)
    num_ai, num_real = cells["tp"] + cells["fn"], cells["fp"] + cells["tn"]
    tp = rng.binomial(num_ai, cells["tp"] / max(num_ai, 1), size=num_resamples)
    tn = rng.binomial(num_real, cells["tn"] / max(num_real, 1), size=num_resamples)
    point = count_metrics(**cells)
    return {
        name: _percentiles(values) if np.isfinite(point[name]) else None
        for name, values in count_metrics(tp, num_ai - tp, num_real - tn, tn).items()
    }


def _percentiles(values: Floats) -> Interval:
    """The middle 95 % of the resamples in which the metric is defined."""
    kept = values[np.isfinite(values)]
    if not kept.size:
        return None
    low, high = np.quantile(kept, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(low), float(high)


def num_score_resamples(num_images: int, num_resamples: int) -> int:
    """How many resamples the score metrics get: all up to :data:`MAX_DRAWS` draws, then fewer, never below 200."""
    return min(num_resamples, max(MIN_RESAMPLES, MAX_DRAWS // max(num_images, 1)))


def bootstrap_intervals(
    labels: ArrayLike, p_ai: ArrayLike, predicted: ArrayLike | None = None, *, num_resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """95 % percentile intervals of :data:`METRIC_NAMES`; None where the metric itself is not defined.

    The bootstrap (Efron and Tibshirani 1993, chapter 13) is stratified by true class: a test set's class sizes are
    chosen by whoever collected it, not drawn at random, and no resample loses a class. Seeded: same input, same output.
    """
    judged = Judged.of(labels, p_ai, predicted)
    found = count_intervals(confusion(judged.labels, judged.predicted), num_resamples=num_resamples, seed=seed)
    found |= dict.fromkeys(SCORE_METRICS)
    if len(judged.labels):
        draws = _draw_score_metrics(judged, num_score_resamples(len(judged.labels), num_resamples), seed)
        found |= {name: _percentiles(draws[:, column]) for column, name in enumerate(SCORE_METRICS)}
    return found


def _draw_score_metrics(judged: Judged, num_resamples: int, seed: int) -> Floats:
    """The score metrics of each resample, float [num_resamples, 5]; the scores are sorted once, then only counted."""
    rng = np.random.default_rng((seed, 1))
    values, ranks = np.unique(judged.p_ai, return_inverse=True)
    bins, gaps = _calibration_terms(judged)
    squares = (judged.p_ai - judged.is_ai) ** 2
    members = [np.flatnonzero(judged.is_ai), np.flatnonzero(~judged.is_ai)]
    draws = np.full((num_resamples, len(SCORE_METRICS)), np.nan)
    for row in draws:
        drawn = [group[rng.integers(len(group), size=len(group))] if len(group) else group for group in members]
        together = np.concatenate(drawn)
        if judged.has_both_classes:
            row[:3] = _rank_metrics(*(np.bincount(ranks[part], minlength=len(values)) for part in drawn))
        row[3] = squares[together].mean()
        row[4] = _calibration_error(bins[together], gaps[together])
    return draws


def _rank_metrics(num_ai: Ints, num_real: Ints) -> tuple[float, float, float]:
    """ROC AUC, average precision, equal error rate from the pictures at each distinct score, ascending, each int [K]."""
    tp = np.concatenate(([0], np.cumsum(num_ai[::-1])))
    fp = np.concatenate(([0], np.cumsum(num_real[::-1])))
    true_rate, false_rate = tp / tp[-1], fp / fp[-1]
    area = float(np.trapezoid(true_rate, false_rate))
    precision = tp[1:] / np.maximum(tp[1:] + fp[1:], 1)
    return area, float(np.diff(true_rate) @ precision), crossing(false_rate, true_rate)
