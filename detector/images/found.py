"""What a listing gathers: rows and skipped entries, in Arrow columns from the start.

A million rows stay under a few hundred megabytes because no Python object outlives its chunk.
"""

import os
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from detector.errors import UsageError
from detector.images.names import Patterns, display_name

FILES_SCHEMA = pa.schema([
    pa.field("filename", pa.string(), nullable=False),
    pa.field("path", pa.binary(), nullable=False),
    pa.field("bytes", pa.int64()),
    pa.field("modified", pa.timestamp("ns", "UTC")),
])  # fmt: skip
SKIPPED_SCHEMA = pa.schema([
    pa.field("filename", pa.string(), nullable=False),
    pa.field("reason", pa.string(), nullable=False),
])  # fmt: skip
_SKIPPED_COLUMNS = pa.schema([*SKIPPED_SCHEMA, pa.field("path", pa.binary(), nullable=False)])

CHUNK_ROWS = 16_384
_FEW_ROWS = 256  # below this, columns of their own cost more than they spare (measured: even at 128)
_TAKE_ROWS = 1 << 20  # sorted in slices, so that no chunk of text comes near the 2 GiB of 32-bit offsets
# The lowest int64 is pandas' NaT, so the range is cut one short of it.
_MAX_NS = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Root:
    """A folder whose files are listed as ``./NAME/…``. ``base`` is its absolute path, or its URI without credentials."""

    name: bytes
    base: bytes


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What was found.

    Attributes:
        files: FILES_SCHEMA, one row a regular file, sorted by the UTF-8 bytes of ``filename``. ``bytes`` and ``modified``
            are null where the file could not be looked at (a manifest names it and it is not there).
        skipped: SKIPPED_SCHEMA, sorted likewise; what was found and is no row.
        roots: (name, resolved path or URI without credentials) of each listed folder, sorted.
    """

    files: pa.Table
    skipped: pa.Table
    roots: tuple[tuple[str, str], ...]


def clamp_ns(nanoseconds: int) -> int:
    """A modification time as int64 nanoseconds; file systems hold years that do not fit (before 1677, after 2262)."""
    return max(-_MAX_NS, min(_MAX_NS, nanoseconds))


class _Columns:
    """A table under construction: at most one chunk of rows as Python objects, the rest as Arrow columns."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._columns: list[list[pa.Array]] = [[] for _ in schema]
        self._rows: list[tuple[object, ...]] = []
        self.num_rows = 0

    def append(self, row: tuple[object, ...]) -> None:
        """Add one row; rows become Arrow columns a chunk at a time."""
        self._rows.append(row)
        self.num_rows += 1
        if len(self._rows) == CHUNK_ROWS:
            self._flush()

    def extend(self, columns: list[pa.Array]) -> None:
        """Add rows that are columns already."""
        self._flush()
        for chunks, values in zip(self._columns, columns, strict=True):
            chunks.append(values)
        self.num_rows += len(columns[0])

    def _flush(self) -> None:
        if self._rows:
            for chunks, values, kind in zip(self._columns, zip(*self._rows, strict=True), self.schema, strict=True):
                chunks.append(pa.array(values, kind.type))
        self._rows = []

    def column(self, name: str) -> pa.ChunkedArray:
        """All values of one column so far."""
        self._flush()
        return pa.chunked_array(self._columns[self.schema.get_field_index(name)], self.schema.field(name).type)

    def table(self, rows: np.ndarray, schema: pa.Schema) -> pa.Table:
        """The chosen rows as a table of the columns of ``schema``; ends the construction, one column after another."""
        taken = []
        for kind in schema:
            whole = self.column(kind.name)
            self._columns[self.schema.get_field_index(kind.name)] = []
            slices = [whole.take(pa.array(rows[at : at + _TAKE_ROWS])) for at in range(0, len(rows), _TAKE_ROWS)]
            taken.append(pa.chunked_array([chunk for part in slices for chunk in part.chunks], kind.type))
        return pa.table(taken, schema=schema)


@dataclass(kw_only=True)
class Found:
    """Gathers what the listers of folders, globs, manifests and object stores come across."""

    include: Patterns
    exclude: Patterns
    output: bytes | None = None  # the folder that the job writes to: never listed
    may_overlap: bool = False
    num_excluded: int = 0
    num_unreadable: int = 0
    _chooses: bool = False
    _files: _Columns = field(default_factory=lambda: _Columns(FILES_SCHEMA))
    _skipped: _Columns = field(default_factory=lambda: _Columns(_SKIPPED_COLUMNS))
    _roots: dict[bytes, Root] = field(default_factory=dict)
    _folder: tuple[Root, bytes] | None = None  # of the file met last, and its text: most have a neighbour's
    _folder_text: str = ""

    def __post_init__(self) -> None:
        self._chooses = bool(self.include or self.exclude)

    @property
    def num_files(self) -> int:
        """Regular files met so far: rows, and what patterns left out."""
        return self._files.num_rows + self.num_excluded

    @property
    def num_skipped(self) -> int:
        """Skipped entries so far."""
        return self._skipped.num_rows

    def root(self, name: bytes, base: bytes) -> Root:
        """Register a listed folder under its name.

        Raises:
            UsageError: another folder has that name already, or there is no name to use.
        """
        if not name:
            raise UsageError(f"{display_name(base)!r} has no name to list its files under: write NAME={display_name(base)}")
        known = self._roots.setdefault(name, Root(name=name, base=base))
        if known.base != base:
            label, first, second = display_name(name), display_name(known.base), display_name(base)
            raise UsageError(
                f"two folders are called {label!r}: {first} and {second}; give one another name: --images NAME={second}"
            )
        return known

    def leaves_out_folder(self, root: Root, relative: bytes, path: bytes) -> bool:
        """Whether a folder is not entered: ``--exclude`` fits it, or it is where the job writes."""
        return path == self.output or (bool(self.exclude) and self.exclude.match(root.name, relative))

    def add(self, root: Root, relative: bytes, path: bytes, size: int | None, modified_ns: int | None) -> None:
        """Count a regular file: a row, or an entry ``excluded``."""
        if self._chooses and not self._chosen(root, relative):
            return self.skip(root, relative, path, "excluded")
        if modified_ns is not None and not -_MAX_NS <= modified_ns <= _MAX_NS:
            modified_ns = clamp_ns(modified_ns)
        return self._files.append((self._filename(root, relative), path, size, modified_ns))

    def add_files(self, root: Root, prefix: bytes, files: list[tuple[bytes, int, int]]) -> None:
        """Count regular files of one folder: name, bytes and modification time of each; ``prefix`` is empty or ends in a slash.

        The same as :meth:`add` for each; at half the time for many where no pattern chooses and no name needs an escape.
        """
        base = os.path.join(root.base, prefix)
        names, sizes, times = zip(*files, strict=True) if len(files) >= _FEW_ROWS else ((), (), ())
        plain = None if self._chooses else _plain_text(names)
        if plain is None or max(map(abs, times)) > _MAX_NS:
            for name, size, time in files:
                self.add(root, prefix + name, base + name, size, time)
            return
        shown = pa.scalar(display_name(b"./" + root.name + b"/" + prefix))
        self._files.extend([
            pc.binary_join_element_wise(shown, plain, ""),
            pc.binary_join_element_wise(pa.scalar(base), plain.cast(pa.binary()), b""),
            pa.array(sizes, pa.int64()),
            pa.array(times, pa.int64()).cast(pa.timestamp("ns", "UTC")),
        ])  # fmt: skip

    def _chosen(self, root: Root, relative: bytes) -> bool:
        if self.exclude and self.exclude.match(root.name, relative):
            return False
        return not self.include or self.include.match(root.name, relative)

    def skip(self, root: Root, relative: bytes, path: bytes, reason: str) -> None:
        """Count something that is no row."""
        self.num_excluded += reason == "excluded" and path != self.output  # no pattern of the user's left that out
        self._skipped.append((self._filename(root, relative), reason, path))

    def _filename(self, root: Root, relative: bytes) -> str:
        """``./NAME/…`` as text; no escape reaches across a slash, so that a folder's part is made once for its files."""
        folder, slash, name = relative.rpartition(b"/")
        if self._folder != (root, folder):
            self._folder = root, folder
            self._folder_text = display_name(b"./" + root.name + b"/" + folder + slash)
        return self._folder_text + (name.decode() if name.isascii() and b"%" not in name else display_name(name))

    def listing(self, limit: int | None) -> Listing:
        """The finished tables; of the rows only the first ``limit`` in order of their names. Ends the gathering."""
        files, skipped = _order(self._files), _order(self._skipped)
        if self.may_overlap:
            files = _first_of_each(files, self._files.column("path"))
            skipped = _first_of_each(skipped, self._skipped.column("path"))
            again = pc.is_in(self._skipped.column("path"), value_set=self._files.column("path").combine_chunks())
            skipped = skipped[~again.to_numpy()[skipped]]
        roots = sorted((display_name(root.name), display_name(root.base)) for root in self._roots.values())
        return Listing(
            files=self._files.table(files[:limit], FILES_SCHEMA),
            skipped=self._skipped.table(skipped, SKIPPED_SCHEMA),
            roots=tuple(roots),
        )


def _plain_text(names: tuple[bytes, ...]) -> pa.Array | None:
    """Names as text where all are ASCII without an escape sign, which is how ``filename`` shows them; else None."""
    together = b"".join(names)
    return pa.array(names, pa.binary()).cast(pa.string()) if names and together.isascii() and b"%" not in together else None


def _order(columns: _Columns) -> np.ndarray:
    """Row numbers in order of the filenames' UTF-8 bytes, which is how Arrow compares text."""
    return np.asarray(pc.sort_indices(columns.column("filename")))


def _first_of_each(order: np.ndarray, paths: pa.ChunkedArray) -> np.ndarray:
    """Leave out the row numbers whose path an earlier row has: the source named first names the file."""
    if not len(order):
        return order
    codes = [chunk.indices.to_numpy() for chunk in pc.dictionary_encode(paths).chunks]
    first = np.zeros(len(order), dtype=bool)
    first[np.unique(np.concatenate(codes), return_index=True)[1]] = True
    return order[first[order]]
