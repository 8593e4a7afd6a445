import json

import pytest

from detector import metrics
from detector.errors import UsageError
from detector.evaluation.judge import GROUP_KINDS, judge
from detector.evaluation.predictions import read_predictions
from detector.evaluation.report import to_json
from detector.evaluation.truth import read_truth
from tests.evaluation.conftest import row

# The contract's keys, written out: this list is what other programs read.
CONTRACT = {
    "f1", "f1_real", "f1_macro", "accuracy", "balanced_accuracy", "precision", "recall", "tpr", "tnr", "roc_auc",
    "average_precision", "equal_error_rate", "brier", "expected_calibration_error", "confusion", "num_images", "num_failed",
    "num_without_truth", "num_without_prediction", "intervals", "groups",
}  # fmt: skip


def judged(folder, csv, **options):
    return judge(read_predictions(folder), read_truth(csv), **{"num_resamples": 100, **options})


def test_metrics_have_exactly_the_keys_of_the_contract(corpus):
    found = judged(*corpus).metrics
    assert set(found) == CONTRACT
    assert set(found["confusion"]) == {"tp", "fn", "fp", "tn"}
    assert set(found["intervals"]) == set(metrics.METRIC_NAMES)
    assert set(found["groups"]) == {"source", "generator", "format", "size"}


def test_every_prediction_is_counted_once(save, write_csv):
    rows = [row("./a/1.jpg", 0.9), row("./a/2.jpg", 0.2), row("./a/3.jpg"), row("./a/4.jpg", 0.7), row("./a/5.jpg")]
    found = judged(save(rows), write_csv("filename,label\n1.jpg,AI\n2.jpg,1\n3.jpg,0\n9.jpg,0\n")).metrics
    assert [found[f"num_{name}"] for name in ("images", "failed", "without_truth", "without_prediction")] == [2, 2, 1, 1]
    assert found["confusion"] == {"tp": 1, "fn": 0, "fp": 0, "tn": 1}


def test_groups_are_the_metrics_of_their_pictures_alone(corpus):
    judgement = judged(*corpus)
    groups = judgement.metrics["groups"]
    for name, column in (("source", "source"), ("format", "format"), ("size", "size")):
        assert sum(group["num_images"] for group in groups[name].values()) == 120, name
        for key, group in groups[name].items():
            part = judgement.table[judgement.table[column] == key]
            assert group["f1"] == metrics.compute_metrics(part["truth"], part["p_ai"])["f1"]
    assert set(groups["source"]) == {"north", "south"}
    assert next(iter(groups["size"])) == "up to 256 px"
    assert groups["generator"]["gan"]["f1"] is None  # AI pictures only
    assert groups["generator"]["gan"]["recall"] == judgement.metrics["recall"]
    assert set(groups["generator"]) == {"gan"}  # human-made pictures have no generator and are in no group


def test_kinds_that_nobody_states_have_no_groups(save, write_csv):
    found = judged(save([row("./a/1.jpg", 0.9)]), write_csv("filename,label\n1.jpg,AI\n")).metrics
    assert found["groups"] == {kind: {} for kind in GROUP_KINDS}


def test_one_class_gives_null_in_strict_json(save, write_csv):
    rows = [row(f"./a/{i}.jpg", 0.1 * i) for i in range(9)]
    text = to_json(judged(save(rows), write_csv("filename,label\n" + "".join(f"{i}.jpg,Real\n" for i in range(9)))).metrics)
    assert "NaN" not in text
    found = json.loads(text)
    assert found["f1"] is found["roc_auc"] is found["recall"] is found["intervals"]["f1"] is None
    assert found["tnr"] == pytest.approx(5 / 9)


def test_only_failed_predictions_are_no_error_and_no_figure(save, write_csv):
    found = judged(save([row("./a/1.jpg")]), write_csv("filename,label\n1.jpg,AI\n")).metrics
    assert (found["num_images"], found["num_failed"], found["f1"]) == (0, 1, None)


def test_no_picture_in_common_is_wrong_use(save, write_csv):
    with pytest.raises(UsageError, match=r"no picture is in both files: .*'\./a/1\.jpg'.*'b\.jpg'"):
        judged(save([row("./a/1.jpg", 0.9)]), write_csv("filename,label\nb.jpg,AI\n"))
    with pytest.raises(UsageError, match="lists no pictures"):
        judged(save([row("./a/1.jpg", 0.9)]), write_csv("filename,label\n"))


def test_same_seed_same_judgement(corpus):
    assert judged(*corpus, seed=5).metrics == judged(*corpus, seed=5).metrics
    assert judged(*corpus, seed=5).probe == judged(*corpus, seed=5).probe
