"""The stages in scoring processes of this machine: the local engine, and what one Ray actor runs.

A process that dies costs nothing but time; see :mod:`detector.scoring.isolation` for what becomes of its block.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from multiprocessing import connection
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from detector.cluster import usable_cpus
from detector.errors import JobError, UsageError
from detector.models.devices import num_local_gpus
from detector.progress import log
from detector.scoring.isolation import Block, after_death, ended_from_outside
from detector.scoring.rows import MODEL_FAILED, SUMMARY_SCHEMA
from detector.scoring.worker import Worker

if TYPE_CHECKING:
    from detector.scoring.stages import ScorePlan

_STOP_WAIT_S = 8.0  # SIGTERM promises an exit within 10 s
_REAP_WAIT_S = 5.0
_MAX_FAILED_STARTS, _MAX_KILLED_STARTS = 2, 10  # in a row; what kills from outside often stops again
_MAX_KILLED_ROWS = 3  # rows in a row that were given up because their processes were killed: it is not the pictures
_NO_MEMORY = "is there enough memory? What is committed is kept, run the same command again"


def score_blocks(
    plan: "ScorePlan", blocks: Iterable[pa.Table], *, num_workers: int | None, on_rows: Callable[[int], None]
) -> None:
    """Score and commit every block of the listing, one process per core (or GPU); returns when all are committed.

    Raises:
        JobError: workers cannot start, or the output cannot be written.
        UsageError: the checkpoint cannot be loaded.
        StopRequested: SIGTERM; the workers have committed what they had finished.
    """
    todo = list(blocks)
    most = num_workers or (max(1, num_local_gpus()) if plan.settings.is_cuda else usable_cpus())
    pool = Pool(plan, size=min(most, len(todo)), on_rows=on_rows)
    try:
        pool.run(todo)
    finally:
        pool.stop()


class SupervisedScorer:
    """:class:`detector.scoring.stages.BlockScorer` in a process of its own, which may die: what a CPU actor of Ray runs.

    Ray tells a crash from a lost node no better than by retrying for ever; a parent process sees how its child ended.
    """

    def __init__(self, plan: "ScorePlan") -> None:
        self._pool = Pool(plan, size=1, on_rows=lambda _rows: None)

    def __call__(self, files: pa.Table) -> pa.Table:
        """Score and commit one block of the listing; one summary row for each part that it became.

        Raises:
            JobError: the process cannot start, or the output cannot be written.
            UsageError: the checkpoint cannot be loaded.
        """
        return pa.Table.from_pylist(self._pool.run([files]), schema=SUMMARY_SCHEMA)


class Pool:
    """Scoring processes that are given blocks until all are committed. They stay for the next :meth:`run`."""

    def __init__(self, plan: "ScorePlan", *, size: int, on_rows: Callable[[int], None]) -> None:
        self._plan, self._on_rows = plan, on_rows
        self._todo: deque[Block] = deque()
        self._summaries: list[dict[str, Any]] = []
        self._failed_starts = self._killed_starts = self._killed_rows = self._num_started = 0
        self._workers = [self._start() for _ in range(size)]

    def run(self, blocks: Iterable[pa.Table]) -> list[dict[str, Any]]:
        """Score and commit blocks; the summary rows of the parts.

        Raises:
            JobError, UsageError: as :func:`score_blocks`.
        """
        self._todo.extend(Block(files=block) for block in blocks)
        self._summaries = []
        for worker in self._workers:
            if worker.ready:
                self._give(worker)
        while self._todo or any(worker.block for worker in self._workers):
            waitables = {worker.pipe: worker for worker in self._workers}
            for pipe in connection.wait(list(waitables)):
                worker = waitables[pipe]  # type: ignore[index]
                try:
                    self._handle(worker, worker.pipe.recv())
                except (EOFError, ConnectionError):
                    self._replace(worker)
        return self._summaries

    def _start(self) -> Worker:
        """The next worker; each sees one of the GPUs, in turn."""
        self._num_started += 1
        gpus = num_local_gpus() if self._plan.settings.is_cuda else 0
        seen = {"CUDA_VISIBLE_DEVICES": str((self._num_started - 1) % gpus)} if gpus > 1 else {}
        return Worker(self._plan, environment=seen)

    def _handle(self, worker: Worker, message: tuple[str, Any]) -> None:
        kind, value = message
        if kind == "rows":
            worker.num_done += value
            self._on_rows(value)
        elif kind == "usage":
            raise UsageError(value)
        elif kind == "failed":
            raise JobError(f"score: {value}; what is committed is kept, run the same command again")
        else:  # "ready" or "done"
            if kind == "done":
                self._summaries += value
                self._killed_rows = 0
            worker.block, worker.ready = None, True
            self._failed_starts = self._killed_starts = 0
            self._give(worker)

    def _give(self, worker: Worker) -> None:
        if self._todo:
            worker.give(self._todo.popleft())

    def _replace(self, worker: Worker) -> None:
        exit_code = worker.wait(_REAP_WAIT_S)
        log(f"a scoring process ended with {exit_code}; its block is given to a new one")
        if not worker.ready:
            self._count_failed_start(ended_from_outside(exit_code))
        self._workers.remove(worker)
        worker.end(0)
        if worker.block is not None:
            self._retry(worker.block, num_done=worker.num_done, exit_code=exit_code)
        self._workers.append(self._start())
        for idle in self._workers:
            if idle.ready and idle.block is None:
                self._give(idle)

    def _count_failed_start(self, killed: bool) -> None:
        self._failed_starts += not killed
        self._killed_starts += killed
        if self._failed_starts > _MAX_FAILED_STARTS or self._killed_starts > _MAX_KILLED_STARTS:
            raise JobError(f"score: scoring processes end while they start; {_NO_MEMORY}")

    def _retry(self, block: Block, *, num_done: int, exit_code: int | None) -> None:
        size = self._plan.settings.batch_size
        verdict = after_death(block, num_done=num_done, batch_size=size, exit_code=exit_code)
        self._on_rows(-num_done)
        self._todo.extendleft(reversed(verdict.again))
        if verdict.given_up is not None:
            self._killed_rows += ended_from_outside(exit_code)
            if self._killed_rows >= _MAX_KILLED_ROWS:
                raise JobError(f"score: scoring processes are killed at every picture; {_NO_MEMORY}")
            self._give_up(verdict.given_up)

    def _give_up(self, files: pa.Table) -> None:
        """Commit the rows that crashed every process that scored them."""
        from detector.scoring.stages import commit_failed

        text = "scoring this picture ended its process twice"
        summary = commit_failed(files, error=MODEL_FAILED, message=text, plan=self._plan)
        self._summaries += summary.to_pylist()
        self._on_rows(files.num_rows)

    def stop(self) -> None:
        """End the workers; one that is in a block commits what it has finished of it first."""
        for worker in self._workers:
            worker.ask_to_stop()
        deadline = time.monotonic() + _STOP_WAIT_S
        for worker in self._workers:
            worker.end(max(0.0, deadline - time.monotonic()))
