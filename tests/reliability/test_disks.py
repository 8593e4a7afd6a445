"""A full, read-only or vanished output: a clear message, committed work intact, and the next run completes."""

import os
import shutil
import subprocess
import threading
import time

import pyarrow.parquet as pq
import pytest

from tests.scoring.test_local import read, start, wait_for_parts


def mount(path, *options):
    done = subprocess.run(["mount", *options, str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of its own; half a megabyte."""
    path = tmp_path / "disk"
    path.mkdir()
    mount(path, "-t", "tmpfs", "-o", "size=512k", "tmpfs")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_read_only_output_is_refused_at_once(folder, model, score, small_disk):
    mount(small_disk, "-o", "remount,ro")
    summary, done = score("--images", folder, "--model", model, "--out", small_disk / "out", "--engine", "local", check=2)
    assert "Read-only" in done.stderr
    assert summary["status"] == "wrong_use"
    assert "to score" not in done.stderr, "refused before any work"


def test_a_disk_that_fills_up_keeps_what_is_committed(folder, model, score, undisturbed, small_disk, tmp_path):
    flags = ("--images", folder, "--model", model, "--out", small_disk / "out", "--engine", "local", "--scorers", 1)
    score(*flags, "--limit", 16)
    ballast = small_disk / "ballast"
    free = shutil.disk_usage(small_disk).free
    ballast.write_bytes(b"x" * (free - 8192))
    summary, done = score(*flags, check=1)
    assert summary["status"] == "failed"
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert pq.read_table(small_disk / "out" / "predictions.parquet").num_rows == 16, "what was published is still whole"
    ballast.unlink()
    summary, _ = score(*flags)
    assert summary["reused"] >= 16
    assert read(small_disk / "out") == read(undisturbed[0])


@pytest.mark.parametrize("trouble", ["read-only", "deleted"])
def test_an_output_that_goes_away_during_the_run(folder, model, score, undisturbed, small_disk, trouble):
    out = small_disk / "out"
    flags = ("--images", folder, "--model", model, "--out", out, "--engine", "local", "--scorers", 1)
    process = start(*flags)
    wait_for_parts(out, 1, process)
    if trouble == "deleted":
        shutil.rmtree(out)
    else:  # a file system that is in use cannot be remounted here; a read-only one over the folder looks the same to the run
        mount(out, "-t", "tmpfs", "-o", "ro", "tmpfs")
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 1, stderr
    assert "Traceback" not in stderr
    assert ("Read-only" if trouble == "read-only" else "No such file") in stderr
    if trouble == "read-only":
        subprocess.run(["umount", str(out)], check=True)
    summary, _ = score(*flags)
    assert summary["reused"] >= (1 if trouble == "read-only" else 0)
    assert read(out) == read(undisturbed[0])


def test_pictures_that_vanish_or_change_while_the_run_goes_on(model, score, tmp_path):
    """Each is still one row: vanished, or scored as it was read; the next run sees what is there then."""
    from tests import pictures

    folder = tmp_path / "pics"
    names = pictures.folder(folder, 60, seed=5, kinds=("png",))
    flags = ("--images", folder, "--model", model, "--out", tmp_path / "out", "--engine", "local", "--scorers", 1)
    process = start(*flags)

    def meddle():
        wait_for_parts(tmp_path / "out", 1, process)
        os.unlink(folder / names[-1])
        shutil.copyfile(folder / names[0], folder / names[-2])

    thread = threading.Thread(target=meddle)
    thread.start()
    _, stderr = process.communicate(timeout=100)
    thread.join()
    assert process.returncode == 0, stderr
    rows = {row["filename"]: row for row in pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()}
    assert len(rows) == 60
    gone, changed = rows[f"./pics/{names[-1]}"], rows[f"./pics/{names[-2]}"]
    assert gone["error"] in {"vanished", None}
    time.sleep(0.01)
    summary, _ = score(*flags)
    assert (summary["listed"], summary["failed"]) == (59, 0)
    after = {row["filename"]: row for row in pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()}
    assert after[f"./pics/{names[-2]}"]["sha256"] == after[f"./pics/{names[0]}"]["sha256"]
    assert changed["error"] is None
