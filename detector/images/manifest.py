"""Manifests: a table or text that names the files to score, relative to its own folder."""

import os
import re
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from detector.errors import UsageError
from detector.images.found import Found, Root
from detector.images.names import display_name, name_text, raw_name
from detector.images.scanning import reason_for

EXTENSIONS = (".csv", ".parquet", ".txt")
_COLUMN = "filename"
_UNUSUAL = re.compile(rb"//|/\.|\0")
_CHUNK_ROWS = 16_384
_KNOWN_FOLDERS = 4_096


def is_manifest(name: str) -> bool:
    """Whether a file given as ``--images`` is read as a manifest: by its extension, in any case."""
    return name.lower().endswith(EXTENSIONS)


def read_manifest(data: pa.Buffer, name: str) -> pa.ChunkedArray:
    """The names in a manifest, as binary values in its order.

    Args:
        data: the file's content: UTF-8, with or without a byte order mark, lines ended by LF or CR LF. Bytes that are
            not UTF-8 are kept as they are.
        name: the file's name; its extension says what it is, and messages show it.

    Raises:
        UsageError: it cannot be read, has no column ``filename``, or names nothing.
    """
    if bytes(data[:2]) in {b"\xff\xfe", b"\xfe\xff"}:
        raise UsageError(f"the manifest {name!r} is UTF-16: save it as UTF-8")
    readers = {".csv": _read_csv, ".parquet": _read_parquet, ".txt": _read_txt}
    try:
        names = readers[os.path.splitext(name)[1].lower()](data, name)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        first_line = str(error).strip().splitlines()[:1]
        raise UsageError(f"the manifest {name!r} cannot be read: {''.join(first_line)[:300]}") from None
    if names.null_count or pc.any(pc.equal(pc.binary_length(names), 0)).as_py():
        raise UsageError(f"the manifest {name!r} has a row without a filename: fill it in or delete the row")
    if not len(names):
        raise UsageError(f"the manifest {name!r} names no file")
    return names


def _read_csv(data: pa.Buffer, name: str) -> pa.ChunkedArray:
    from pyarrow import csv

    table = csv.read_csv(
        pa.BufferReader(data),
        read_options=csv.ReadOptions(use_threads=False, block_size=4 << 20),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            column_types={_COLUMN: pa.binary()}, include_columns=[_COLUMN], include_missing_columns=True
        ),
    )
    if table[_COLUMN].null_count == len(table):  # how a missing column is read; names are never null otherwise
        header = bytes(data[: 1 << 16]).decode("utf-8-sig", "replace").splitlines()[0]
        if _COLUMN not in [cell.strip('"') for cell in header.split(",")]:
            raise _no_column(name, header)
    return table[_COLUMN]


def _read_parquet(data: pa.Buffer, name: str) -> pa.ChunkedArray:
    from pyarrow import parquet

    file = parquet.ParquetFile(pa.BufferReader(data))
    if _COLUMN not in file.schema_arrow.names:
        raise _no_column(name, ",".join(file.schema_arrow.names))
    column = file.read(columns=[_COLUMN], use_threads=False)[_COLUMN]
    return column.cast(pa.string()).cast(pa.binary()) if not pa.types.is_binary(column.type) else column


def _read_txt(data: pa.Buffer, name: str) -> pa.ChunkedArray:  # noqa: ARG001 - one signature for all readers
    lines = data.to_pybytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    names = pa.chunked_array([pa.array([line.removesuffix(b"\r") for line in lines], pa.binary())])
    return names.filter(pc.greater(pc.binary_length(names), 0))


def _no_column(name: str, header: str) -> UsageError:
    return UsageError(f"the manifest {name!r} has no column {_COLUMN!r}; it has: {header[:200]}")


def has_header(names: pa.ChunkedArray, manifest: str) -> bool:
    """Whether a text manifest begins with the line ``filename``: its column's name, unless such a file is there."""
    return manifest.lower().endswith(".txt") and names[0].as_py() == _COLUMN.encode()


def list_manifest(found: Found, root: Root, names: pa.ChunkedArray, manifest: str) -> None:
    """Offer every file that a local manifest names; one that is not there is a row without size and time.

    Raises:
        UsageError: a name is absolute or leads out of the manifest's folder, or not one of the files is there.
    """
    if has_header(names, manifest) and not os.path.lexists(os.path.join(root.base, _COLUMN.encode())):
        names = names.slice(1)
    folders = _Folders(root.base)
    num_there = sum(_offer(found, root, raw, folders) for raw in values(names))
    if not num_there:
        raise no_file_there(len(names), root)


def no_file_there(num_names: int, root: Root) -> UsageError:
    """What to raise for a manifest of which nothing exists: nearly always it stands in the wrong folder."""
    return UsageError(
        f"none of the {num_names:,} files that the manifest names is there; names are relative to the manifest's "
        f"folder, {display_name(root.base)}"
    )


def values(names: pa.ChunkedArray) -> Iterator[bytes]:
    """The names one by one; only a chunk of them is held as Python objects."""
    for at in range(0, len(names), _CHUNK_ROWS):
        yield from names.slice(at, _CHUNK_ROWS).to_pylist()


def candidates(raw: bytes) -> list[bytes]:
    """The paths that a name in a manifest can mean, likeliest first: as it stands, unescaped, without its quotes.

    Raises:
        UsageError: a path is absolute or leads out of the manifest's folder.
    """
    if b"%" not in raw and raw[:1] != b'"':
        return [_normal(raw, raw)]
    meant = [raw]
    if b"%" in raw:
        meant.append(raw_name(name_text(raw)))
    if len(raw) > 2 and raw.startswith(b'"') and raw.endswith(b'"'):
        meant.insert(0, raw[1:-1].replace(b'""', b'"'))
    return [_normal(path, raw) for path in dict.fromkeys(meant)]


def _normal(path: bytes, raw: bytes) -> bytes:
    if path[:1] not in b"/." and path[-1:] != b"/" and not _UNUSUAL.search(path):
        return path
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b".." and not parts:
            parts.append(part)
            break
        if part == b"..":
            parts.pop()
        elif part not in {b"", b"."}:
            parts.append(part)
    if path.startswith(b"/") or parts[:1] in ([], [b".."]) or b"\0" in path:
        raise UsageError(
            f"the manifest names {display_name(raw)!r}: names must be those of files in or below the manifest's folder"
        )
    return b"/".join(parts)


class _Folders:
    """Why nothing below a folder counts, if so; each folder is looked at once."""

    def __init__(self, base: bytes) -> None:
        self.prefix = os.path.join(base, b"")
        self._reasons: dict[bytes, str | None] = {b"": None}

    def reason(self, relative: bytes) -> str | None:
        """Why a listed name is no row (a skip reason), or None."""
        if relative in self._reasons:
            return self._reasons[relative]
        parent, _, name = relative.rpartition(b"/")
        reason = self.reason(parent) or ("hidden" if name.startswith(b".") else self._link(relative))
        if len(self._reasons) >= _KNOWN_FOLDERS:
            self._reasons = {b"": None}
        self._reasons[relative] = reason
        return reason

    def _link(self, relative: bytes) -> str | None:
        path = self.prefix + relative
        return reason_for(os.lstat(path).st_mode, path) if os.path.islink(path) else None


def _offer(found: Found, root: Root, raw: bytes, folders: _Folders) -> bool:
    """Count what a manifest's name stands for; True if something is there."""
    meant = candidates(raw)
    for relative in meant:
        path = folders.prefix + relative
        parent, _, name = relative.rpartition(b"/")
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:  # no permission, a name too long: a row all the same, and the decoder will say which
            found.add(root, relative, path, None, None)
            return True
        reason = folders.reason(parent) or ("hidden" if name.startswith(b".") else reason_for(status.st_mode, path))
        if reason is None:
            found.add(root, relative, path, status.st_size, status.st_mtime_ns)
        else:
            found.skip(root, relative, path, reason)
        return True
    found.add(root, meant[0], folders.prefix + meant[0], None, None)
    return False
