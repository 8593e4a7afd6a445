"""What the engine itself takes, without decoding and without a model: ``python -m benchmarks.capacity``.

Rows a second from listing to published files, as the slope between two folder sizes; a second run over the same folder;
and the plan of a million files. Files lie in memory (/dev/shm) where there is one, so that no disk is measured.
"""

import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass

import tyro

from benchmarks.measure import Cost, heading, run, save, summary
from benchmarks.run import save_model

HOOKS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "hooks")
NO_MODEL = {"PYTHONPATH": os.pathsep.join(filter(None, (HOOKS, os.environ.get("PYTHONPATH")))), "BENCHMARK_NO_MODEL": "1"}


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Measure the engines' capacity and write a Markdown table."""

    small: int = 50_000
    """Files in the small folder."""
    large: int = 200_000
    """Files in the large folder."""
    plan: int = 1_000_000
    """Files of the plan; 0 leaves it out."""
    repeats: int = 5
    """Interleaved rounds."""
    engines: tuple[str, ...] = ("local", "ray")
    """Which engines to measure."""
    out: str = "benchmarks/results"
    """Folder for the table."""


def write_files(folder: str, count: int) -> str:
    """Files of one byte, 10,000 to a folder."""
    for index in range(count):
        if index % 10_000 == 0:
            where = os.path.join(folder, f"{index // 10_000:03}")
            os.makedirs(where)
        with open(os.path.join(where, f"picture-{index:07}.jpg"), "wb") as file:
            file.write(b"x")
    return folder


def command(folder: str, model: str, out: str, *flags: str) -> list[str]:
    """A scoring job as a user types it."""
    return [sys.executable, "-m", "jobs.score", "--images", folder, "--model", model, "--out", out, *flags]


def measure(flags: Flags, work: str) -> dict[str, list[Cost]]:
    """All runs, in turn; the keys are ``engine count`` and ``again engine count``."""
    model = save_model(f"{work}/model")
    folders = {count: write_files(f"{work}/{count}/pictures", count) for count in (flags.small, flags.large)}
    costs: dict[str, list[Cost]] = {}
    for repeat in range(flags.repeats):
        for engine in flags.engines:
            for count, folder in folders.items():
                out = tempfile.mkdtemp(dir=work)
                for kind in ("", "again "):
                    cost = run(command(folder, model, out, "--engine", engine), env=NO_MODEL, log=f"{work}/log")
                    costs.setdefault(f"{kind}{engine} {count}", []).append(cost)
                    print(
                        f"round {repeat + 1} {kind}{engine} {count}: {cost.cpu_s:.1f} CPU-s, {cost.wall_s:.1f} s",
                        file=sys.stderr,
                    )
                check(out, count)
    if flags.plan:
        folder = write_files(f"{work}/plan/pictures", flags.plan)
        costs["plan"] = [run(command(folder, model, f"{work}/none", "--dry-run"), log=f"{work}/log") for _ in range(3)]
    return costs


def check(out: str, count: int) -> None:
    """A fast run that lost a row is no figure."""
    with open(os.path.join(out, "run.json"), encoding="utf-8") as file:
        record = json.load(file)
    assert record["status"] == "complete", record["status"]
    assert record["summary"]["scored"] == record["summary"]["reused"] == count, record["summary"]


def table(flags: Flags, costs: dict[str, list[Cost]]) -> str:
    """The results as Markdown."""
    lines = [
        *heading("The engines alone, without decoding and without a model", "benchmarks.capacity"),
        f"{flags.small:,} and {flags.large:,} files of one byte in memory; {flags.repeats} interleaved rounds; median (range).",
        "",
        "| engine | rows a second (slope) | CPU-µs a row (slope) | fixed wall s | fixed CPU-s | second run, s | PSS, MB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    more = flags.large - flags.small
    for engine in flags.engines:
        pairs = list(zip(costs[f"{engine} {flags.large}"], costs[f"{engine} {flags.small}"], strict=True))
        rate = [more / (big.wall_s - little.wall_s) for big, little in pairs]
        cpu = [1e6 * (big.cpu_s - little.cpu_s) / more for big, little in pairs]
        wall = [little.wall_s - flags.small / r for (_, little), r in zip(pairs, rate, strict=True)]
        fixed = [little.cpu_s - flags.small * c / 1e6 for (_, little), c in zip(pairs, cpu, strict=True)]
        again = [cost.wall_s for cost in costs[f"again {engine} {flags.large}"]]
        peak = statistics.median(big.peak_pss_bytes / 1e6 for big, _ in pairs)
        middle = f"{statistics.median(rate):,.0f} ({min(rate):,.0f}–{max(rate):,.0f})"
        lines.append(
            f"| {engine} | {middle} | {summary(cpu)} | {summary(wall)} | {summary(fixed)} | {summary(again)} | {peak:.0f} |"
        )
    lines += ["", "Where a rate's range goes below zero, start-up differed by more between two runs than their sizes do."]
    for engine in flags.engines:
        again = [cost.wall_s for cost in costs[f"again {engine} {flags.small}"]]
        lines += ["", f"A second run over {flags.small:,} unchanged files, {engine}: {summary(again)} s in all."]
    if "plan" in costs:
        wall, peak = [cost.wall_s for cost in costs["plan"]], max(cost.peak_pss_bytes for cost in costs["plan"]) / 1e6
        lines += ["", f"The plan of {flags.plan:,} files (`--dry-run`): {summary(wall)} s, {peak:.0f} MB at most."]
    return "\n".join(lines) + "\n"


def main(flags: Flags) -> None:
    """Measure and write."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=base) as work:
        text = table(flags, measure(flags, work))
    print(save(text, flags.out, "capacity"))


if __name__ == "__main__":
    main(tyro.cli(Flags))
