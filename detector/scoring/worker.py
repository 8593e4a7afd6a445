"""A scoring process and the handle on it: started, given one block at a time, listened to.

Its own end is ``python -m detector.scoring.worker FD``, no command for people. A plain child instead of multiprocessing's: that
would import the caller's main module again, which inside a Ray worker is Ray.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import Pipe, connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from detector.errors import JobError, UsageError
from detector.scoring.isolation import Block
from detector.scoring.lean import UNNEEDED, lean_start

if TYPE_CHECKING:
    from detector.scoring.stages import BlockScorer, ScorePlan

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


def main(pipe: connection.Connection, again: int | None = None) -> None:
    """The process's life: load the model, score the blocks that come, until the pipe closes or SIGTERM.

    ``again``: the file of :func:`_start_again`, if this process has tried before.
    """
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopping.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver decides
    try:
        plan, parent = pipe.recv() if again is None else _received(again)
        # On GPUs nothing is hidden: torch has kernels for them that are written in triton.
        hidden = () if again is not None or plan.settings.is_cuda else UNNEEDED

        def should_stop() -> bool:
            return bool(stopping) or os.getppid() != parent

        try:
            scorer = _load(plan, pipe, should_stop, hidden)
        except (UsageError, ImportError):
            if hidden and not should_stop():
                _start_again(pipe, (plan, parent))
            raise
        _serve(scorer, pipe, should_stop)
    except UsageError as error:
        _tell(pipe, "usage", str(error))
    except (EOFError, ConnectionError):
        return
    except Exception as error:
        plain = isinstance(error, OSError | JobError)
        _tell(pipe, "failed", str(error) if plain else f"{type(error).__name__}: {error}")


def _load(
    plan: "ScorePlan", pipe: connection.Connection, should_stop: Callable[[], bool], hidden: tuple[str, ...]
) -> "BlockScorer":
    with lean_start(hidden):
        from detector.scoring.stages import BlockScorer

        return BlockScorer(plan, should_stop=should_stop, on_rows=lambda rows: pipe.send(("rows", rows)))


def _start_again(pipe: connection.Connection, received: object) -> None:
    """Become a new process that hides no package: this checkpoint, or another release of a library, may need one of them.

    What hiding led to cannot be undone in this process, which may have half a library. The new one has the same pid and pipe,
    and a file with what came through the pipe. Returns where there is no room for that file.
    """
    with contextlib.suppress(OSError), tempfile.TemporaryFile() as file:
        pickle.dump(received, file)
        file.flush()
        os.set_inheritable(file.fileno(), True)
        numbers = [str(pipe.fileno()), str(file.fileno())]
        os.execv(sys.executable, [sys.executable, "-P", "-m", _MODULE, *numbers])  # noqa: S606  itself


def _received(number: int) -> Any:
    with os.fdopen(number, "rb") as file:
        file.seek(0)
        return pickle.load(file)  # noqa: S301  written by this process a moment ago


def _serve(scorer: "BlockScorer", pipe: connection.Connection, should_stop: Callable[[], bool]) -> None:
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
    main(connection.Connection(int(sys.argv[1])), *map(int, sys.argv[2:]))
