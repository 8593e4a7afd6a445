"""Scoring with ``--backend openvino``: the same rows as with torch, in parts of their own, with either engine."""

import json
import os
from dataclasses import replace
from importlib.util import find_spec

import pyarrow.parquet as pq
import pytest

from detector.images.pixels import DecodeLimits
from detector.models.checkpoint import inspect_checkpoint
from detector.models.devices import resolve_settings
from detector.models.openvino_cache import ensure_converted
from detector.models.predictor import load_predictor
from detector.scoring.stages import ScorePlan
from detector.storage import open_store
from tests.scoring.test_local import read

pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="the extra openvino is not installed")
FP32 = ("--precision", "fp32", "--backend", "openvino")


def rows(out):
    table = pq.read_table(os.path.join(out, "predictions.parquet"), columns=["filename", "p_ai", "label", "error"])
    return {row.pop("filename"): row for row in table.to_pylist()}


@pytest.fixture(scope="module")
def scored(tmp_path_factory, folder, model, score):
    out = tmp_path_factory.mktemp("openvino") / "out"
    summary, done = score("--images", folder, "--model", model, "--out", out, "--engine", "local", *FP32)
    return str(out), summary, done.stderr


def test_every_row_is_torchs(scored, folder, model, score, tmp_path):
    out, summary, _ = scored
    expected, _ = score(
        "--images", folder, "--model", model, "--out", tmp_path / "out", "--engine", "local", "--precision", "fp32"
    )
    assert [summary[key] for key in ("scored", "failed", "skipped", "errors")] == [
        expected[key] for key in ("scored", "failed", "skipped", "errors")
    ]
    ours, theirs = rows(out), rows(tmp_path / "out")
    assert ours.keys() == theirs.keys()
    for name, row in ours.items():
        assert row["error"] == theirs[name]["error"]
        if row["error"] is None:
            assert row["p_ai"] == pytest.approx(theirs[name]["p_ai"], abs=1e-5)


def test_the_run_record_names_back_end_and_version(scored):
    record = json.loads(read(scored[0], "run.json"))
    assert record["model"]["backend"] == "openvino"
    assert record["model"]["openvino"] == record["versions"]["openvino"]
    assert os.listdir(os.path.join(scored[0], "parts")) == [record["model"]["fingerprint"]]


def test_a_second_run_neither_converts_nor_scores_and_torchs_parts_are_others(scored, folder, model, score):
    """Runs after the tests that read the first run's files."""
    flags = ("--images", folder, "--model", model, "--out", scored[0], "--engine", "local")
    before = read(scored[0])
    again, done = score(*flags, *FP32)
    assert again["reused"] == again["listed"] - again["skipped"]
    assert "converting" in scored[2]
    assert "converting" not in done.stderr
    assert read(scored[0]) == before
    plan, _ = score(*flags, "--precision", "fp32", "--dry-run")
    assert (plan["reused"], plan["model"] != again["model"]) == (0, True)


@pytest.mark.ray
def test_ray_writes_the_same_bytes(scored, folder, model, score, tmp_path):
    _, done = score("--images", folder, "--model", model, "--out", tmp_path / "out", "--engine", "ray", *FP32)
    assert read(tmp_path / "out") == read(scored[0])
    assert "converting" not in done.stderr


def test_a_node_that_sees_no_folder_gets_the_conversion(model, tmp_path, monkeypatch):
    """Through the object store: the conversion in place of the weights, under names that the node's own search finds."""
    ray = pytest.importorskip("ray")
    from detector.scoring import pipeline

    checkpoint = inspect_checkpoint(model)
    settings = resolve_settings(kind="cpu", batch_size=16, precision="fp32", backend="openvino")
    ensure_converted(checkpoint, settings)
    plan = ScorePlan(
        store=open_store(str(tmp_path)),
        run="r",
        fingerprint="f" * 16,
        checkpoint=checkpoint,
        settings=settings,
        limits=DecodeLimits(),
    )
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": True}])
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray, "get", lambda value: value)
    shipped = pipeline._Shipped(plan)
    unpacked = shipped.unpack()
    assert unpacked.checkpoint.path != checkpoint.path
    assert not [name for name in shipped._files if name.endswith(".safetensors")]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nothing"))
    load_predictor(unpacked.checkpoint, settings).predict(1)
    assert [
        name for name in pipeline._files_of(replace(plan, settings=replace(settings, backend="torch"))) if "openvino" in name
    ] == []
