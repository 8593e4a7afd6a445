"""What becomes of a block whose scoring process died: a pure decision, the same for both engines.

A process that *crashed* (a signal of its own making, an exit nobody asked for) was perhaps killed by a picture of the batch
that it was scoring: each of those rows is tried once more, alone, and what crashes its process again is ``model_failed``. So no
picture is tried more than twice. A process that was *ended* from outside (SIGKILL, or SIGTERM, on which it exits with 0: a
person, the kernel's memory killer, a node that goes) says little about a picture, since batches have one size and decoding has
a process of its own: its block is tried again as it is, a few times.
"""

import signal
from dataclasses import dataclass, field, replace

import pyarrow as pa

from detector.errors import JobError

MAX_ENDED = 3  # a process killed that often at one block is taken for a crash
_FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})


def ended_from_outside(exit_code: int | None) -> bool:
    """Whether an exit code (negative for a signal, None if unknown) is that of a process that did not end by its own fault."""
    return exit_code in {None, 0} or -(exit_code or 0) in _FROM_OUTSIDE


@dataclass(frozen=True, kw_only=True)
class Block:
    """Rows of the listing that one process scores and commits together.

    Attributes:
        files: the rows.
        suspect: one row that was in a batch that crashed: it is on its last try.
        ended: how often a process was ended from outside while it had this block.
    """

    files: pa.Table
    suspect: bool = False
    ended: int = 0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The blocks to try again, in the listing's order, and the rows that are given up."""

    again: list[Block] = field(default_factory=list)
    given_up: pa.Table | None = None


def after_death(block: Block, *, num_done: int, batch_size: int, exit_code: int | None) -> Verdict:
    """Decide on a block of which ``num_done`` rows were scored (and none committed) when its process died.

    Args:
        block: what the process had.
        num_done: its rows that were scored.
        batch_size: rows of one model batch: those in flight come right after ``num_done``.
        exit_code: as :class:`subprocess.Popen` gives it: negative for a signal; None if it is not known.

    Raises:
        JobError: processes die again and again while they write the result, which is no picture's fault.
    """
    ended = block.ended + 1
    committing = num_done >= block.files.num_rows
    if ended < MAX_ENDED and (committing or ended_from_outside(exit_code)):
        return Verdict(again=[replace(block, ended=ended)])
    if committing:
        raise JobError(f"score: scoring processes ended {ended} times while they wrote a block; is there enough memory?")
    if block.suspect:
        return Verdict(given_up=block.files)
    return Verdict(again=_taken_apart(block.files, num_done, min(num_done + batch_size, block.files.num_rows)))


def _taken_apart(files: pa.Table, first: int, last: int) -> list[Block]:
    """The rows before the batch, every row of the batch alone, and the rows after it."""
    alone = [Block(files=files.slice(row, 1), suspect=True) for row in range(first, last)]
    around = [[Block(files=part)] if part.num_rows else [] for part in (files.slice(0, first), files.slice(last))]
    return [*around[0], *alone, *around[1]]
