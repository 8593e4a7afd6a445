"""A picture that crashes the process that scores it is tried twice and harms nobody else."""

import os
import shutil
import signal
from collections import Counter

import pyarrow.parquet as pq
import pytest

from detector.scoring.isolation import MAX_ENDED
from tests.scoring.test_local import read

HOOKS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "hooks")


@pytest.fixture
def poisoned(folder, tmp_path):
    """The pictures of ``folder`` and two poisonous ones, neighbours in one batch."""
    path = tmp_path / "pictures"
    shutil.copytree(folder, path)
    for name in ("0007-poison", "0009-poison"):
        shutil.copy(path / "0000-jpg", path / name)
    return path


def tries(log):
    return Counter(log.read_text().split())


def run(score, folder, model, out, log, *flags, sign=signal.SIGABRT):
    python_path = os.pathsep.join(filter(None, (HOOKS, os.environ.get("PYTHONPATH"))))
    env = {"PYTHONPATH": python_path, "POISON": str(log), "POISON_SIGNAL": str(int(sign))}
    return score("--images", folder, "--model", model, "--out", out, *flags, **env)


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.ray)])
def test_poison_is_tried_twice_and_harms_no_neighbour(engine, poisoned, model, score, undisturbed, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    summary, _ = run(score, poisoned, model, out, log, "--engine", engine)
    assert (summary["scored"], summary["failed"]) == (72, 5)
    assert summary["errors"]["model_failed"] == 2
    assert set(tries(log).values()) == {2}, tries(log)
    assert read(out) == read(undisturbed[0]), "every honest picture has the score it has without poison beside it"
    rows = pq.read_table(out / "predictions.parquet")
    assert rows.num_rows == len(set(rows["filename"].to_pylist())) == 77
    if engine == "local":  # a model's failure may pass: the next run tries again, and only those
        again, _ = score("--images", poisoned, "--model", model, "--out", out, "--engine", engine)
        assert (again["scored"], again["failed"], again["reused"]) == (74, 3, 75)


@pytest.mark.soak
def test_a_process_that_is_killed_at_a_picture_does_not_go_on_for_ever(poisoned, model, score, undisturbed, tmp_path):
    """SIGKILL comes from outside and says nothing about a picture, so it is allowed more often; but not for ever."""
    out, log = tmp_path / "out", tmp_path / "log"
    summary, _ = run(score, poisoned, model, out, log, "--engine", "local", sign=signal.SIGKILL)
    assert summary["errors"]["model_failed"] == 2
    assert set(tries(log).values()) == {2 * MAX_ENDED}
    assert read(out) == read(undisturbed[0])
