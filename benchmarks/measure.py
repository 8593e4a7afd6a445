"""Run a command as a whole process tree and take its CPU-seconds, wall time and peak memory."""

import contextlib
import ctypes
import os
import resource
import statistics
import subprocess
import time
from dataclasses import dataclass

import psutil

POLL_S = 0.02
LOOK_S = 1.0  # reading the memory of a large process takes milliseconds, which the measured run would pay for
_LAST_WAIT_S = 15.0
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one run of a command took: of the command and of everything it started."""

    wall_s: float
    cpu_s: float
    peak_pss_bytes: int


def run(command: list[str], *, env: dict[str, str] | None = None, log: str | None = None) -> Cost:
    """Run to the end; a run that fails is an error, never a figure.

    This process adopts what the command leaves behind (Linux), so that the kernel's own sum over ended children is the
    CPU time of the whole tree, Ray's daemons included.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = _children_cpu_s()
    with open(log or os.devnull, "ab") as output:
        begun = looked = time.monotonic()
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **(env or {})})
        peak = 0
        while process.poll() is None:
            if time.monotonic() - looked >= LOOK_S:
                peak, looked = max(peak, _tree_pss(process.pid)), time.monotonic()
            time.sleep(POLL_S)
        wall = time.monotonic() - begun
    _wait_for_the_rest()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}; see {log}")
    return Cost(wall_s=wall, cpu_s=_children_cpu_s() - before, peak_pss_bytes=peak)


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _wait_for_the_rest() -> None:
    """Reap adopted processes; those that do not end by themselves are ended."""
    deadline = time.monotonic() + _LAST_WAIT_S
    while children := psutil.Process().children(recursive=True):
        if time.monotonic() > deadline:
            for child in children:
                with contextlib.suppress(psutil.Error):
                    child.kill()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(POLL_S)


def _tree_pss(pid: int) -> int:
    """The tree's proportional memory now, in bytes."""
    total = 0
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(pid)
        for member in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.Error, OSError, StopIteration):
                total += _pss(member.pid)
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


def heading(title: str, module: str) -> list[str]:
    """The first lines of every table: what, on what, how."""
    load = os.getloadavg()[0]
    return [f"# {title}", "", f"{machine()}.", f"Command: `python -m {module}`; load average at the end {load:.1f}.", ""]


def save(text: str, folder: str, theme: str) -> str:
    """Write a table as ``FOLDER/THEME-DATE.md``; the path."""
    from detector.runs import now_utc

    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, f"{theme}-{now_utc():%Y-%m-%d}.md")
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path
