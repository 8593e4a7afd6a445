"""Where a job's files go: a local folder, or a prefix of an object store. Every write is all or nothing.

Locally a file is written under a temporary name in its own folder, flushed to the disk and renamed, and the folder is
flushed after it: whatever kills the process, a reader finds the old file, the new one, or none, never half of one. On
an object store the finished bytes are sent as one PUT (above 10 MB as one multipart upload, which appears whole too).
"""

import contextlib
import errno
import mmap
import os
import re
import secrets
import stat
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, ClassVar, cast

from detector.errors import UsageError
from detector.uris import filesystem, is_uri, local_path, uri_on, without_credentials

__all__ = ["LocalStore", "ObjectStore", "Store", "filesystem", "is_uri", "local_path", "open_store", "uri_on",
           "without_credentials"]  # fmt: skip

Writer = Callable[[BinaryIO], object]

_TEMPORARY = re.compile(r"\.writing-[0-9a-f]{16}\.tmp")


class Store(ABC):
    """A folder that a job writes to. Names are relative to it, with ``/`` between folders."""

    root: str
    is_local: ClassVar[bool]

    @abstractmethod
    def write(self, name: str, writer: Writer) -> None:
        """Create or replace a file by what ``writer`` puts into the stream it is given; all of it or nothing.

        Raises:
            OSError: it could not be written; the message has the path, ``errno`` the cause where there is one. What
                ``writer`` itself raises passes through unchanged unless it is an OSError.
        """

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """Open a file for reading; seekable, and fit for ``pyarrow.parquet``. FileNotFoundError if there is none."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Delete a file for good; nothing happens if there is none."""

    @abstractmethod
    def _files(self, folder: str) -> list[str]:
        """Plain names of all files directly in ``folder``, in any order; none if there is no such folder."""

    def names(self, folder: str = "") -> list[str]:
        """Plain names of the files directly in ``folder``, sorted; temporary ones left out; none if no such folder."""
        return sorted(name for name in self._files(folder) if not _TEMPORARY.fullmatch(name))

    def clean_temporary(self, folder: str = "") -> int:
        """Delete what killed runs left half written directly in ``folder``; the number of files.

        Only for the one who holds the output's lock: another run's writes of this moment look the same. (On an object
        store only probes can be left; unfinished multipart uploads are for the bucket's lifecycle rule.)
        """
        stale = [name for name in self._files(folder) if _TEMPORARY.fullmatch(name)]
        for name in stale:
            self.remove(f"{folder}/{name}" if folder else name)
        return len(stale)

    def read(self, name: str) -> bytes:
        """The whole content of a file."""
        with self.open(name) as file:
            return file.read()


def open_store(path: str) -> Store:
    """Open a local path or a URI for writing; a local folder is created.

    Raises:
        UsageError: the folder cannot be created, or nothing can be written there.
    """
    if not path:
        raise UsageError("the output folder has no name")
    store: Store = ObjectStore(root=path) if is_uri(path) else LocalStore(root=os.path.abspath(local_path(path)))
    shown = without_credentials(path) if is_uri(path) else store.root
    probe = _temporary_name()
    try:
        if isinstance(store, LocalStore):
            os.makedirs(store.root, exist_ok=True)
        store.write(probe, _one_byte)  # not empty: a full disk still makes empty files
    except OSError as error:
        cause = os.strerror(error.errno) if error.errno else str(error)
        raise UsageError(f"cannot write to the output folder {shown!r}: {cause}; choose another with --out") from None
    with contextlib.suppress(OSError):  # some stores let a job write and not delete; names() hides the probe
        store.remove(probe)
    return store


def _one_byte(file: BinaryIO) -> None:
    file.write(b"\n")


def _temporary_name() -> str:
    return f".writing-{secrets.token_hex(8)}.tmp"


def _check(name: str) -> str:
    """Refuse a name that leaves the store: a mistake in this program, not the user's."""
    if not name or name.startswith("/") or any(part in {"", ".", ".."} for part in name.split("/")):
        raise ValueError(f"{name!r} is no name of a file in a store")
    return name


def _failure(action: str, path: str, error: BaseException) -> OSError:
    """The same kind of OSError (by its errno), with the path and the action in the message."""
    number = getattr(error, "errno", None)
    cause = os.strerror(number) if number else str(error)
    text = f"cannot {action} {path!r}: {cause}"
    return OSError(number, text) if number else OSError(text)


@dataclass(frozen=True, kw_only=True)
class LocalStore(Store):
    """A folder of this machine, or of a file system that it has mounted."""

    root: str
    is_local: ClassVar[bool] = True

    def _path(self, name: str) -> str:
        return os.path.join(self.root, *_check(name).split("/"))

    def write(self, name: str, writer: Writer) -> None:
        """See :meth:`Store.write`."""
        path = self._path(name)
        folder = os.path.dirname(path)
        temporary = os.path.join(folder, _temporary_name())
        try:
            if folder != self.root:  # the root itself is not made again: deleted under a run, it must be an error
                self._make_folder(folder)
            _write_flushed(temporary, writer)
            os.replace(temporary, path)
            _flush_folder(folder)
        except BaseException as error:
            _remove_if_there(temporary)
            if isinstance(error, OSError):
                raise _failure("write", path, error) from error
            raise

    def _make_folder(self, folder: str) -> None:
        if not os.path.isdir(folder):
            if not os.path.isdir(self.root):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.root)
            os.makedirs(folder, exist_ok=True)
            _flush_folder(os.path.dirname(folder))

    def open(self, name: str) -> BinaryIO:
        """See :meth:`Store.open`."""
        try:
            return open(self._path(name), "rb")
        except OSError as error:
            raise _failure("read", self._path(name), error) from error

    def _files(self, folder: str) -> list[str]:
        path = self._path(folder) if folder else self.root
        try:
            with os.scandir(path) as entries:
                return [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _failure("list", path, error) from error

    def exists(self, name: str) -> bool:
        """See :meth:`Store.exists`."""
        try:
            return stat.S_ISREG(os.stat(self._path(name)).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def remove(self, name: str) -> None:
        """See :meth:`Store.remove`."""
        path = self._path(name)
        try:
            os.unlink(path)
            _flush_folder(os.path.dirname(path))
        except FileNotFoundError:
            return
        except OSError as error:
            raise _failure("delete", path, error) from error


def _write_flushed(path: str, writer: Writer) -> None:
    """Write a new file and see its bytes to the disk, even if ``writer`` closes the stream (text wrappers do)."""
    with open(path, "xb") as file:
        same = os.dup(file.fileno())
        try:
            writer(file)
            if not file.closed:
                file.flush()
            os.fsync(same)
        finally:
            os.close(same)


def _flush_folder(folder: str) -> None:
    """Make a rename or a deletion last through a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:  # network and FUSE mounts that cannot flush a folder
            raise
    finally:
        os.close(handle)


def _remove_if_there(path: str) -> None:
    # Never made, already renamed, or the disk is gone: clean_temporary() of a later run sees to it.
    with contextlib.suppress(OSError):
        os.unlink(path)


@dataclass(frozen=True, kw_only=True)
class ObjectStore(Store):
    """A prefix of an object store, through ``pyarrow.fs``."""

    root: str = field(repr=False)  # it may hold keys
    is_local: ClassVar[bool] = False

    def _at(self, name: str) -> tuple[Any, str]:
        found, base = filesystem(self.root)
        return found, f"{base}/{_check(name)}"

    def _shown(self, name: str) -> str:
        return f"{without_credentials(self.root).rstrip('/')}/{name}"

    def write(self, name: str, writer: Writer) -> None:
        """See :meth:`Store.write`. A failing ``writer`` sends nothing: its bytes are gathered first."""
        import pyarrow as pa

        found, path = self._at(name)
        try:
            with tempfile.TemporaryFile() as spool:
                with os.fdopen(os.dup(spool.fileno()), "w+b") as file:  # a twin, since a writer may close it
                    writer(cast(BinaryIO, file))
                _send(found, path, spool.fileno())
        except (OSError, pa.ArrowException) as error:
            raise _failure("write", self._shown(name), error) from error

    def open(self, name: str) -> BinaryIO:
        """See :meth:`Store.open`."""
        found, path = self._at(name)
        try:
            return cast(BinaryIO, found.open_input_file(path))
        except OSError as error:
            raise _failure("read", self._shown(name), error) from error

    def _files(self, folder: str) -> list[str]:
        from pyarrow import fs

        found, path = self._at(folder) if folder else filesystem(self.root)
        try:
            entries = found.get_file_info(fs.FileSelector(path, allow_not_found=True))
        except OSError as error:
            raise _failure("list", self._shown(folder), error) from error
        return [entry.base_name for entry in entries if entry.type == fs.FileType.File]

    def exists(self, name: str) -> bool:
        """See :meth:`Store.exists`."""
        found, path = self._at(name)
        return bool(found.get_file_info(path).is_file)

    def remove(self, name: str) -> None:
        """See :meth:`Store.remove`."""
        found, path = self._at(name)
        try:
            found.delete_file(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _failure("delete", self._shown(name), error) from error


def _send(found: Any, path: str, handle: int) -> None:
    """Upload an open file in one call, since leaving the stream's block early would publish what is sent so far."""
    with found.open_output_stream(path) as target:
        if os.fstat(handle).st_size:  # an empty file cannot be mapped
            target.write(mmap.mmap(handle, 0, access=mmap.ACCESS_READ))
