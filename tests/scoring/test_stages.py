"""The stages on Arrow tables: a model's failure is a row's error, and a retried block writes the same part."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from detector.images.listing import list_images
from detector.images.pixels import DecodeLimits
from detector.models.checkpoint import inspect_checkpoint
from detector.models.devices import resolve_settings
from detector.scoring import ledger, stages
from detector.storage import open_store


@pytest.fixture
def plan(model, tmp_path):
    return stages.ScorePlan(
        store=open_store(str(tmp_path / "out")),
        run="r",
        fingerprint="f" * 16,
        checkpoint=inspect_checkpoint(model),
        settings=resolve_settings(kind="cpu", batch_size=16, precision="fp32"),
        limits=DecodeLimits(),
    )


@pytest.fixture
def files(folder):
    return list_images([folder]).files.slice(0, 40)


@pytest.fixture
def scorer(plan):
    scorer = stages.BlockScorer(plan)
    yield scorer
    scorer.close()


def rows_of(plan):
    return ledger.read_parts(plan.store, plan.fingerprint)


def test_a_device_out_of_memory_is_model_failed_and_names_the_flag(plan, files, scorer, monkeypatch):
    """Only the rows of the batch that failed, and the batch is not made smaller: scores depend on its size."""
    forward, calls = scorer._predictor._model.forward, []

    def failing(*args, **kwargs):
        calls.append(len(args[0]) if args else len(kwargs["pixel_values"]))
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*args, **kwargs)

    monkeypatch.setattr(scorer._predictor._model, "forward", failing)
    summary = scorer(files).to_pylist()[0]
    assert set(calls) == {16}
    rows = rows_of(plan)
    failed = rows.filter(pa.compute.equal(rows["error"], "model_failed"))
    assert 0 < failed.num_rows <= 16
    assert summary["scored"] + summary["failed"] == 40
    assert all("--batch-size 8" in message for message in failed["message"].to_pylist())
    assert failed["p_ai"].null_count == failed["label"].null_count == failed.num_rows


def test_a_score_that_is_no_number_is_model_failed(plan, files, scorer, monkeypatch):
    monkeypatch.setattr(scorer._predictor, "predict", lambda count: np.full(count, np.nan, dtype=np.float32))
    assert scorer(files).to_pylist()[0]["scored"] == 0
    assert "model_failed" in set(rows_of(plan)["error"].to_pylist())


def test_a_retried_block_writes_the_same_part(plan, files, scorer):
    first, second = (scorer(files).to_pylist()[0]["part"] for _ in range(2))
    assert first == second
    assert plan.store.names(f"parts/{plan.fingerprint}") == [first.rpartition("/")[2]]
    assert scorer(files.slice(0, 10)).to_pylist()[0]["part"] != first


def test_being_asked_to_stop_commits_what_is_finished(plan, files):
    scorer = stages.BlockScorer(plan, should_stop=lambda: True)
    summary = scorer(files).to_pylist()[0]
    scorer.close()
    assert summary["rows"] == 16
    assert ledger.pending_rows(files, rows_of(plan)).tolist() == list(range(16, 40))


def test_a_picture_that_preprocessing_cannot_take_is_one_error(plan, tmp_path, folder):
    """A strip of 60,000 × 1 pixels is 254 bytes; keeping its aspect, a transform would allocate gigabytes for it."""
    import dataclasses
    import shutil

    from PIL import Image

    strip = tmp_path / "strips"
    strip.mkdir()
    Image.new("RGB", (60_000, 1)).save(strip / "strip.png")
    shutil.copy(f"{folder}/0001-png", strip / "honest.png")
    edge = dataclasses.replace(plan.checkpoint.transform, resize_to=None, shortest_edge=256, crop=(32, 32))
    scorer = stages.BlockScorer(dataclasses.replace(plan, checkpoint=dataclasses.replace(plan.checkpoint, transform=edge)))
    scorer(list_images([str(strip)]).files)
    scorer.close()
    errors = dict(zip(*(rows_of(plan)[name].to_pylist() for name in ("filename", "error")), strict=True))
    assert errors == {"./strips/honest.png": None, "./strips/strip.png": "too_large"}


def test_a_date_that_no_column_holds_ends_as_the_last_that_one_does(plan, tmp_path, folder):
    """ext4 holds years up to 2446, 64-bit nanoseconds up to 2262: one such file must not end the run."""
    import os
    import shutil

    late = tmp_path / "late"
    late.mkdir()
    shutil.copy(f"{folder}/0001-png", late / "picture.png")
    seconds = 13_000_000_000  # 2381
    os.utime(late / "picture.png", (seconds, seconds))
    if (late / "picture.png").stat().st_mtime != seconds:
        pytest.skip("this file system does not hold such dates")
    files = list_images([str(late)]).files
    scorer = stages.BlockScorer(plan)
    assert scorer(files).to_pylist()[0]["scored"] == 1
    scorer.close()
    assert ledger.pending_rows(files, rows_of(plan)).tolist() == []
