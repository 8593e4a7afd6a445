"""Run a command as a whole process tree and take its CPU-seconds, wall time and peak memory."""

import contextlib
import ctypes
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

POLL_S, SLOW_POLL_S = 0.02, 0.25
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

    CPU time is the kernel's own count for a control group that the command and all its descendants are in (Linux, with the
    right to make one). Elsewhere it is summed over the processes as they were last seen, a quarter of a second before they
    ended at most. Sums over children that were waited for would leave out Ray's actors: nobody waits for those.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what the command leaves behind is ours to reap
    with open(log or os.devnull, "ab") as output, _cpu_group() as group:
        begun = looked = time.monotonic()
        enter = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', os.path.join(group, "cgroup.procs")] if group else []
        process = subprocess.Popen([*enter, *command], stdout=output, stderr=output, env={**os.environ, **(env or {})})
        peak, seen = 0, dict[int, float]()
        while process.poll() is None:
            if time.monotonic() - looked >= LOOK_S:
                peak, looked = max(peak, _tree_pss(process.pid)), time.monotonic()
            if group:
                time.sleep(POLL_S)
            else:
                _note_cpu(process.pid, seen)
                time.sleep(SLOW_POLL_S)
        wall = time.monotonic() - begun
        _wait_for_the_rest()
        cpu = _group_cpu_s(group) if group else sum(seen.values())
    if process.returncode:
        raise failed(command, process.returncode, log)
    return Cost(wall_s=wall, cpu_s=cpu, peak_pss_bytes=peak)


def failed(command: list[str], exit_code: int, log: str | None) -> RuntimeError:
    """What to raise for a measured command that failed: with the end of what it printed, since the log goes with its folder."""
    said = ""
    if log:
        with open(log, encoding="utf-8", errors="replace") as file:
            said = file.read()[-2000:]
    return RuntimeError(f"{' '.join(command)} ended with {exit_code}\n{said}")


@contextlib.contextmanager
def _cpu_group() -> Iterator[str | None]:
    """A fresh control group that counts CPU time, or None where none can be made."""
    for base in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/cpuacct"):
        path = os.path.join(base, f"benchmark-{os.getpid()}")
        if not os.path.exists(os.path.join(base, "cgroup.procs")):
            continue
        try:
            os.mkdir(path)
            _group_cpu_s(path)
        except (OSError, KeyError):
            continue
        try:
            yield path
        finally:
            with contextlib.suppress(OSError):
                os.rmdir(path)
        return
    yield None


def _group_cpu_s(path: str) -> float:
    """Seconds of CPU time that a control group has used, version 2 or 1."""
    stat, old = os.path.join(path, "cpu.stat"), os.path.join(path, "cpuacct.usage")
    if os.path.exists(old):
        with open(old, encoding="ascii") as file:
            return int(file.read()) / 1e9
    with open(stat, encoding="ascii") as file:
        return int(dict(line.split() for line in file)["usage_usec"]) / 1e6


def _note_cpu(pid: int, seen: dict[int, float]) -> None:
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(pid)
        for member in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                times = member.cpu_times()
                seen[member.pid] = times.user + times.system


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
    flags = sys.argv[1:]
    if "--out" in flags:  # where the table lies says nothing about its figures
        del flags[(at := flags.index("--out")) : at + 2]
    command = shlex.join(["python", "-m", module, *flags])
    return [f"# {title}", "", f"{machine()}.", f"Command: `{command}`; load average at the end {load:.1f}.", ""]


def save(text: str, folder: str, theme: str) -> str:
    """Write a table as ``FOLDER/THEME-TIME.md``, beside the earlier ones; the path."""
    from detector.runs import now_utc

    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, f"{theme}-{now_utc():%Y-%m-%d-%H%M%S}.md")
    with open(path, "x", encoding="utf-8") as file:
        file.write(text)
    return path
