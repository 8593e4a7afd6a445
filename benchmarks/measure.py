"""Run a command as a whole process tree and take its CPU-seconds, wall time and peak memory."""

import os
import statistics
import subprocess
import time
from dataclasses import dataclass

import psutil

POLL_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one run of a command took: of the command and of everything it started."""

    wall_s: float
    cpu_s: float
    peak_pss_bytes: int


def run(command: list[str], *, env: dict[str, str] | None = None, log: str | None = None) -> Cost:
    """Run to the end; a run that fails is an error, never a figure.

    CPU time is summed over all processes seen in the tree, those that ended included: children that were waited for count in
    their parents' ``children_*`` times, the rest as they were last seen.
    """
    with open(log or os.devnull, "ab") as output:
        begun = time.monotonic()
        process = psutil.Popen(command, stdout=output, stderr=output, env={**os.environ, **(env or {})})
        seen: dict[int, float] = {}
        peak = 0
        while process.poll() is None:
            peak = max(peak, _look(process, seen))
            time.sleep(POLL_S)
        wall = time.monotonic() - begun
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}; see {log}")
    return Cost(wall_s=wall, cpu_s=sum(seen.values()), peak_pss_bytes=peak)


def _look(process: psutil.Process, seen: dict[int, float]) -> int:
    """Note every process's own CPU time so far; the tree's proportional memory now."""
    total = 0
    try:
        tree = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0
    for member in tree:
        try:
            times = member.cpu_times()
            seen[member.pid] = times.user + times.system
            total += _pss(member.pid)
        except (psutil.Error, OSError):
            continue
    return total


def _pss(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def summary(values: list[float]) -> str:
    """Median and range, as they stand in a table."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def machine() -> str:
    """One line on where the figures come from."""
    subprocess_out = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    from detector.runs import hardware, versions

    found, hard = versions(), hardware()
    packages = ", ".join(f"{name} {found[name]}" for name in ("python", "torch", "transformers", "ray") if name in found)
    return f"{hard['cpus']} CPUs ({hard['processor']}), {packages}, commit {subprocess_out.stdout.strip() or 'unknown'}"
