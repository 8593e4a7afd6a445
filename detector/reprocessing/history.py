"""``OUT/history/``: one JSON file for each run of jobs.reprocess, never changed afterwards.

A file is called RUN.json, or RUN.SLOT.json for a scheduled slot. It is written after changes.csv, so a run that was killed on
its way has no complete record and its slot is open still.
"""

import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from detector import runs
from detector.errors import UsageError
from detector.scoring.publish import write_json
from detector.storage import Store

HISTORY = "history"
_SLOT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,99}")
_DONE = {"complete", "too_many_errors"}  # everything was listed, scored, published and compared


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """One call of jobs.reprocess: its id, when it started, and the slot that it fills, if any."""

    run: str
    started: datetime
    config: str
    slot: str | None


def check_slot(slot: str | None) -> None:
    """Refuse a slot id that cannot be part of a file name.

    Raises:
        UsageError: it is empty, longer than 100 characters, or has other characters than letters, digits and ``._:+-``.
    """
    if slot is not None and not _SLOT.fullmatch(slot):
        raise UsageError(f"--slot {slot!r}: use up to 100 letters, digits and . _ : + - (for example 2026-01-31T03)")


def is_done(store: Store, slot: str) -> bool:
    """Whether a run for this slot has completed; only the records that carry the slot in their name are opened."""
    records = [name for name in store.names(HISTORY) if name.partition(".")[2] == f"{slot}.json"]
    return any(_status(store, f"{HISTORY}/{name}") in _DONE for name in records)


def _status(store: Store, name: str) -> str:
    try:
        return str(json.loads(store.read(name))["status"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unreadable"


def append(store: Store, ticket: Ticket, *, collection: str, status: str, summary: dict[str, Any], **more: Any) -> None:
    """Write this run's record.

    Raises:
        OSError: the output cannot be written.
    """
    record = runs.run_record(
        job="reprocess", run=ticket.run, status=status, started=ticket.started, summary=summary,
        collection=collection, config=ticket.config, slot=ticket.slot, **more,
    )  # fmt: skip
    suffix = f".{ticket.slot}" if ticket.slot else ""
    write_json(store, f"{HISTORY}/{ticket.run}{suffix}.json", record)
