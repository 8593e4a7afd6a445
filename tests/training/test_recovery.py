"""A worker's, a driver's and a user's end of a training, on real processes killed by pid."""

import os
import signal
import threading
import time

import psutil
import pytest

from detector.errors import LockedError, UsageError
from detector.training import finetune
from detector.training.config import TrainConfig
from tests.training import corpora

EPOCHS, SEED = 3, 7
# Same seed, data and workers on a CPU: equal to the last digit that history.csv writes, restarts or not.
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    print(f"seed {SEED}")
    return corpora.tree(tmp_path_factory.mktemp("data"), 150, seed=SEED)


def config(data, out, **changes):
    return TrainConfig(
        data=data, out=str(out), model="scratch:tiny", epochs=EPOCHS, workers=2, batch_size=8, gradient_accumulation=1,
        learning_rate=1e-3, crop_min_scale=0.5, seed=SEED, **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory, ray_here):
    out = tmp_path_factory.mktemp("undisturbed")
    finetune.finetune(config(data, out))
    return out, corpora.history(out)


def wait_for(log, text, process, timeout_s=200):
    """Wait until a log file holds a text; fail with the log if the process ends before."""
    limit = time.monotonic() + timeout_s
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < limit, log.read_text()
        time.sleep(0.05)


def workers_of(pid):
    """The training workers below a process."""
    below = psutil.Process(pid).children(recursive=True)
    return [child for child in below if "RayTrainWorker" in " ".join(child.cmdline())]


def assert_same_metrics(rows, expected):
    assert [row["epoch"] for row in rows] == [row["epoch"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        for name in ("train_loss", "validation_loss", "accuracy", "f1", "learning_rate"):
            assert float(row[name]) == pytest.approx(float(other[name]), abs=TOLERANCE), (row["epoch"], name)


@pytest.mark.ray
def test_a_killed_worker_costs_no_finished_evaluation(data, undisturbed, tmp_path, capfd, monkeypatch):
    """Would fail if a restarted group began at epoch 0: Ray forgets a report that its controller has not collected.

    It would fail too if the Trainer's own loading were used, which leaves out the attention weights of a Swin.
    """
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "4")  # the kill would come long before the collection
    killed = []

    def kill_after_first_evaluation():
        text = ""
        while "epoch 1:" not in text:
            time.sleep(0.05)
            text += capfd.readouterr().err
        victims = workers_of(os.getpid())
        assert len(victims) == 2
        victims[1].kill()
        killed.append(victims[1].pid)

    thread = threading.Thread(target=kill_after_first_evaluation, daemon=True)
    thread.start()
    summary = finetune.finetune(config(data, tmp_path / "out"))
    thread.join(timeout=5)
    rows = corpora.history(tmp_path / "out")
    assert killed
    assert summary["attempts"] == 2
    again = int(next(row["epoch"] for row in rows if row["attempt"] == "2"))
    assert again >= 2, "the evaluation of epoch 1 was finished before the kill"
    assert [row["attempt"] for row in rows] == ["1"] * (again - 1) + ["2"] * (EPOCHS + 1 - again)
    assert_same_metrics(rows, undisturbed[1])


@pytest.mark.ray
def test_a_finished_training_is_never_continued_silently(data, undisturbed):
    """The same command again trains anew, from the first epoch, and gives the same metrics; --resume finds nothing to do."""
    out, before = undisturbed
    finetune.finetune(config(data, out))
    rows = corpora.history(out)
    assert [row["attempt"] for row in rows] == ["1"] * EPOCHS
    assert_same_metrics(rows, before)
    modified = os.stat(out / "model.safetensors").st_mtime_ns
    finetune.finetune(config(data, out, resume=True))
    assert os.stat(out / "model.safetensors").st_mtime_ns == modified
    assert not (out / ".training").exists(), "optimizer state of a finished run takes space for nothing"


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.soak)])
def test_a_stopped_driver_continues_with_resume(data, undisturbed, tmp_path, number):
    log, out = tmp_path / "log", tmp_path / "out"
    recipe = [flag if flag != "16" else "8" for flag in corpora.FAST]  # FAST's only 16 is its batch size
    flags = ["--data", data, *recipe, "--epochs", EPOCHS, "--workers", 2, "--seed", SEED, "--out", out]
    with open(log, "w", encoding="utf-8") as stderr:
        process = corpora.start("train", *flags, stderr=stderr)
        wait_for(log, "pictures per update", process)
        with pytest.raises(LockedError):  # while it runs, nobody else trains into its folder
            finetune.finetune(config(data, out))
        wait_for(log, "epoch 1:", process)
        below = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, number)
        process.communicate(timeout=60)
    assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGKILL), log.read_text()
    psutil.wait_procs(below, timeout=30)
    assert not (out / "run.json").exists()
    with pytest.raises(UsageError, match="--weight-decay"):
        finetune.finetune(config(data, out, resume=True, weight_decay=0.5))
    finetune.finetune(config(data, out, resume=True))
    rows = corpora.history(out)
    assert rows[0]["attempt"] == "1"
    assert rows[-1]["attempt"] == "2"
    assert_same_metrics(rows, undisturbed[1])
