"""The local engine: every picture one row; kills, SIGTERM and a second run cost nothing."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from tests import pictures
from tests.checkpoints import save_swin

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def read(out, name="predictions.csv"):
    with open(os.path.join(out, name), "rb") as file:
        return file.read()


def start(*flags):
    command = [sys.executable, "-m", "jobs.score", *map(str, flags)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, text=True
    )


def wait_for_parts(out, count, process, timeout_s=120):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = [name for _, _, names in os.walk(os.path.join(out, "parts")) for name in names if name.endswith(".parquet")]
        if len(found) >= count:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    pytest.fail("no part was committed in time")


def test_every_file_is_one_row(undisturbed, folder):
    out, summary = undisturbed
    rows = pq.read_table(os.path.join(out, "predictions.parquet"))
    files = sum(len(names) for _, _, names in os.walk(folder))
    assert rows.num_rows == files == summary["listed"]
    assert (summary["scored"], summary["failed"], summary["skipped"]) == (72, 3, 0)
    assert len(set(rows["filename"].to_pylist())) == files
    errors = {
        r["filename"].rpartition("/")[2]: r["error"] for r in csv.DictReader(read(out, "errors.csv").decode().splitlines())
    }
    assert errors == {"empty.jpg": "empty", "text.png": "not_an_image", "cut.jpg": "truncated"}
    assert json.loads(read(out, "run.json"))["status"] == "complete"


def test_columns_of_a_scored_row(undisturbed):
    rows = pq.read_table(os.path.join(undisturbed[0], "predictions.parquet"))
    assert rows.column_names == [
        "filename", "path_bytes", "label", "score", "p_ai", "error", "message", "sha256", "bytes", "modified", "width", "height",
        "format", "model", "run", "scored_at",
    ]  # fmt: skip
    good = rows.filter(rows["error"].is_null()).to_pandas()
    assert (good["score"] >= 0.5).all()
    assert ((good["p_ai"] >= 0.5) == (good["label"] == 0)).all()
    assert good["p_ai"].std() > 0.05, "a constant score would satisfy every other check"
    assert good[["sha256", "width", "height", "format", "modified"]].notna().all().all()


def test_a_second_run_scores_nothing_and_leaves_the_bytes(undisturbed, folder, model, score):
    out, _ = undisturbed
    before = read(out)
    summary, done = score("--images", folder, "--model", model, "--out", out, "--engine", "local")
    assert (summary["reused"], summary["images_per_second"]) == (75, 0.0)
    assert read(out) == before
    assert "0 to score" in done.stderr


def test_another_model_rescores_and_keeps_the_old_parts(undisturbed, folder, model, score, tmp_path):
    out = tmp_path / "out"
    score("--images", folder, "--model", model, "--out", out, "--engine", "local")
    other = save_swin(tmp_path / "other", seed=9)
    summary, _ = score("--images", folder, "--model", other, "--out", out, "--engine", "local")
    assert summary["reused"] == 0
    assert len(os.listdir(out / "parts")) == 2
    assert read(out) != read(undisturbed[0])
    summary, _ = score("--images", folder, "--model", model, "--out", out, "--engine", "local")
    assert summary["reused"] == 75
    assert read(out) == read(undisturbed[0])


def test_a_picture_scores_the_same_alone_as_among_others(undisturbed, folder, model, score, tmp_path):
    everything = pq.read_table(os.path.join(undisturbed[0], "predictions.parquet")).to_pandas().set_index("filename")["p_ai"]
    for name in ("0007-gif", "more/0003-grey.jpg"):
        out = tmp_path / name.replace("/", "-")
        score("--images", f"pictures={os.path.dirname(os.path.join(folder, name))}", "--include", os.path.basename(name), "--model", model,
              "--out", out, "--engine", "local")  # fmt: skip
        alone = pq.read_table(out / "predictions.parquet").to_pandas()
        assert alone["p_ai"].iloc[0] == everything[f"./pictures/{name}"]


def test_replaced_and_added_pictures_are_the_only_ones_scored(model, score, tmp_path):
    folder = tmp_path / "pics"
    names = pictures.folder(folder, 20, seed=4, kinds=("bmp",))
    flags = ("--images", folder, "--model", model, "--out", tmp_path / "out", "--engine", "local")
    score(*flags)
    before = os.path.getsize(folder / names[3])
    data = bytearray((folder / names[3]).read_bytes())
    data[-60:] = bytes(255 - b for b in data[-60:])
    (folder / names[3]).write_bytes(data)
    assert os.path.getsize(folder / names[3]) == before
    pictures.save(folder / "new.png", np.random.default_rng(1), "png")
    os.unlink(folder / names[5])
    summary, _ = score(*flags)
    assert (summary["listed"], summary["reused"]) == (20, 18)
    assert names[5] not in read(tmp_path / "out").decode()


def test_sigterm_keeps_what_is_done_and_exits_143_within_ten_seconds(folder, model, score, undisturbed, tmp_path):
    out = tmp_path / "out"
    flags = ("--images", folder, "--model", model, "--out", out, "--engine", "local", "--scorers", 1)
    process = start(*flags)
    wait_for_parts(out, 1, process)
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 143, stderr
    assert time.monotonic() - sent < 10
    assert json.loads(stdout.splitlines()[-1])["status"] == "stopped"
    summary, _ = score(*flags)
    assert summary["reused"] > 0
    assert read(out) == read(undisturbed[0])


def test_sigkill_of_everything_loses_and_doubles_nothing(folder, model, score, undisturbed, tmp_path):
    seed = int(time.time())
    print("seed", seed)
    rng, out = np.random.default_rng(seed), tmp_path / "out"
    flags = ("--images", folder, "--model", model, "--out", out, "--engine", "local")
    for _ in range(3):
        process = start(*flags)
        time.sleep(rng.uniform(0.2, 9))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    score(*flags)
    assert read(out) == read(undisturbed[0])
    assert pq.read_table(out / "predictions.parquet").num_rows == 75


def test_a_killed_worker_is_replaced(folder, model, undisturbed, tmp_path):
    out = tmp_path / "out"
    process = start("--images", folder, "--model", model, "--out", out, "--engine", "local")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        workers = psutil.Process(process.pid).children()  # the driver has no others
        if workers and sum(workers[0].cpu_times()[:2]) > 1.0:
            break
        time.sleep(0.05)
    workers[0].kill()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "given to a new one" in stderr
    assert read(out) == read(undisturbed[0])


def test_a_second_run_on_the_same_output_is_turned_away(folder, model, score, tmp_path):
    out = tmp_path / "out"
    flags = ("--images", folder, "--model", model, "--out", out, "--engine", "local")
    first = start(*flags)
    while not (out / ".lock").exists():
        time.sleep(0.02)
    summary, done = score(*flags, check=None)
    assert done.returncode == 4, done.stderr
    assert first.poll() is None, "the second run must not wait for the first"
    assert summary["status"] == "locked"
    os.killpg(first.pid, signal.SIGKILL)  # the lock dies with its holder
    first.communicate()
    score(*flags, "--limit", 5)


def test_more_failures_than_allowed_is_exit_3(folder, model, score, tmp_path):
    flags = ("--images", folder, "--model", model, "--out", tmp_path / "out", "--engine", "local")
    summary, _ = score(*flags, "--max-error-rate", 0.01, check=3)
    assert (summary["status"], summary["failed"]) == ("too_many_errors", 3)
    score(*flags, "--max-error-rate", 0.05)


def test_dry_run_plans_and_writes_nothing(folder, model, score, tmp_path):
    summary, _ = score("--images", folder, "--model", model, "--out", tmp_path / "out", "--dry-run")
    assert (summary["status"], summary["pending"], summary["reused"]) == ("planned", 75, 0)
    assert not (tmp_path / "out").exists()


def test_what_comes_to_nothing_leaves_no_folder_behind(folder, model, score, tmp_path):
    deep = tmp_path / "a" / "b" / "c"
    score("--images", folder, "--model", tmp_path / "no-model", "--out", deep, check=2)
    assert not (tmp_path / "a").exists()
    score("--images", folder, "--model", model, "--out", deep, "--dry-run")
    assert not (tmp_path / "a").exists()


def test_a_rerun_that_scores_nothing_keeps_the_rate_for_the_next_plan(model, score, tmp_path):
    pictures.folder(tmp_path / "pics", 6, seed=3)
    flags = ("--images", tmp_path / "pics", "--model", model, "--out", tmp_path / "out", "--engine", "local")
    rate = score(*flags)[0]["images_per_second"]
    assert score(*flags)[0]["images_per_second"] == 0
    assert score(*flags)[0]["images_per_second"] == 0
    pictures.folder(tmp_path / "pics", 4, seed=4, sub="new")
    assert score(*flags, "--dry-run")[0]["estimated_seconds"] == round(4 / rate, 1)


def test_an_output_inside_the_pictures_is_not_scored(model, score, tmp_path):
    pictures.folder(tmp_path / "pics", 6, seed=3)
    flags = ("--images", tmp_path / "pics", "--model", model, "--out", tmp_path / "pics" / "out", "--engine", "local")
    score(*flags)
    summary, _ = score(*flags)
    assert (summary["scored"], summary["failed"], summary["reused"]) == (6, 0, 6)
