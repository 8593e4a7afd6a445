"""jobs.train against its two bounds: ``python -m benchmarks.training``.

The ways take turns, several rounds. Each trains the same model on the same pictures for a few epochs; the first epoch is
left out, and of the others only the training steps count: imports, start-up, warm-up, evaluations and saving drop out.
Once everything has one thread: one worker against one process. Once everything has two processes of one thread each, half the
batch in each: jobs.train's two workers against ``torchrun --nproc-per-node 2``.

jobs.train is run as a user runs it, Ray included, and its figures are those of its own ``history.csv``. What all its other
processes (a second worker, Ray's services, the driver) take meanwhile is measured from outside, and counted in.

The machine may be shared: medians and ranges are printed, and CPU-seconds stand beside wall time. Do not start it with
``nice``: Ray sets the priority of its workers itself, and the others would come off worse.
"""

import contextlib
import csv
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass

import psutil
import tyro

from benchmarks.measure import failed, heading, save, summary
from benchmarks.run import write_pictures
from benchmarks.training_ways import Settings

SAMPLE_S = 1.0
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
WAYS = ("train", "trainer", "trainer-tuned", "loop", "train-bf16", "train-two", "trainer-two")
TEXTS = {
    "train": "jobs.train, 1 worker",
    "trainer": "Trainer alone",
    "trainer-tuned": "Trainer alone, malloc tuned",
    "loop": "plain loop",
    "train-bf16": "jobs.train, 1 worker, bf16",
    "train-two": "jobs.train, 2 workers",
    "trainer-two": "Trainer alone under torchrun, 2 processes",
}
PAIRS = (
    ("train", "trainer"), ("train", "trainer-tuned"), ("train", "loop"), ("train-bf16", "train"), ("train-two", "trainer-two"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Measure jobs.train against transformers.Trainer alone and a plain loop, and write a Markdown table."""

    model: str = "swin-tiny"
    """Architecture by name, with random weights of its published size."""
    images: int = 24
    """Pictures in an epoch: JPEGs, half 1 MP and half 3 MP."""
    epochs: int = 3
    """Epochs of each run; the first is not counted."""
    batch_size: int = 8
    """Pictures per step."""
    gradient_accumulation: int = 1
    """Steps per update."""
    cache_mb: int = 0
    """Memory for decoded pictures; 0: every picture is decoded in every epoch, as with more pictures than fit."""
    repeats: int = 5
    """Interleaved rounds."""
    ways: tuple[str, ...] = WAYS
    """Which ways to measure."""
    out: str = "benchmarks/results"
    """Folder for the table."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One run's steady state: CPU- and wall seconds a picture, and the CPU-seconds a picture of all other processes."""

    cpu_s: float
    wall_s: float
    others: float

    @property
    def tree_s(self) -> float:
        """CPU-seconds a picture of all processes together."""
        return self.cpu_s + self.others


def settings_of(flags: Flags, data: str, precision: str) -> Settings:
    """What all ways have in common."""
    return Settings(
        data=data, model=flags.model, epochs=flags.epochs, batch_size=flags.batch_size, precision=precision,
        gradient_accumulation=flags.gradient_accumulation, learning_rate=5e-5, cache_mb=flags.cache_mb,
    )  # fmt: skip


def measure(way: str, flags: Flags, folders: dict[str, str], log: str) -> Speed:
    """Run one way to its end in a process of its own."""
    from detector.training.finetune import KEEP_MEMORY

    precision = "bf16" if way.endswith("bf16") else "fp32"
    with tempfile.TemporaryDirectory(dir=folders["work"]) as fresh:
        if way.startswith("train-") or way == "train":
            workers = 2 if way == "train-two" else 1
            others = run_watched(train_command(flags, folders["with validation"], precision, fresh, workers), ONE_THREAD, log)
            with open(f"{fresh}/out/history.csv", encoding="utf-8", newline="") as file:
                rows = [
                    {"images": flags.images, "wall_s": float(row["train_seconds"]), "cpu_s": float(row["train_cpu_seconds"])}
                    for row in csv.DictReader(file)
                ]
        else:
            with open(f"{fresh}/settings.json", "w", encoding="utf-8") as file:
                json.dump(asdict(settings_of(flags, folders["training"], precision)), file)
            kind, _, how = way.partition("-")
            env = ONE_THREAD | KEEP_MEMORY if how == "tuned" else ONE_THREAD
            launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"] if how == "two" else []
            command = [sys.executable, *launch, "-m", "benchmarks.training_ways", kind]
            command += [f"{fresh}/settings.json", f"{fresh}/rows.json"]
            others = run_watched(command, env, log)
            with open(f"{fresh}/rows.json", encoding="utf-8") as file:
                rows = json.load(file)
    images = sum(row["images"] for row in rows[1:])
    cpu, wall = (sum(row[name] for row in rows[1:]) / images for name in ("cpu_s", "wall_s"))
    return Speed(cpu_s=cpu, wall_s=wall, others=others * wall)


def train_command(flags: Flags, data: str, precision: str, fresh: str, workers: int) -> list[str]:
    """jobs.train as a user types it; ``--validation-fraction`` holds out exactly one picture of each class."""
    options = {
        "data": data, "model": f"scratch:{flags.model}", "out": f"{fresh}/out", "workers": workers, "precision": precision,
        "epochs": flags.epochs, "batch-size": flags.batch_size // workers, "gradient-accumulation": flags.gradient_accumulation,
        "cache-mb": flags.cache_mb, "validation-fraction": 2 / (flags.images + 2),
    }  # fmt: skip
    return [
        sys.executable,
        "-m",
        "jobs.train",
        *(str(word) for name, value in options.items() for word in (f"--{name}", value)),
    ]


def run_watched(command: list[str], env: dict[str, str], log: str) -> float:
    """Run to the end; CPU-seconds a second that the rest of the tree took while the process that trains was at work."""
    samples: list[dict[int, float]] = []
    with open(log, "ab") as output:
        process = psutil.Popen(command, stdout=output, stderr=output, env={**os.environ, **env})
        before, last = _cpu_by_process(process), time.monotonic()
        while process.poll() is None:
            time.sleep(SAMPLE_S)
            used, now = _cpu_by_process(process), time.monotonic()
            samples.append({pid: (used[pid] - before[pid]) / (now - last) for pid in used if pid in before})
            before, last = used, now
    if process.returncode:
        raise failed(command, process.returncode or 0, log)
    return _others(samples)


def _others(samples: list[dict[int, float]]) -> float:
    """Median share of a core that all but the busiest process took, of the samples in which that one had half a core."""
    totals: dict[int, float] = {}
    for sample in samples:
        for pid, share in sample.items():
            totals[pid] = totals.get(pid, 0.0) + share
    busiest = max(totals, key=lambda pid: totals[pid])
    busy = [sample for sample in samples if sample.get(busiest, 0.0) > 0.5]
    return statistics.median([sum(sample.values()) - sample[busiest] for sample in busy] or [0.0])


def _cpu_by_process(process: psutil.Popen) -> dict[int, float]:
    used = {}
    with contextlib.suppress(psutil.Error):  # the tree is going down
        for member in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                times = member.cpu_times()
                used[member.pid] = times.user + times.system
    return used


def main(flags: Flags) -> None:
    """Measure and write."""
    with tempfile.TemporaryDirectory() as work:
        folders = {"work": work}
        for name, extra in (("training", 0), ("with validation", 1)):
            folders[name] = f"{work}/{name}"
            for label in ("AI", "Real"):
                write_pictures(f"{folders[name]}/train/{label}", flags.images // 2 + extra)
        speeds: dict[str, list[Speed]] = {way: [] for way in flags.ways}
        for repeat in range(flags.repeats):
            for way in flags.ways:
                found = measure(way, flags, folders, f"{work}/log")
                speeds[way].append(found)
                print(
                    f"round {repeat + 1} {way}: {found.cpu_s:.3f} CPU-s and {found.wall_s:.3f} s a picture, "
                    f"others {found.others:.3f}, load {os.getloadavg()[0]:.1f}",
                    file=sys.stderr,
                )
    print(save(table(flags, speeds), flags.out, "training"))


def ratios(speeds: dict[str, list[Speed]], way: str, other: str, what: str) -> list[float]:
    """How many times the other's cost a picture is this way's, round by round: above 1 this way is the faster one."""
    return [getattr(theirs, what) / getattr(ours, what) for ours, theirs in zip(speeds[way], speeds[other], strict=True)]


def table(flags: Flags, speeds: dict[str, list[Speed]]) -> str:
    """The results as Markdown."""
    recipe = (
        f"batch {flags.batch_size}, {flags.gradient_accumulation} steps an update; "
        f"{flags.epochs} epochs of {flags.images} pictures, the first not counted"
    )
    lines = [
        *heading("Training against the alternatives", "benchmarks.training"),
        f"{flags.model} with random weights, fp32 where nothing else is said; JPEGs, half 1 MP and half 3 MP;",
        f"`--cache-mb {flags.cache_mb}`; {recipe}.",
        f"{flags.repeats} interleaved rounds; median (range).",
        "",
        "| way | CPU-ms a picture, all processes | of these, other than the first that trains | wall-ms | images/s |",
        "| --- | --- | --- | --- | --- |",
    ]
    for way in flags.ways:
        tree, others = [1000 * each.tree_s for each in speeds[way]], [1000 * each.others for each in speeds[way]]
        wall, rate = [1000 * each.wall_s for each in speeds[way]], [1 / each.wall_s for each in speeds[way]]
        lines.append(f"| {TEXTS[way]} | {summary(tree)} | {summary(others)} | {summary(wall)} | {summary(rate)} |")
    lines += [
        "",
        "| throughput, 1 = equally fast | CPU-seconds of all processes | of the process that trains | wall time |",
        "| --- | --- | --- | --- |",
    ]
    for way, other in PAIRS:
        if way in speeds and other in speeds:
            alone = "–" if way == "train-two" else summary(ratios(speeds, way, other, "cpu_s"))
            tree, wall = (summary(ratios(speeds, way, other, what)) for what in ("tree_s", "wall_s"))
            lines.append(f"| {TEXTS[way]} ÷ {TEXTS[other]} | {tree} | {alone} | {wall} |")
    lines += [
        "",
        "Trainer alone and loop: the same model, pictures, decoding, augmentation, batch, optimizer and precision, without",
        "Ray, evaluations, checkpoints and progress. jobs.train has its workers on a CPU keep freed memory; the others do so",
        "only where it says *malloc tuned*, and has a Swin's attention computed in plain steps while training, where theirs is",
        "torch's fused function. Two processes have half the batch each. Other than the first that trains: the driver, Ray's",
        "services or torchrun, and the second process.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(tyro.cli(Flags))
