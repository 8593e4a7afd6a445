"""Many small files: the driver's memory stays flat, few parts are written, and the listing is quick."""

import io
import json
import os
import struct
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from detector.images.listing import list_images
from tests.scoring.test_local import ROOT

MANY, FEW = 50_000, 10_000
MAX_DRIVER_BYTES, MAX_SLOPE_BYTES, MAX_PARTS, MAX_LISTING_CPU_S = 500 * 10**6, 2048, 200, 3.0

# Runs a job as its module does, and says at the end how much memory its own process had at most.
DRIVER = """
import sys
from detector.cli import run_job
from jobs.score import ScoreConfig, main
code = run_job("score", ScoreConfig, main)
with open("/proc/self/status", encoding="ascii") as file:
    peak = next(line.split()[1] for line in file if line.startswith("VmHWM"))
heavy = sorted({"torch", "transformers", "torchvision"} & set(sys.modules))
print("DRIVER", peak, *heavy, file=sys.stderr)
sys.exit(code)
"""


def write_many(folder, start, stop):
    """Distinct tiny files: bitmaps of 8 × 8, one in ten a PNG and one in ten a text that is no picture."""
    rng = np.random.default_rng(start)
    header = b"BM" + struct.pack("<IHHI", 54 + 192, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 24, 0, 192, 0, 0, 0, 0)
    for number in range(start, stop):
        path = os.path.join(folder, f"{number // 1000:03d}", f"picture-{number:06d}")
        if number % 1000 == 0 or number == start:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        pixels = rng.bytes(192)
        if number % 10 == 0:
            buffer = io.BytesIO()
            Image.frombytes("RGB", (8, 8), pixels).save(buffer, "PNG", compress_level=0)
            data = buffer.getvalue()
        else:
            data = b"no picture " + pixels[:20].hex().encode() if number % 10 == 1 else header + pixels
        with open(path, "wb") as file:
            file.write(data)


def run_driver(folder, model, out, engine):
    """Score ``folder``; (summary, peak memory of the driver alone in bytes, wall seconds)."""
    command = [sys.executable, "-c", DRIVER, "--images", folder, "--model", model, "--out", out, "--engine", engine]
    begun = time.monotonic()
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    last = next(line.split() for line in reversed(done.stderr.splitlines()) if line.startswith("DRIVER"))
    assert last[2:] == [], "the driver imports neither torch nor transformers"
    return json.loads(done.stdout.splitlines()[-1]), int(last[1]) * 1024, time.monotonic() - begun


def check_run(folder, model, out, engine, count):
    summary, peak, seconds = run_driver(folder, model, out, engine)
    assert (summary["listed"], summary["failed"]) == (count, count // 10)
    assert pq.read_metadata(os.path.join(out, "predictions.parquet")).num_rows == count
    parts = [name for _, _, names in os.walk(os.path.join(out, "parts")) for name in names]
    assert 0 < len(parts) <= MAX_PARTS
    print(f"{engine}: {count} files, driver at most {peak / 1e6:.0f} MB, {len(parts)} parts, {seconds:.0f} s, "
          f"{summary['images_per_second']} files/s", flush=True)  # fmt: skip
    assert peak < MAX_DRIVER_BYTES
    return peak


@pytest.mark.soak
@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.ray)])
def test_fifty_thousand_files(model, tmp_path, engine):
    few, many = tmp_path / "few", tmp_path / "many"
    write_many(few, 0, FEW)
    write_many(many, 0, MANY)
    peaks = {n: check_run(folder, model, tmp_path / f"out{n}", engine, n) for n, folder in ((FEW, few), (MANY, many))}
    slope = (peaks[MANY] - peaks[FEW]) / (MANY - FEW)
    print(f"{engine}: {slope:.0f} bytes a file from {FEW} to {MANY}")
    assert slope < MAX_SLOPE_BYTES
    begun = time.process_time()
    assert list_images([str(many)]).files.num_rows == MANY
    print(f"listing {MANY} files: {time.process_time() - begun:.2f} CPU-s")
    assert time.process_time() - begun < MAX_LISTING_CPU_S


# A driver's life without its scorers: list, commit blocks as workers would in another process, read the ledger, publish.
PUBLISHER = """
import os, subprocess, sys
from detector import runs
from detector.images.listing import list_images
from detector.scoring import ledger, publish
from detector.scoring.score import block_rows
from detector.storage import open_store
folder, out = sys.argv[1:3]
store, listing = open_store(out), list_images([folder])
if len(sys.argv) == 4:
    from types import SimpleNamespace
    from detector.scoring.stages import commit_failed
    plan = SimpleNamespace(store=store, run="x", fingerprint="f" * 16)
    rows = block_rows(listing.files.num_rows, 16)
    for at in range(0, listing.files.num_rows, rows):
        commit_failed(listing.files.slice(at, rows), error="corrupt", message="written by the test", plan=plan)
    sys.exit()
subprocess.run([sys.executable, "-c", os.environ["PUBLISHER"], folder, out, "commit"], check=True)
done = ledger.read_parts(store, "f" * 16, columns=ledger.LEDGER_COLUMNS)
assert not len(ledger.pending_rows(listing.files, done))
results = publish.results_of(listing, ledger.read_parts(store, "f" * 16), run="x")
publish.publish(store, listing, results, {"status": "complete"})
with open("/proc/self/status", encoding="ascii") as file:
    print(next(line.split()[1] for line in file if line.startswith("VmHWM")))
"""


def test_a_drivers_memory_and_its_parts(tmp_path):
    """The short version: everything that a driver does but scoring, for 10,000 and 50,000 files."""
    peaks = {}
    for count in (FEW, MANY):
        folder, out = tmp_path / f"in{count}", tmp_path / f"out{count}"
        for sub in range(0, count, 1000):
            (folder / f"{sub:06d}").mkdir(parents=True)
            for number in range(sub, sub + 1000):
                os.close(os.open(folder / f"{sub:06d}" / f"picture-{number:06d}.jpg", os.O_CREAT | os.O_WRONLY))
        command = [sys.executable, "-c", PUBLISHER, str(folder), str(out)]
        env = {**os.environ, "PUBLISHER": PUBLISHER}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=250)
        assert done.returncode == 0, done.stderr[-3000:]
        peaks[count] = int(done.stdout) * 1024
        assert pq.read_metadata(out / "predictions.parquet").num_rows == count
        assert 0 < len(os.listdir(out / "parts" / ("f" * 16))) <= MAX_PARTS
    print({count: f"{peak / 1e6:.0f} MB" for count, peak in peaks.items()})
    assert peaks[MANY] < MAX_DRIVER_BYTES
    assert (peaks[MANY] - peaks[FEW]) / (MANY - FEW) < MAX_SLOPE_BYTES
    begun = time.process_time()
    assert list_images([str(tmp_path / f"in{MANY}")]).files.num_rows == MANY
    assert time.process_time() - begun < MAX_LISTING_CPU_S
