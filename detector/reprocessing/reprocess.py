"""Keep collections of predictions up to date: read what is published, score, compare, write changes.csv and the history.

Scoring itself subtracts the ledger, so a run in which nothing changed lists the files and decodes none. Each collection is
held by a lock of its own from the first look to the last record. A failing one does not stop the others.

What was published before is kept aside as ``.reprocess/previous.parquet`` until changes.csv and the history have been
written: a run that is killed in between has its changes reported by the next one. (Killed in the instant after that, they
are reported twice, never not at all.)
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from detector import runs
from detector.cli import EXIT_DONE, EXIT_FAILED, EXIT_LOCKED, EXIT_TOO_MANY_ERRORS, EXIT_USAGE
from detector.errors import JobError, LockedError, UsageError
from detector.progress import log
from detector.reprocessing import history
from detector.reprocessing.changes import KINDS, compare, count_changes, read_state, write_changes
from detector.reprocessing.config_file import Collection, read_collections
from detector.reprocessing.history import Ticket
from detector.scoring import output
from detector.scoring import score as scoring
from detector.scoring.publish import PARQUET
from detector.storage import Store, is_uri, local_path, open_store
from detector.uris import shown

LOCK, KEPT_FOLDER = ".reprocess.lock", ".reprocess"
PREVIOUS = f"{KEPT_FOLDER}/previous.parquet"

# Of several collections' exit codes the job ends with the one that stands last here.
_SEVERITY = (EXIT_DONE, EXIT_TOO_MANY_ERRORS, EXIT_LOCKED, EXIT_USAGE, EXIT_FAILED)
_COUNTS = ("listed", "scored", "failed", "skipped", "reused", "pending", "images_per_second", "model", "run")


def reprocess(config: str, *, slot: str | None = None) -> dict[str, Any]:
    """Bring every collection of a TOML file up to date; the summary, with the worst exit code of them.

    Raises:
        UsageError: the file or the slot is wrong; nothing has been done.
        StopRequested: SIGTERM; what is committed is kept, and the slot stays open.
    """
    history.check_slot(slot)
    collections = read_collections(config)
    ticket = Ticket(run=runs.new_run_id(), started=runs.now_utc(), config=os.path.abspath(config), slot=slot)
    entries = [_guarded(collection, ticket) for collection in collections]
    worst = max(entries, key=lambda entry: _SEVERITY.index(entry["exit_code"]))
    total = {kind: sum(entry.get("changes", {}).get(kind, 0) for entry in entries) for kind in KINDS}
    log(f"reprocess: {len(entries)} collection(s), " + _in_words(total))
    return {
        "status": worst["status"],
        "exit_code": worst["exit_code"],
        "out": entries[0]["out"] if len(entries) == 1 else None,
        "run": ticket.run,
        "slot": slot,
        "changes": total,
        "collections": entries,
    }


def _guarded(collection: Collection, ticket: Ticket) -> dict[str, Any]:
    """One collection's entry in the summary; its failure becomes an exit code and a line on stderr."""
    out = shown(collection.config.out)
    log(f"collection {collection.name}: {out}")
    entry: dict[str, Any] = {"name": collection.name, "out": out}
    try:
        return {**entry, "exit_code": EXIT_DONE, **_update(collection, ticket)}
    except (UsageError, LockedError, JobError, OSError, MemoryError) as error:
        status, code = _outcome(error)
        message = str(error) or type(error).__name__
    except Exception as error:
        if os.environ.get("DETECTOR_TRACEBACK"):
            raise
        status, code = _outcome(error)
        message = f"{type(error).__name__}: {error} (set DETECTOR_TRACEBACK=1 for the traceback)"
    log(f"error: collection {collection.name}: {message[:2000]}")
    return {**entry, "exit_code": code, "status": status, "error": message[:2000]}


def _outcome(error: BaseException) -> tuple[str, int]:
    if isinstance(error, UsageError):
        return "wrong_use", EXIT_USAGE
    if isinstance(error, LockedError):
        return "locked", EXIT_LOCKED
    return ("failed", EXIT_FAILED) if isinstance(error, Exception) else ("stopped", EXIT_FAILED)


def _update(collection: Collection, ticket: Ticket) -> dict[str, Any]:
    config = collection.config
    if config.dry_run:
        return _shown(scoring.score(config))
    existed = is_uri(config.out) or os.path.exists(local_path(config.out))
    store = open_store(config.out)
    try:
        with _held(store, config.out):
            if ticket.slot is not None and history.is_done(store, ticket.slot):
                log(f"collection {collection.name}: slot {ticket.slot} is completed already; nothing to do")
                return {"status": "slot_done"}
            return _recorded(collection, ticket, store)
    except UsageError:
        if not existed:  # a wrong line in the file leaves nothing behind
            _remove_what_was_made(store)
        raise


@contextlib.contextmanager
def _held(store: Store, out: str) -> Iterator[None]:
    """Hold a local output for this run; scoring takes its own lock inside. Object stores have no locks."""
    if not store.is_local:
        yield
        return
    try:
        with FileLock(os.path.join(store.root, LOCK)).acquire(timeout=0):
            yield
    except Timeout:
        raise LockedError(f"another reprocess holds {out}: it will do this one's work") from None


def _recorded(collection: Collection, ticket: Ticket, store: Store) -> dict[str, Any]:
    """Score, compare and write; a failure has its record in the history too, where the output can still be written."""
    try:
        before = _previous(store)
        summary = scoring.score(collection.config)
        changes = compare(before, read_state(store, PARQUET))
        write_changes(store, changes)
    except BaseException as error:
        status, _ = _outcome(error)
        with contextlib.suppress(OSError):
            history.append(store, ticket, collection=collection.name, status=status, summary={}, error=str(error)[:2000])
        raise
    shown = {**_shown(summary), "changes": count_changes(changes)}
    history.append(store, ticket, collection=collection.name, status=shown["status"], summary=shown)
    store.remove(PREVIOUS)
    log(f"collection {collection.name}: {_in_words(shown['changes'])}")
    return shown


def _previous(store: Store) -> pa.Table:
    """What was published before this run, or before the killed run whose changes nobody has reported yet."""
    if store.exists(PREVIOUS):
        log("an earlier run ended before it wrote its changes; they are reported with this run's")
        return read_state(store, PREVIOUS)
    state = read_state(store, PARQUET)
    store.write(PREVIOUS, lambda sink: pq.write_table(state, sink, compression="zstd"))
    return state


def _shown(summary: dict[str, Any]) -> dict[str, Any]:
    shown = {name: summary[name] for name in _COUNTS if name in summary}
    return {"status": summary.get("status", "complete"), "exit_code": summary.get("exit_code", EXIT_DONE), **shown}


def _in_words(changes: dict[str, int]) -> str:
    found = ", ".join(f"{count:,} {kind}" for kind, count in changes.items() if count)
    return f"changes: {found}" if found else "no changes"


def _remove_what_was_made(store: Store) -> None:
    if not store.is_local:
        return
    names = [*(f"{history.HISTORY}/{name}" for name in store.names(history.HISTORY)), PREVIOUS, LOCK, output.LOCK]
    for name in names:
        store.remove(name)
    for folder in (history.HISTORY, KEPT_FOLDER, ""):
        with contextlib.suppress(OSError):  # not empty: something of worth is in it
            os.rmdir(os.path.join(store.root, folder))
