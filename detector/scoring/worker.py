"""A scoring process and the handle on it: started, given one block at a time, listened to.

Its own end is ``python -m detector.scoring.worker FD``, no command for people. A plain child instead of multiprocessing's: that
would import the caller's main module again, which inside a Ray worker is Ray.
"""

import contextlib
import os
import signal
import subprocess
import sys
from multiprocessing import Pipe, connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from detector.errors import JobError, UsageError
from detector.scoring.isolation import Block
from detector.scoring.lean import UNNEEDED, lean_start

if TYPE_CHECKING:
    from detector.scoring.stages import ScorePlan

_MODULE = "detector.scoring.worker"
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
_IDLE_CHECK_S = 0.5
# One process per core with one thread each: processes that each take all cores slow each other four times.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# glibc gives every tensor above 32 MB back to the system as soon as it is freed, and asks for it again in the next layer: page
# faults that took 5 to 10 of 81 CPU-ms a picture in a Swin-tiny. What a huge picture needed is still given back.
_KEEP_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(512 * 2**20)}


class Worker:
    """The handle on one scoring process.

    Attributes:
        pipe: what it says: ``(kind, value)`` with kind ready, rows, done, usage or failed.
        block: what it was given and has not reported as done.
        num_done: how many rows of ``block`` it has scored.
        ready: whether it has loaded its model.
    """

    def __init__(self, plan: "ScorePlan", *, environment: dict[str, str]) -> None:
        self.pipe, theirs = Pipe()
        self.block: Block | None = None
        self.num_done, self.ready = 0, False
        settings = _ONE_THREAD | ({} if plan.settings.is_cuda else _KEEP_MEMORY) | environment
        path = os.pathsep.join(filter(None, (_PACKAGE_ROOT, os.environ.get("PYTHONPATH"))))
        # -P: the working directory may be a folder of strangers' files; no module is to be found there.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, env={**os.environ, **settings, "PYTHONPATH": path},
        )  # fmt: skip
        theirs.close()
        self._send((plan, os.getpid()))

    def give(self, block: Block) -> None:
        """Hand it a block; of one that died meanwhile the closed pipe tells."""
        self.block, self.num_done = block, 0
        self._send(to_ipc(block.files))

    def _send(self, value: object) -> None:
        with contextlib.suppress(OSError):
            self.pipe.send(value)

    def wait(self, timeout_s: float) -> int | None:
        """Its exit code (negative for a signal), or None if it still runs."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def ask_to_stop(self) -> None:
        """Let it commit what it has finished of its block, and end."""
        if self.block is None:
            self.pipe.close()
        self._process.terminate()

    def end(self, timeout_s: float) -> None:
        """Wait for it, then kill it."""
        if self.wait(timeout_s) is None:
            self._process.kill()
            self._process.wait()
        self.pipe.close()


def to_ipc(table: pa.Table) -> bytes:
    """A table as an Arrow stream: a pickled slice would carry the whole table with it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def from_ipc(data: bytes) -> pa.Table:
    """The table of :func:`to_ipc`."""
    return pa.ipc.open_stream(data).read_all()


def main(pipe: connection.Connection) -> None:
    """The process's life: load the model, score the blocks that come, until the pipe closes or SIGTERM."""
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopping.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver decides
    try:
        plan, parent = pipe.recv()
        _serve(plan, pipe, lambda: bool(stopping) or os.getppid() != parent)
    except UsageError as error:
        _tell(pipe, "usage", str(error))
    except (EOFError, ConnectionError):
        return
    except Exception as error:
        plain = isinstance(error, OSError | JobError)
        _tell(pipe, "failed", str(error) if plain else f"{type(error).__name__}: {error}")


def _serve(plan: "ScorePlan", pipe: connection.Connection, should_stop: Any) -> None:
    with lean_start(() if plan.settings.is_cuda else UNNEEDED):  # torch has kernels for GPUs that are written in triton
        from detector.scoring.stages import BlockScorer

        scorer = BlockScorer(plan, should_stop=should_stop, on_rows=lambda rows: pipe.send(("rows", rows)))
    pipe.send(("ready", None))
    while not should_stop():
        if not pipe.poll(_IDLE_CHECK_S):
            continue
        files = from_ipc(pipe.recv())
        try:
            summary = scorer(files)
        except ConnectionError as error:  # of the output or a remote picture: that the caller is gone is noticed by the pipe
            raise JobError(str(error)) from error
        if summary["rows"][0].as_py() == files.num_rows:  # asked to stop, it ends early: the rest is not done
            pipe.send(("done", summary.to_pylist()))
    scorer.close()


def _tell(pipe: connection.Connection, kind: str, text: str) -> None:
    with contextlib.suppress(OSError):
        pipe.send((kind, text))


if __name__ == "__main__":
    main(connection.Connection(int(sys.argv[1])))
