"""The Ray engine: the same bytes as the local one, whatever graph, and whoever is killed."""

import os
import random
import subprocess
import sys
import time
from dataclasses import fields, replace

import psutil
import pyarrow.parquet as pq
import pytest

from detector.cluster import connect
from detector.images.listing import list_images
from detector.images.pixels import DECODER_MODE, DecodeLimits
from detector.models.checkpoint import inspect_checkpoint
from detector.models.devices import local_device_kind, resolve_settings
from detector.models.gpu_jpeg import GpuJpegDecoder
from detector.scoring import ledger, pipeline, publish
from detector.scoring.encoded import JpegFinisher
from detector.scoring.resources import Resources
from detector.scoring.stages import ScorePlan
from detector.storage import open_store
from tests.scoring.test_gpu_decode import StandIn
from tests.scoring.test_local import read, start, wait_for_parts

pytestmark = pytest.mark.ray


def plan_of(out, model, run="test"):
    checkpoint = inspect_checkpoint(model)
    settings = resolve_settings(kind=local_device_kind(), batch_size=None, precision="auto")
    how = {"precision": settings.precision, "batch_size": settings.batch_size, "device": settings.kind}
    fingerprint = checkpoint.fingerprint(**how, decoder=DECODER_MODE, backend="torch")
    return ScorePlan(
        store=open_store(str(out)),
        run=run,
        fingerprint=fingerprint,
        checkpoint=checkpoint,
        settings=settings,
        limits=DecodeLimits(),
    )


def published(out, plan, listing):
    store = open_store(str(out))
    results = publish.results_of(listing, ledger.read_parts(store, plan.fingerprint), run=plan.run)
    publish.publish(store, listing, results, {"status": "complete"})
    return read(str(out))


def test_both_engines_write_the_same_bytes(folder, model, score, undisturbed, tmp_path):
    summary, done = score("--images", folder, "--model", model, "--out", tmp_path / "out")
    assert (summary["scored"], summary["failed"]) == (72, 3)
    assert read(tmp_path / "out") == read(undisturbed[0])
    assert read(tmp_path / "out", "errors.csv") == read(undisturbed[0], "errors.csv")
    ours, theirs = (
        set(os.listdir(next(os.scandir(os.path.join(out, "parts"))).path)) for out in (tmp_path / "out", undisturbed[0])
    )
    assert ours == theirs, "part names follow from the rows alone"
    assert "Traceback" not in done.stderr


class StandInPlan(ScorePlan):
    """--decode gpu, with torchvision's CPU decoder in the GPU's place."""

    def finisher(self):
        transform = self.checkpoint.transform
        return JpegFinisher(transform, self.limits, gpu=GpuJpegDecoder(transform, decode=StandIn()))


def test_graphs_for_cpus_and_for_gpus(folder, model, undisturbed, tmp_path):
    """On CPUs everything is one operator; where scoring is apart, decoding is not fused into it. Both give the same bytes."""
    listing = list_images([folder])
    blocks = [listing.files.slice(at, 16) for at in range(0, listing.files.num_rows, 16)]
    one = Resources(num_scorers=1, scorer_cpus=1.0, scorer_gpus=0.0)
    two = Resources(num_scorers=1, scorer_cpus=0.9, scorer_gpus=0.0, num_decoders=1, decoder_cpus=1.0)
    threads = replace(two, scorer_threads=2)
    with connect(None, num_cpus=2):
        for name, resources, operators in (("one", one, 1), ("two", two, 2), ("threads", threads, 2), ("gpu", threads, 2)):
            plan = plan_of(tmp_path / name, model)
            if name == "gpu":
                plan = StandInPlan(**{field.name: getattr(plan, field.name) for field in fields(plan)} | {"decode": "gpu"})
            graph = pipeline.build(plan, blocks, resources=resources).materialize()
            names = [line.split(":", 1)[0] for line in graph.stats().splitlines() if line.startswith("Operator ")]
            assert len(names) == operators, names
            assert "ReadListing->MapBatches" in names[0]
            assert published(tmp_path / name, plan, listing) == read(undisturbed[0])


def test_killed_workers_cost_nothing(folder, model, undisturbed, tmp_path):
    """A scoring or decoding process is killed every two seconds."""
    seed = int(time.time())
    print("seed", seed)
    rng, out, kills = random.Random(seed), tmp_path / "out", 0
    process = start("--images", folder, "--model", model, "--out", out)
    while process.poll() is None and kills < 3:
        time.sleep(2)
        kills += kill_one(process.pid, rng)
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    assert kills
    assert read(out) == read(undisturbed[0])
    assert pq.read_table(out / "predictions.parquet").num_rows == 75


def test_sigterm_keeps_what_is_committed_and_exits_143_within_ten_seconds(folder, model, score, undisturbed, tmp_path):
    out = tmp_path / "out"
    flags = ("--images", folder, "--model", model, "--out", out, "--scorers", 1)
    process = start(*flags)
    wait_for_parts(out, 1, process)
    below = psutil.Process(process.pid).children(recursive=True)
    sent = time.monotonic()
    process.terminate()
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 143, stderr
    assert '"status": "stopped"' in stdout
    assert time.monotonic() - sent < 10
    _, alive = psutil.wait_procs(below, timeout=5)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE], "Ray's processes outlive the job"
    summary, _ = score(*flags, "--engine", "local")
    assert summary["reused"] > 0
    assert read(out) == read(undisturbed[0])


SLOW_END = """
import os, signal, sys
from dataclasses import dataclass
from detector.cli import run_job
from detector.cluster import connect
from ray._private.node import Node

@dataclass(frozen=True, kw_only=True)
class Flags:
    out: str = "out"

def main(flags):
    with connect(None, num_cpus=1):
        end = Node.kill_all_processes
        Node.kill_all_processes = lambda *args, **options: (os.kill(os.getpid(), signal.SIGTERM), end(*args, **options))
    return {}

sys.exit(run_job("score", Flags, main, []))
"""


def test_a_sigterm_while_ray_ends_stops_the_job_too():
    """Ray's C++ side has given the signal back to the system by then, which would end the process without a word."""
    done = subprocess.run([sys.executable, "-c", SLOW_END], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 143, done.stderr
    assert '"status": "stopped"' in done.stdout


def kill_one(pid, rng):
    """Kill one actor or decoder below a job's process; how many were killed (0 or 1)."""
    victims = []
    for child in psutil.Process(pid).children(recursive=True):
        try:
            name = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if any(mark in name for mark in ("MapWorker", "scoring.worker", "decoder_child")):
            victims.append(child)
    if not victims:
        return 0
    try:
        rng.choice(victims).kill()
    except psutil.Error:
        return 0
    return 1


def test_a_checkpoint_that_cannot_be_loaded_is_wrong_use(folder, score, tmp_path):
    """Found out only where the model is built, in an actor: still one clear line and exit 2."""
    import json

    from tests.checkpoints import save_swin

    broken = save_swin(tmp_path / "broken")
    config = json.loads((tmp_path / "broken" / "config.json").read_text())
    (tmp_path / "broken" / "config.json").write_text(json.dumps(config | {"embed_dim": 32}))
    for engine in ("ray", "local"):
        summary, done = score("--images", folder, "--model", broken, "--out", tmp_path / engine, "--engine", engine, check=2)
        assert summary["status"] == "wrong_use"
        assert "broken" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
