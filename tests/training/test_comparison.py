"""The comparison: names, order and figure; and a real one that is killed after its first backbone and continues."""

import contextlib
import csv
import io
import json
import os
import signal
import time

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image

from detector.errors import JobError, LockedError, UsageError
from detector.images.decoding import Decoder
from detector.images.pixels import DecodeLimits
from detector.metrics import compute_metrics
from detector.models.backbones_table import BACKBONES
from detector.models.checkpoint import inspect_checkpoint
from detector.models.devices import resolve_settings
from detector.models.predictor import Predictor
from detector.training.collapse import is_constant
from detector.training.comparison import compare
from detector.training.comparison_config import CompareConfig, choose_candidates
from detector.training.comparison_figure import draw_comparison
from detector.training.comparison_results import COLUMNS, Result, best_of, comparison_csv, ranked
from detector.training.dataset import read_split
from tests.training import corpora

SEED = 11
FIRST, SECOND, FAILING = "scratch:tiny", "scratch:MobileNetV2", "ResNet152V2"
RECIPE = {"epochs": 1, "batch_size": 8, "gradient_accumulation": 1, "learning_rate": 1e-3, "workers": 1, "seed": SEED,
          "validation_fraction": 0.2, "crop_min_scale": 0.5, "precision": "fp32"}  # fmt: skip


def config(data, out, /, **changes):
    values = {"data": str(data), "out": str(out), "test_split": "test", "backbones": (FIRST, SECOND, FAILING), **RECIPE}
    return CompareConfig(**{**values, **changes})


@contextlib.contextmanager
def no_cluster():
    raise AssertionError("Ray was started for nothing")
    yield


def make_data(folder):
    corpora.tree(folder, 10, seed=SEED)
    return corpora.tree(folder, 8, split="test", seed=SEED + 1)  # one batch: one scoring process


def test_all_means_the_published_ten_by_their_names():
    chosen = choose_candidates(["all"], from_scratch=False)
    assert [(each.name, each.model, each.published_f1) for each in chosen] == [
        (b.name, b.name, b.published_f1) for b in BACKBONES
    ]
    chosen = choose_candidates(["ALL", "mobilenetv2"], from_scratch=True)
    assert [each.model for each in chosen] == [f"scratch:{backbone.name}" for backbone in BACKBONES]
    assert [each.name for each in chosen] == [backbone.name for backbone in BACKBONES]


def test_random_weights_are_named_so_unless_all_are_random():
    both = choose_candidates(["ResNet50", "scratch:resnet50", "swin-tiny"], from_scratch=False)
    assert [each.name for each in both] == ["ResNet50", "scratch:ResNet50", "swin-tiny"]
    assert len({each.folder for each in both}) == 3
    one = choose_candidates(["ResNet50", "scratch:resnet50"], from_scratch=True)
    assert [(each.name, each.model) for each in one] == [("ResNet50", "scratch:ResNet50")]


@pytest.mark.parametrize("names", [["ResNet51"], ["scratch:"], [], ["all", "x"]])
def test_an_unknown_name_is_refused_with_the_names_there_are(names):
    with pytest.raises(UsageError) as refused:
        choose_candidates(names, from_scratch=False)
    assert all(backbone.name in str(refused.value) for backbone in BACKBONES)


def test_best_first_with_ties_settled_and_failures_last():
    rows = [
        Result(model="failed", failed="no memory"), Result(model="b", f1=0.5, accuracy=0.6), Result(model="undefined"),
        Result(model="a", f1=0.5, accuracy=0.6), Result(model="c", f1=0.5, accuracy=0.7),
        Result(model="z", f1=0.9, accuracy=0.1),
    ]  # fmt: skip
    for order in (rows, rows[::-1]):
        assert [row.model for row in ranked(order)] == ["z", "c", "a", "b", "undefined", "failed"]


def test_a_constant_predictor_is_flagged_and_never_called_the_best():
    assert is_constant([0.7, 0.9, 0.6])  # all AI: on balanced data that is an F1 of two thirds
    assert is_constant([0.1, 0.2])
    assert is_constant([0.49999, 0.50001])
    assert not is_constant([0.4, 0.6])
    assert not is_constant([])
    constant, poor = Result(model="constant", f1=0.667, collapsed=True), Result(model="poor", f1=0.6, collapsed=False)
    assert best_of([constant, poor]) == poor
    assert best_of([constant]) == constant
    assert best_of([Result(model="failed", failed="x")]) is None


def test_the_table_has_the_agreed_columns():
    done = Result(model="a", f1=2 / 3, precision=None, recall=1.0, accuracy=0.5, parameters=7, train_seconds=1.0,
                  images_per_second=20.126, collapsed=True)  # fmt: skip
    lines = comparison_csv([Result(model="b", failed="x"), done]).splitlines()
    assert lines[0] == "model,f1,precision,recall,accuracy,parameters,train_seconds,images_per_second,collapsed"
    assert lines[1:] == ["a,0.666667,,1.000000,0.500000,7,1.00,20.13,1", "b,,,,,,,,"]


def test_the_figure_shows_a_bar_and_a_published_mark_for_each():
    published = {backbone.name: backbone.published_f1 for backbone in BACKBONES}
    rows = [Result(model=name, f1=1.0, collapsed=False) for name in published]

    def pixels(rows, marks):
        file = io.BytesIO()
        draw_comparison(rows, marks, "title", file)
        return np.asarray(Image.open(file).convert("RGB")).astype(int)

    def near(picture, colour):
        return int((np.abs(picture - colour).sum(axis=2) < 12).sum())

    blue, orange, grey = (10, 103, 168), (200, 80, 10), (185, 194, 203)
    full = pixels(rows, published)
    assert near(pixels([*rows[:5], *(Result(model=row.model, failed="x") for row in rows[5:])], published), blue) < 0.6 * near(
        full, blue
    )
    assert near(pixels(rows, {}), orange) == 0 < near(full, orange)
    collapsed = [Result(model=row.model, f1=row.f1, collapsed=True) for row in rows]
    assert near(pixels(collapsed, published), grey) > 0.9 * near(full, blue)


def test_wrong_use_is_refused_before_anything_starts(tmp_path):
    data, out = make_data(tmp_path / "data"), tmp_path / "out"
    for change, words in (
        ({"test_split": "train"}, "trained on"), ({"test_split": "nowhere"}, "has no split"), ({"epochs": 0}, "--epochs"),
        ({"backbones": ("tiny",)}, "scratch:tiny"), ({"out": "s3://bucket/key"}, "--out"), ({"data": "nowhere"}, "--data"),
        ({"backbones": (FAILING,)}, "no backbone can be trained"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            compare(config(data, out, **change), no_cluster)
    (out / "run.json").write_text("{}")
    with pytest.raises(UsageError, match="another job"):
        compare(config(data, out), no_cluster)


def test_when_all_backbones_fail_the_job_fails(tmp_path, monkeypatch):
    """And one that fails does not keep the next from being tried."""
    from detector.training import comparison

    tried = []

    def fail(work, candidate, cluster):
        tried.append(candidate.name)
        raise MemoryError

    monkeypatch.setattr(comparison, "_measure", fail)
    monkeypatch.setattr(comparison, "_check_cluster", lambda work, cluster: None)
    with pytest.raises(JobError, match="all 3 backbones failed"):
        compare(config(make_data(tmp_path / "data"), tmp_path / "out"), contextlib.nullcontext)
    assert tried == [FIRST, SECOND]
    assert not (tmp_path / "out" / "run.json").exists()
    assert [row["f1"] for row in table(tmp_path / "out")] == [""] * 3


def table(out):
    with open(out / "comparison.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def wait_for(log, text, process, timeout_s=240):
    limit = time.monotonic() + timeout_s
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < limit, log.read_text()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A comparison that was killed as soon as its second backbone began: (data, out)."""
    print(f"seed {SEED}")
    top = tmp_path_factory.mktemp("killed")
    data, out, log = make_data(top / "data"), top / "out", top / "log"
    flags = [text for name, value in RECIPE.items() for text in (f"--{name.replace('_', '-')}", value)]
    with open(log, "w", encoding="utf-8") as stderr:
        process = corpora.start(
            "compare", "--data", data, "--test-split", "test", "--out", out, "--backbones", FIRST, SECOND, *flags, stderr=stderr
        )
        wait_for(log, f"compare: {FIRST} (1 of 2)", process)
        with pytest.raises(LockedError):  # while it runs, nobody else writes into its folder
            compare(config(data, out), no_cluster)
        wait_for(log, f"compare: {SECOND} (2 of 2)", process)
        below = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    psutil.wait_procs(below, timeout=30)
    return data, out


@pytest.fixture(scope="module")
def continued(killed, ray_here):
    data, out = killed
    before = {name: (out / "backbones" / name / "result.json").exists() for name in ("scratch-tiny", "scratch-MobileNetV2")}
    assert before == {"scratch-tiny": True, "scratch-MobileNetV2": False}
    assert [row["model"] for row in table(out)] == [FIRST], "the table is there after every backbone"
    assert not (out / "run.json").exists()
    first = os.stat(out / "backbones" / "scratch-tiny" / "model.safetensors").st_mtime_ns
    return data, out, compare(config(data, out), lambda: contextlib.nullcontext(ray_here)), first


@pytest.mark.ray
def test_a_killed_comparison_continues_with_the_second_backbone(continued):
    _, out, summary, first = continued
    assert os.stat(out / "backbones" / "scratch-tiny" / "model.safetensors").st_mtime_ns == first, "it was trained again"
    assert (summary["compared"], summary["reused"]) == (2, 1)
    rows = table(out)
    assert tuple(rows[0]) == COLUMNS
    assert {row["model"] for row in rows[:2]} == {FIRST, SECOND}
    assert all(float(row["train_seconds"]) > 0 and float(row["images_per_second"]) > 0 for row in rows[:2])
    assert float(rows[0]["f1"]) >= float(rows[1]["f1"])
    assert {row["model"]: row["parameters"] for row in rows}[FIRST] == "567166"
    record = json.loads((out / "run.json").read_text())
    assert (record["status"], record["job"]) == ("complete", "compare")
    assert Image.open(out / "comparison.png").width > 600


@pytest.mark.ray
def test_a_backbone_that_cannot_be_built_is_a_row_and_does_not_stop_the_others(continued):
    _, out, summary, _ = continued
    assert list(summary["failed"]) == [FAILING]
    assert "no pretrained weights" in summary["failed"][FAILING]
    assert table(out)[-1] == {name: FAILING if name == "model" else "" for name in COLUMNS}


@pytest.mark.ray
def test_the_figures_are_those_of_the_saved_model_at_its_own_input_size(continued):
    """No skew: decoding, transform and model of scoring, in this process, give the row's metrics."""
    data, out, *_ = continued
    test = read_split(data, "test")
    for name, folder, size in ((FIRST, "scratch-tiny", 96), (SECOND, "scratch-MobileNetV2", 224)):
        checkpoint = inspect_checkpoint(str(out / "backbones" / folder))
        assert checkpoint.transform.input_size == (size, size)
        predictor = Predictor.load(checkpoint, resolve_settings(kind="cpu", batch_size=None, precision="fp32"))
        with Decoder(DecodeLimits()) as decoder:
            inputs = [checkpoint.transform.resize(each.pixels).numpy() for each in decoder.decode(test["path"].to_pylist())]
        p_ai = predictor.predict_all(np.stack(inputs))
        kept = pq.read_table(out / "backbones" / folder / "test" / "predictions.parquet")
        assert kept["filename"].to_pylist() == [f"./{name}" for name in test["filename"].to_pylist()]
        np.testing.assert_allclose(kept["p_ai"].to_numpy(), p_ai, atol=1e-5)
        found = compute_metrics(test["label"].to_numpy(), kept["p_ai"].to_numpy())
        row = next(row for row in table(out) if row["model"] == name)
        for metric in ("f1", "accuracy"):
            assert float(row[metric]) == pytest.approx(found[metric], abs=1e-6)
        assert row["collapsed"] == str(int(is_constant(kept["p_ai"].to_numpy())))


@pytest.mark.ray
def test_a_finished_comparison_starts_nothing_and_mixes_nothing(continued):
    data, out, summary, _ = continued
    before = (out / "comparison.csv").read_bytes()
    again = compare(config(data, out), no_cluster)
    assert (out / "comparison.csv").read_bytes() == before
    assert again == {**summary, "reused": 2}
    with pytest.raises(UsageError, match=r"--epochs \(was 1, is 2\)"):
        compare(config(data, out, epochs=2), no_cluster)
    Image.new("RGB", (64, 64)).save(os.path.join(data, "test", "AI", "another.jpg"))
    try:
        with pytest.raises(UsageError, match="other pictures"):
            compare(config(data, out), no_cluster)
    finally:
        os.remove(os.path.join(data, "test", "AI", "another.jpg"))
