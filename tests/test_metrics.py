"""The metrics against scikit-learn, against definitions written out slowly, and where they are not defined."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn import metrics as reference

from detector import metrics

SEED = 20240611


@pytest.fixture
def sample():
    """400 pictures with many equal scores, some of them wrong."""
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED)
    labels = rng.integers(0, 2, 400)
    p_ai = np.clip(rng.normal(np.where(labels == 0, 0.6, 0.4), 0.2), 0, 1).round(2)
    return labels, p_ai


def flattened(value):
    if isinstance(value, dict):
        return [leaf for part in value.values() for leaf in flattened(part)]
    return [leaf for part in value for leaf in flattened(part)] if isinstance(value, (list, tuple)) else [value]


def test_values_equal_those_of_scikit_learn(sample):
    labels, p_ai = sample
    is_ai, called_ai = labels == 0, p_ai >= 0.5
    found = metrics.compute_metrics(labels, p_ai)
    expected = {
        "f1": reference.f1_score(is_ai, called_ai),
        "f1_real": reference.f1_score(~is_ai, ~called_ai),
        "f1_macro": reference.f1_score(is_ai, called_ai, average="macro"),
        "accuracy": reference.accuracy_score(is_ai, called_ai),
        "balanced_accuracy": reference.balanced_accuracy_score(is_ai, called_ai),
        "precision": reference.precision_score(is_ai, called_ai),
        "recall": reference.recall_score(is_ai, called_ai),
        "tpr": reference.recall_score(is_ai, called_ai),
        "tnr": reference.recall_score(~is_ai, ~called_ai),
        "roc_auc": reference.roc_auc_score(is_ai, p_ai),
        "average_precision": reference.average_precision_score(is_ai, p_ai),
        "brier": reference.brier_score_loss(is_ai, p_ai),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    tn, fp, fn, tp = reference.confusion_matrix(is_ai, called_ai).ravel()
    assert found["confusion"] == {"tp": tp, "fn": fn, "fp": fp, "tn": tn}
    assert set(found) == {*metrics.METRIC_NAMES, "confusion", "num_images"}


def test_counts_follow_the_published_label_and_not_the_threshold():
    found = metrics.compute_metrics([0, 1, 0, 1], [0.5, 0.5, 0.5, 0.5], predicted=[0, 1, 0, 1])
    assert found["accuracy"] == 1.0
    assert found["roc_auc"] == 0.5


def test_calibration_error_is_the_sum_over_bins_of_the_paper(sample):
    labels, p_ai = sample
    confidence, right = np.maximum(p_ai, 1 - p_ai), (p_ai >= 0.5) == (labels == 0)
    expected = 0.0
    for m in range(1, 16):
        inside = (confidence > (m - 1) / 15) & (confidence <= m / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert metrics.expected_calibration_error(labels, p_ai) == pytest.approx(expected, abs=1e-12)
    # Both confidences lie in the ninth bin, (8/15, 9/15], which its upper bound belongs to: one right, one wrong.
    assert metrics.expected_calibration_error([0, 1], [0.6, 0.58]) == pytest.approx(abs((1 - 0.6) + (0 - 0.58)) / 2)
    assert metrics.expected_calibration_error([0, 1], [1.0, 0.0]) == 0.0
    assert metrics.expected_calibration_error([1, 0], [1.0, 0.0]) == 1.0


def test_equal_error_rate_is_where_misses_equal_false_alarms(sample):
    # One of four AI below one of four real: at the threshold between them a quarter of each class is wrong.
    assert metrics.compute_metrics([0, 0, 0, 0, 1, 1, 1, 1], [0.9, 0.8, 0.7, 0.3, 0.6, 0.2, 0.1, 0.0])[
        "equal_error_rate"
    ] == pytest.approx(0.25)
    assert metrics.compute_metrics([0, 0, 1, 1], [0.9, 0.8, 0.2, 0.1])["equal_error_rate"] == 0.0
    assert metrics.compute_metrics([1, 1, 0, 0], [0.9, 0.8, 0.2, 0.1])["equal_error_rate"] == 1.0
    assert metrics.compute_metrics([0, 1], [0.5, 0.5])["equal_error_rate"] == pytest.approx(0.5)
    labels, p_ai = sample
    rate = metrics.compute_metrics(labels, p_ai)["equal_error_rate"]
    assert rate == pytest.approx(metrics.compute_metrics(1 - labels, 1 - p_ai)["equal_error_rate"])


@pytest.mark.parametrize(("label", "defined"), [(0, {"recall", "tpr"}), (1, {"tnr"})])
def test_one_class_leaves_what_needs_two_undefined_and_never_zero(label, defined):
    found = metrics.compute_metrics([label] * 5, [0.9, 0.2, 0.7, 0.6, 0.1])
    present = {name for name in metrics.METRIC_NAMES if found[name] is not None}
    assert present == defined | {"accuracy", "brier", "expected_calibration_error"}
    intervals = metrics.bootstrap_intervals([label] * 5, [0.9, 0.2, 0.7, 0.6, 0.1], num_resamples=50)
    assert {name for name, interval in intervals.items() if interval is not None} == present


def test_nothing_at_all_is_undefined():
    found = metrics.compute_metrics([], [])
    assert all(found[name] is None for name in metrics.METRIC_NAMES)
    assert found["confusion"] == {"tp": 0, "fn": 0, "fp": 0, "tn": 0}
    assert set(metrics.bootstrap_intervals([], []).values()) == {None}
    assert np.isnan(metrics.expected_calibration_error([], []))


def test_a_model_that_never_says_ai_has_an_f1_of_zero_and_no_precision():
    found = metrics.compute_metrics([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4])
    assert found["f1"] == 0.0
    assert found["precision"] is None
    assert metrics.bootstrap_intervals([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4])["precision"] is None


def test_no_nan_gets_out_whatever_the_counts():
    rng = np.random.default_rng(SEED)
    for size in range(7):
        labels, p_ai = rng.integers(0, 2, size), rng.random(size)
        leaves = flattened(metrics.compute_metrics(labels, p_ai))
        leaves += flattened(metrics.bootstrap_intervals(labels, p_ai, num_resamples=20))
        assert all(leaf is None or np.isfinite(leaf) for leaf in leaves)


@pytest.mark.parametrize(
    ("labels", "p_ai"), [([0, 1], [0.5]), ([0, 2], [0.5, 0.5]), ([0, 1], [0.5, np.nan]), ([0, 1], [0.5, 1.5])]
)
def test_arrays_that_cannot_be_predictions_are_refused(labels, p_ai):
    with pytest.raises(ValueError, match=r"differ|must be"):
        metrics.compute_metrics(labels, p_ai)


def test_collapse_is_one_label_for_everything():
    assert metrics.is_collapsed([1, 1, 1])
    assert not metrics.is_collapsed([1, 1, 0])
    assert not metrics.is_collapsed([])


def test_intervals_are_those_of_resampling_the_pictures_one_by_one(sample):
    labels, p_ai = sample
    fast = metrics.bootstrap_intervals(labels, p_ai, num_resamples=2000, seed=1)
    rng = np.random.default_rng(SEED)
    classes = [np.flatnonzero(labels == side) for side in (0, 1)]
    draws = []
    for _ in range(300):
        chosen = np.concatenate([rng.choice(group, len(group)) for group in classes])
        draws.append(metrics.compute_metrics(labels[chosen], p_ai[chosen]))
    for name in metrics.METRIC_NAMES:
        slow = np.quantile([draw[name] for draw in draws], (0.025, 0.975))
        width = slow[1] - slow[0]
        assert fast[name] == pytest.approx(slow, abs=0.2 * width), name
        assert fast[name][0] < fast[name][1]


def test_same_seed_same_intervals_and_another_seed_others(sample):
    first, again, other = (metrics.bootstrap_intervals(*sample, num_resamples=100, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert all(first[name] != other[name] for name in metrics.METRIC_NAMES)


def test_interval_of_a_rate_narrows_with_the_square_root_of_the_sample():
    few = metrics.count_intervals({"tp": 80, "fn": 20, "fp": 20, "tn": 80}, num_resamples=4000)["recall"]
    many = metrics.count_intervals({"tp": 8000, "fn": 2000, "fp": 2000, "tn": 8000}, num_resamples=4000)["recall"]
    assert few[1] - few[0] == pytest.approx(2 * 1.96 * (0.8 * 0.2 / 100) ** 0.5, rel=0.1)
    assert sum(many) / 2 == pytest.approx(0.8, abs=0.001)
    assert (few[1] - few[0]) / (many[1] - many[0]) == pytest.approx(10, rel=0.15)


def test_huge_sets_get_fewer_resamples_of_the_score_metrics():
    assert metrics.num_score_resamples(50_000, 1000) == 1000
    assert metrics.num_score_resamples(100_000, 1000) == 500
    assert metrics.num_score_resamples(10**8, 1000) == metrics.MIN_RESAMPLES
    assert metrics.num_score_resamples(10**8, 50) == 50


def test_calibration_curve_accounts_for_every_picture(sample):
    labels, p_ai = sample
    curve = metrics.calibration_curve(labels, p_ai)
    assert curve.num_images.sum() == len(labels)
    assert (curve.share_ai * curve.num_images).sum() == pytest.approx((labels == 0).sum())
    assert (curve.mean_p_ai * curve.num_images).sum() == pytest.approx(p_ai.sum())
    assert ((curve.low <= curve.share_ai) & (curve.share_ai <= curve.high)).all()
    # Wilson's interval of 8 in 10, from the published formula: 0.490 to 0.943.
    ten = metrics.calibration_curve([0] * 8 + [1] * 2, [0.5] * 10)
    assert (ten.low[0], ten.high[0]) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_importing_the_module_imports_neither_torch_nor_scikit_learn():
    code = "import sys, detector.metrics; print(sorted({'torch', 'sklearn', 'ray', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
