"""From what ``--images`` says to a sorted table of files: folders, globs, single files, manifests, object stores.

Everything that is found ends as one row or one skipped entry. A folder, file or manifest that the user names may itself
be a link and is resolved; below it no link is followed.
"""

import os
import stat
from collections.abc import Sequence

import pyarrow as pa

from detector.errors import UsageError
from detector.images.found import FILES_SCHEMA, SKIPPED_SCHEMA, Found, Listing
from detector.images.manifest import is_manifest, list_manifest, read_manifest
from detector.images.names import Patterns, display_name, has_magic, name_text, raw_name
from detector.images.scanning import scan_folder, scan_glob, scan_path
from detector.storage import is_uri, local_path, without_credentials

__all__ = ["FILES_SCHEMA", "SKIPPED_SCHEMA", "Listing", "display_name", "list_images", "raw_name"]


def list_images(
    sources: Sequence[str],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    limit: int | None = None,
    output: str | None = None,
) -> Listing:
    """List the files of all sources, each file once, sorted by the UTF-8 bytes of ``filename``.

    Args:
        sources: folders, globs, files, manifests (``.csv``, ``.parquet``, ``.txt``), remote URIs; ``NAME=…`` lists them
            as ``./NAME/…``. A file that two sources hold is named by the first.
        include: if given, only files that fit one of these globs are rows; see ``names.Patterns``.
        exclude: files and folders that fit one of these are skipped.
        limit: keep only the first so many rows.
        output: the folder that the job writes to; where it lies in a listed folder it is skipped as ``excluded``.

    Raises:
        UsageError: a source is missing, cannot be read or holds no regular file; two folders have one name; a manifest
            is wrong; the patterns leave nothing.
    """
    if not sources:
        raise UsageError("no images named: give --images a folder, a glob, a file or a manifest")
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit} leaves nothing to do: it must be 1 or more")
    found = Found(include=Patterns.of(include), exclude=Patterns.of(exclude), output=_resolved(output))
    found.may_overlap = len(sources) > 1
    for source in sources:
        files, skipped = found.num_files, found.num_skipped
        _list_source(found, source)
        if found.num_files == files:
            entries = found.num_skipped - skipped
            more = f"; {entries:,} other entries (links, hidden and special files) do not count" if entries else ""
            raise UsageError(f"{_shown(source)!r} holds no regular file{more}")
    listing = found.listing(limit)
    if not len(listing.files):
        raise UsageError(f"--include and --exclude leave none of the {found.num_files:,} files found")
    return listing


def _resolved(output: str | None) -> bytes | None:
    return None if output is None or is_uri(output) else os.path.realpath(os.fsencode(local_path(output)))


def _shown(source: str) -> str:
    """A source for a message: without credentials, its bytes readable."""
    label, equals, target = source.partition("=")
    if is_uri(source):
        return without_credentials(source)
    if equals and is_uri(target):
        return f"{label}={without_credentials(target)}"
    return display_name(os.fsencode(source))


def _list_source(found: Found, source: str) -> None:
    """List one source; ``NAME=PATH`` is read so only when there is nothing that is called that as a whole."""
    if _offer(found, source, None):
        return
    label, equals, target = source.partition("=")
    named = bool(equals) and label not in {"", ".", ".."} and "/" not in label
    if named and _offer(found, target, os.fsencode(label)):
        return
    missing = _shown(target if named else source)
    if has_magic(missing):
        raise UsageError(f"no file fits {missing!r}: check the pattern, and from which folder the command runs")
    raise UsageError(f"{missing!r} does not exist: check --images, and from which folder the command runs")


def _offer(found: Found, source: str, name: bytes | None) -> bool:
    """List what a source means; False if it means nothing that exists. What exists by name is never a pattern."""
    if is_uri(source):
        from detector.images.remote_listing import list_uri

        list_uri(found, source, name)
        return True
    plain = local_path(source)
    for path in dict.fromkeys([plain, os.path.expanduser(plain)]):  # no shell expands ~ in NAME=~/art or a config file
        if os.path.lexists(path):
            _list_path(found, os.fsencode(path), name)
            return True
        if has_magic(path) and scan_glob(found, name_text(os.fsencode(path)), name):
            return True
    return False


def _list_path(found: Found, path: bytes, name: bytes | None) -> None:
    resolved = os.path.realpath(path)
    try:
        mode = os.stat(resolved).st_mode
    except OSError as error:
        raise UsageError(f"{display_name(path)!r} cannot be read: {os.strerror(error.errno or 0)}") from None
    if stat.S_ISDIR(mode):
        scan_folder(found, found.root(name or os.path.basename(resolved), resolved))
        return
    folder, file = os.path.split(resolved)
    root = found.root(name or os.path.basename(folder), folder)
    label = next((label for label in (display_name(path), display_name(file)) if is_manifest(label)), None)
    if label is None or not stat.S_ISREG(mode):
        scan_path(found, root, file)
        return
    found.may_overlap = True
    list_manifest(found, root, read_manifest(_content(resolved), label), label)


def _content(path: bytes) -> pa.Buffer:
    try:
        with open(path, "rb") as file:
            return pa.py_buffer(file.read())
    except OSError as error:
        raise UsageError(f"the manifest {display_name(path)!r} cannot be read: {os.strerror(error.errno or 0)}") from None
