"""Reading what an evaluation is given: files and folders, local or remote, and CSV by the letter."""

import csv
import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from detector.errors import UsageError
from detector.uris import filesystem, is_uri, local_path, without_credentials


@dataclass(frozen=True, kw_only=True)
class Place:
    """A file or folder: ``path`` on this machine, or on the ``remote`` file system; ``shown`` is fit for messages."""

    path: str
    shown: str
    remote: Any | None = None

    @classmethod
    def of(cls, path: str) -> "Place":
        """The place that a path or URI of a command line names.

        Raises:
            UsageError: a URI that nothing is behind.
        """
        if is_uri(path):
            remote, inside = filesystem(path)
            return cls(path=inside.rstrip("/"), shown=without_credentials(path).rstrip("/"), remote=remote)
        plain = local_path(path)
        return cls(path=plain.rstrip("/") or plain, shown=plain)

    @property
    def name(self) -> str:
        """Its last component; that of the resolved path where it is local."""
        return os.path.basename(self.path if self.remote else os.path.realpath(self.path))

    @property
    def parent(self) -> "Place":
        """The folder it lies in."""
        path = os.path.dirname(self.path if self.remote else os.path.abspath(self.path))
        return Place(path=path, shown=os.path.dirname(self.shown) if self.remote else path, remote=self.remote)

    def child(self, name: str) -> "Place":
        """What has this name in the folder."""
        return Place(path=os.path.join(self.path, name), shown=os.path.join(self.shown, name), remote=self.remote)

    def is_file(self) -> bool:
        """Whether it is a regular file or an object: not a pipe, which would never end."""
        if self.remote is not None:
            return bool(self.remote.get_file_info(self.path).is_file)
        return os.path.exists(self.path) and stat.S_ISREG(os.stat(self.path).st_mode)

    def is_folder(self) -> bool:
        """Whether it is a folder; a prefix of an object store counts as one when something is below it."""
        if self.remote is not None:
            from pyarrow.fs import FileType

            return bool(self.remote.get_file_info(self.path).type == FileType.Directory)
        return os.path.isdir(self.path)

    def read(self) -> bytes:
        """The whole content.

        Raises:
            UsageError: it cannot be read.
        """
        try:
            if self.remote is not None:
                with self.remote.open_input_file(self.path) as file:
                    return bytes(file.read())
            with open(self.path, "rb") as file:
                return file.read()
        except OSError as error:
            raise UsageError(f"{self.shown} cannot be read: {error.strerror or error}") from None


def find_file(path: str, names: tuple[str, ...], *, flag: str, advice: str) -> Place:
    """The file ``path`` itself, or the first of ``names`` in the folder ``path``.

    Raises:
        UsageError: neither is there; ``flag`` and ``advice`` go into the message.
    """
    place = Place.of(path)
    if place.is_file():
        return place
    if not place.is_folder():
        raise UsageError(f"{flag} {place.shown}: no such file or folder; {advice}")
    for name in names:
        if place.child(name).is_file():
            return place.child(name)
    raise UsageError(f"{flag} {place.shown}: no {' or '.join(names)} in this folder; {advice}")


def read_csv(data: bytes, path: str, required: tuple[str, ...]) -> tuple[list[str], list[list[str]]]:
    """Header (lower case) and rows of a CSV, read by the letter of RFC 4180: no guessed types, no ``NA``.

    Raises:
        UsageError: not UTF-8, a column twice or missing, or a row whose fields do not fit the header.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start}): save it as CSV UTF-8") from None
    rows = csv.reader(io.StringIO(text, newline=""))
    number = 1
    try:
        header = [name.strip().lower() for name in next(rows, [])]
        require_columns(header, path, required)
        kept = []
        for number, row in enumerate(rows, start=2):
            if row:
                kept.append(_whole_row(row, path, number, len(header)))
    except csv.Error as error:
        raise UsageError(f"{path}: record {number} or the one after it is no CSV: {error}") from None
    return header, kept


def _whole_row(row: list[str], path: str, number: int, width: int) -> list[str]:
    if len(row) != width:
        raise UsageError(
            f"{path}: record {number} has {len(row)} fields, the header has {width}; put names with a comma in quotes"
        )
    return row


def require_columns(present: list[str], path: str, required: tuple[str, ...]) -> None:
    """Check a table's column names.

    Raises:
        UsageError: one of the ``required`` is missing, or one is there twice.
    """
    missing = [name for name in required if name not in present]
    if missing:
        shown = ", ".join(present[:20]) or "none"
        raise UsageError(f"{path} has no column {' and '.join(missing)}; its columns are: {shown}")
    if len(set(present)) != len(present):
        raise UsageError(f"{path} has two columns of one name: {', '.join(present[:20])}")


def iterate_columns(header: list[str], rows: list[list[str]]) -> Iterator[tuple[str, list[str]]]:
    """Name and values of each column of a CSV."""
    for position, name in enumerate(header):
        yield name, [row[position] for row in rows]
