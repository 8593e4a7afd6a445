"""The output folder of a scoring run: made, held by one run at a time, and taken away again where nothing came of it."""

import contextlib
import os
from collections.abc import Iterator

from filelock import FileLock, Timeout

from detector.errors import LockedError, UsageError
from detector.storage import Store, open_store
from detector.uris import is_uri, local_path

LOCK = ".lock"


@contextlib.contextmanager
def held_output(out: str, *, writes: bool) -> Iterator[Store]:
    """The output, held by a lock that dies with this process; a run that ``writes`` nothing takes no lock.

    Raises:
        LockedError: another run holds it.
        UsageError: it cannot be made or written.
    """
    new = [] if is_uri(out) else _missing_folders(os.path.abspath(local_path(out)))
    try:
        store = open_store(out)
        lock = FileLock(os.path.join(store.root, LOCK)) if store.is_local and writes else None
        with lock.acquire(timeout=0) if lock else contextlib.nullcontext():
            try:
                if lock:
                    store.clean_temporary()
                yield store
            except UsageError:
                if lock and new:  # while it is held, so that no other run has it
                    _remove_if_empty(new, but_for=lock.lock_file)
                raise
    except Timeout:
        raise LockedError(f"another run holds {out}: wait for it, or give this one another --out") from None
    finally:
        _remove_if_empty(new)


def _remove_if_empty(folders: list[str], *, but_for: str | None = None) -> None:
    """A wrong command line and a dry run leave nothing behind; what anything lies in stays."""
    with contextlib.suppress(OSError):
        if but_for is not None and os.listdir(folders[0]) == [os.path.basename(but_for)]:
            os.unlink(but_for)
        for folder in folders:
            os.rmdir(folder)


def _missing_folders(path: str) -> list[str]:
    """The folders that have to be made for ``path``, the deepest first."""
    missing = []
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    return missing
