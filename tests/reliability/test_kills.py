"""Killed at any moment, at any write: nothing is lost, nothing is doubled; the last run's bytes are those of a quiet run."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pyarrow.parquet as pq
import pytest

from tests.scoring.test_local import ROOT, read, start
from tests.scoring.test_ray import kill_one

POINTS = ("before_temporary", "after_temporary", "before_rename", "after_rename")
FILES = ("parts/", "predictions.parquet", "predictions.csv", "errors.csv", "skipped.csv", "run.json")


def check(out, undisturbed):
    """The published files of a finished run."""
    assert read(out) == read(undisturbed[0])
    assert read(out, "errors.csv") == read(undisturbed[0], "errors.csv")
    table = pq.read_table(os.path.join(out, "predictions.parquet"))
    assert table.num_rows == len(set(table["filename"].to_pylist())) == undisturbed[1]["listed"]
    assert json.loads(read(out, "run.json"))["status"] == "complete"


def readable(out):
    """Whatever moment a kill came at: what is published can be read, and a success marker stands beside whole files only."""
    for name in ("predictions.parquet",):
        if os.path.exists(os.path.join(out, name)):
            pq.read_table(os.path.join(out, name))
    if os.path.exists(os.path.join(out, "run.json")):
        json.loads(read(out, "run.json"))


def kill_at(point, name, count, flags):
    killer = os.path.join(os.path.dirname(os.path.abspath(__file__)), "killer.py")
    env = {**os.environ, "KILL_POINT": point, "KILL_NAME": name, "KILL_COUNT": str(count)}
    env["PYTHONPATH"] = os.pathsep.join((ROOT, os.path.join(os.path.dirname(killer), "hooks")))
    command = [sys.executable, killer, *map(str, flags)]
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, start_new_session=True, check=False, timeout=200
    )
    assert done.returncode == -signal.SIGKILL, (point, name, done.returncode, done.stderr[-2000:])


def test_a_kill_at_every_write_of_the_publication(folder, model, score, undisturbed, tmp_path):
    """The driver dies around each published file in turn, on one output whose parts are done."""
    flags = ("--images", folder, "--model", model, "--out", tmp_path / "out", "--engine", "local", "--scorers", 1)
    score(*flags, "--limit", 5)
    kill_at("before_temporary", "run.json", 1, flags)  # every part is committed, nothing is published
    before = len(os.listdir(next(os.scandir(tmp_path / "out" / "parts")).path))
    for name in FILES[1:]:
        for point in POINTS:
            kill_at(point, name, 1, flags)
            readable(tmp_path / "out")
            if name != "run.json":  # torn between two files: no marker of success may stand there
                assert json.loads(read(tmp_path / "out", "run.json"))["status"] == "publishing", (name, point)
    for point in POINTS:
        kill_at(point, "run.json", 2, flags)
        readable(tmp_path / "out")
    summary, _ = score(*flags)
    assert summary["reused"] == summary["listed"], "a kill while publishing costs no scoring"
    assert len(os.listdir(next(os.scandir(tmp_path / "out" / "parts")).path)) == before
    check(tmp_path / "out", undisturbed)


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_the_write_of_a_part(folder, model, score, undisturbed, tmp_path, point):
    flags = ("--images", folder, "--model", model, "--out", tmp_path / "out", "--engine", "local", "--scorers", 1)
    kill_at(point, "parts/", 2, flags)
    summary, _ = score(*flags)
    assert summary["reused"] >= (64 if point == "after_rename" else 32)
    check(tmp_path / "out", undisturbed)
    left = [name for _, _, names in os.walk(tmp_path / "out") for name in names]
    assert not [name for name in left if name.startswith(".") and name != ".lock"], "half-written files are cleaned up"


@pytest.mark.soak
@pytest.mark.parametrize(("engine", "kills"), [("local", 100), pytest.param("ray", 20, marks=pytest.mark.ray)])
def test_sigkill_of_the_whole_group_at_random_moments(folder, model, score, undisturbed, tmp_path, engine, kills):
    """Counted are kills that found the run at work; one output is killed up to ten times, and then finished and checked."""
    seed = int(time.time())
    print("seed", seed)
    rng = random.Random(seed)
    flags = ("--images", folder, "--model", model, "--engine", engine)
    begun = time.monotonic()
    score(*flags, "--out", tmp_path / "quiet")
    longest, killed, outputs, came_through = time.monotonic() - begun, 0, 0, 0
    while killed < kills:
        out = tmp_path / f"out{outputs}"
        outputs += 1
        for _ in range(min(10, kills - killed)):
            begun = time.monotonic()
            if not kill_after(rng.uniform(0.1, longest), start(*flags, "--out", out)):
                longest = time.monotonic() - begun  # on a busy machine a run's length changes from minute to minute
                came_through += 1
                break
            killed += 1
            longest *= 1.1
            readable(out)
        else:
            score(*flags, "--out", out)
        check(out, undisturbed)
        print(f"{killed} kills, {outputs} outputs checked, {came_through} runs ended before their kill", flush=True)


def kill_after(seconds, process):
    """SIGKILL a run's process group; whether it was still at work. Ray's daemons, which leave the group, must die with it."""
    try:
        process.wait(seconds)
        family = []
    except subprocess.TimeoutExpired:
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGKILL)
    _, stderr = process.communicate()
    assert process.returncode in {0, -signal.SIGKILL}, stderr
    _, alive = psutil.wait_procs(family, timeout=30)
    for orphan in alive:
        orphan.kill()
    assert not alive, "processes outlive their run"
    return process.returncode != 0


@pytest.mark.soak
@pytest.mark.ray
def test_a_worker_is_killed_every_two_seconds(folder, model, undisturbed, tmp_path):
    seed = int(time.time())
    print("seed", seed)
    rng, out, kills = random.Random(seed), tmp_path / "out", 0
    process = start("--images", folder, "--model", model, "--out", out)
    while process.poll() is None and kills < 10:
        time.sleep(2)
        kills += kill_one(process.pid, rng)
    _, stderr = process.communicate(timeout=280)
    assert process.returncode == 0, stderr
    assert kills
    print(f"{kills} workers killed")
    check(out, undisturbed)


@pytest.mark.soak
def test_two_runs_started_together_twenty_times(folder, model, tmp_path):
    slowest = 0.0
    for attempt in range(20):
        flags = ("--images", folder, "--model", model, "--out", tmp_path / f"out{attempt}", "--engine", "local", "--limit", 8)
        begun = time.monotonic()
        pair = [start(*flags) for _ in range(2)]
        while all(process.poll() is None for process in pair):
            time.sleep(0.02)
        seconds = time.monotonic() - begun
        first = next(process for process in pair if process.poll() is not None)
        ended = sorted(process.wait(200) for process in pair)
        assert (ended, first.returncode) == ([0, 4], 4), (attempt, [process.communicate()[1] for process in pair])
        assert seconds < 5, "the one that is turned away says so at once"
        slowest = max(slowest, seconds)
        for process in pair:
            process.communicate()
    print(f"turned away after {slowest:.2f} s at the most")
