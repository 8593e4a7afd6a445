"""The stages in one process per core, without Ray: for small folders, laptops, and tests without a cluster.

A worker that dies costs nothing but time: its block is given to a new one. A block that kills two workers is cut in halves,
until the row that does it stands alone and becomes ``model_failed``.
"""

import contextlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing import connection
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from detector.cluster import usable_cpus
from detector.errors import JobError, UsageError
from detector.models.devices import num_local_gpus
from detector.progress import log
from detector.scoring.rows import MODEL_FAILED

if TYPE_CHECKING:
    from detector.scoring.stages import ScorePlan

_STOP_WAIT_S = 8.0  # SIGTERM promises an exit within 10 s
_MAX_DEATHS = 2
# One process per core with one thread each: processes that each take all cores slow each other four times.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(kw_only=True)
class _Block:
    files: pa.Table
    deaths: int = 0


@dataclass(kw_only=True)
class _Worker:
    process: Any
    pipe: connection.Connection
    block: _Block | None = None
    ready: bool = field(default=False)


def score_blocks(
    plan: "ScorePlan", blocks: Iterable[pa.Table], *, num_workers: int | None, on_rows: Callable[[int], None]
) -> None:
    """Score and commit every block of the listing; returns when all are committed.

    Raises:
        JobError: workers cannot start, or the output cannot be written.
        UsageError: the checkpoint cannot be loaded.
        StopRequested: SIGTERM; the workers have committed what they had finished.
    """
    todo = deque(_Block(files=block) for block in blocks)
    most = num_workers or (max(1, num_local_gpus()) if plan.settings.is_cuda else usable_cpus())
    pool = _Pool(plan, count=min(most, len(todo)), todo=todo, on_rows=on_rows)
    try:
        pool.run()
    finally:
        pool.stop()


class _Pool:
    def __init__(self, plan: "ScorePlan", *, count: int, todo: deque[_Block], on_rows: Callable[[int], None]) -> None:
        self._plan, self._todo, self._on_rows = plan, todo, on_rows
        self._context = multiprocessing.get_context("spawn")
        self._failed_starts = self._num_started = 0
        self._workers = [self._start() for _ in range(count)]

    def run(self) -> None:
        """Hand out blocks until all are committed."""
        while self._todo or any(worker.block for worker in self._workers):
            waitables = {worker.pipe: worker for worker in self._workers}
            for pipe in connection.wait(list(waitables)):
                worker = waitables[pipe]  # type: ignore[index]
                try:
                    self._handle(worker, worker.pipe.recv())
                except (EOFError, ConnectionError):
                    self._replace(worker)

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(self._plan, theirs, os.getpid()), daemon=True)
        with _environment({**_ONE_THREAD, **self._gpu()}):
            process.start()
        theirs.close()
        return _Worker(process=process, pipe=ours)

    def _gpu(self) -> dict[str, str]:
        """The GPU of the next worker: each sees one, in turn."""
        self._num_started += 1
        gpus = num_local_gpus() if self._plan.settings.is_cuda else 0
        return {"CUDA_VISIBLE_DEVICES": str((self._num_started - 1) % gpus)} if gpus > 1 else {}

    def _handle(self, worker: _Worker, message: tuple[str, Any]) -> None:
        kind, value = message
        if kind == "rows":
            self._on_rows(value)
        elif kind == "usage":
            raise UsageError(value)
        elif kind == "failed":
            raise JobError(f"score: {value}; what is committed is kept, run the same command again")
        else:  # "ready" or "done"
            worker.block, worker.ready, self._failed_starts = None, True, 0
            self._give(worker)

    def _give(self, worker: _Worker) -> None:
        if self._todo:
            worker.block = self._todo.popleft()
            with contextlib.suppress(OSError):  # a worker that died meanwhile is found by its closed pipe
                worker.pipe.send(worker.block.files)

    def _replace(self, worker: _Worker) -> None:
        worker.process.join(5)
        log(f"a scoring process ended with {worker.process.exitcode}; its block is given to a new one")
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts > _MAX_DEATHS:
                raise JobError("score: scoring processes end while they start; is there enough memory?")
        self._workers.remove(worker)
        if worker.block is not None:
            self._requeue(worker.block)
        self._workers.append(self._start())

    def _requeue(self, block: _Block) -> None:
        block.deaths += 1
        count = block.files.num_rows
        if block.deaths < _MAX_DEATHS:
            self._todo.appendleft(block)
        elif count > 1:
            halves = (block.files.slice(0, count // 2), block.files.slice(count // 2))
            self._todo.extendleft(_Block(files=half, deaths=1) for half in halves)
        else:
            self._give_up(block.files)

    def _give_up(self, files: pa.Table) -> None:
        """Commit the one row that ended every process that scored it."""
        from detector.scoring.stages import commit_failed

        text = "scoring this picture ended its process twice"
        commit_failed(files, error=MODEL_FAILED, message=text, plan=self._plan)
        self._on_rows(files.num_rows)

    def stop(self) -> None:
        """End the workers; one that is in a block commits what it has finished of it first."""
        for worker in self._workers:
            if worker.block is None:
                worker.pipe.close()
            if worker.process.is_alive():
                with contextlib.suppress(OSError):
                    os.kill(worker.process.pid, signal.SIGTERM)
        for worker in self._workers:
            worker.process.join(_STOP_WAIT_S / max(1, len(self._workers)))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()


@contextlib.contextmanager
def _environment(wanted: dict[str, str]) -> Iterator[None]:
    """Set variables that a child must see before it imports numpy and torch."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _work(plan: "ScorePlan", pipe: connection.Connection, parent: int) -> None:
    """A worker's life: load the model, score the blocks that come, until the pipe closes or SIGTERM."""
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopping.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver decides

    def should_stop() -> bool:
        return bool(stopping) or os.getppid() != parent

    try:
        from detector.scoring.stages import BlockScorer

        scorer = BlockScorer(plan, should_stop=should_stop, on_rows=lambda rows: pipe.send(("rows", rows)))
        pipe.send(("ready", None))
        while not should_stop():
            if not pipe.poll(0.5):
                continue
            files = pipe.recv()
            if scorer(files)["rows"][0].as_py() == files.num_rows:  # asked to stop, it ends early: the rest is not done
                pipe.send(("done", None))
        scorer.close()
    except UsageError as error:
        _tell(pipe, "usage", str(error))
    except (EOFError, ConnectionError):
        return
    except Exception as error:
        _tell(pipe, "failed", f"{type(error).__name__}: {error}" if not isinstance(error, OSError) else str(error))


def _tell(pipe: connection.Connection, kind: str, text: str) -> None:
    with contextlib.suppress(OSError):
        pipe.send((kind, text))
