"""Local folders and globs: what lies there, looked at with lstat and never through a link."""

import errno
import os
import stat
from collections.abc import Iterator

from detector.errors import UsageError
from detector.images.found import CHUNK_ROWS, Found, Root
from detector.images.names import display_name, has_magic, match_parts, name_text, text_bytes
from detector.progress import log

_REASONS = {
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFDIR: "folder",
}
_MAX_LOGGED = 10
_TYPE = 0o170000  # the bits of st_mode that S_IFMT keeps


def reason_for(mode: int, path: bytes) -> str | None:
    """Why something of this ``lstat`` mode is no row; None for a regular file.

    ``folder`` is for callers that were promised a file. A link that leads round in circles is a ``loop``.
    """
    if stat.S_ISREG(mode):
        return None
    if stat.S_ISLNK(mode):
        try:
            os.stat(path)
        except OSError as error:
            return "loop" if error.errno == errno.ELOOP else "link"
        return "link"
    return _REASONS.get(stat.S_IFMT(mode), "device")


def scan_folder(found: Found, root: Root, relative: bytes = b"") -> None:
    """Offer everything below ``root``/``relative``; hidden and excluded folders are one entry each.

    A sub-folder that cannot be read is one skipped entry ``unreadable``, and a log line: what it holds cannot be
    counted, and one ``lost+found`` must not end a run over a million pictures.

    Raises:
        UsageError: ``root`` itself cannot be read, or is the folder that the job writes to.
    """
    if root.base == found.output:
        raise UsageError(f"{display_name(root.base)!r} is also the output folder: choose another with --out")
    pending = [relative]
    while pending:
        folder = pending.pop()
        prefix = folder + b"/" if folder else b""
        files: list[tuple[bytes, int, int]] = []  # of a million, nearly all are regular: they are counted many at a time
        for name, entry in _entries(found, root, folder):
            if name.startswith(b"."):
                found.skip(root, prefix + name, entry.path, "hidden")
            elif (status := _regular(entry)) is not None:
                files.append((name, status.st_size, status.st_mtime_ns))
                if len(files) == CHUNK_ROWS:
                    found.add_files(root, prefix, files)
                    files = []
            elif _is_folder(found, root, prefix + name, entry):
                pending.append(prefix + name)
        found.add_files(root, prefix, files)


def _regular(entry: "os.DirEntry[bytes]") -> os.stat_result | None:
    """What lstat says of a regular file; None for anything else, which is looked at again."""
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return None
    return status if status.st_mode & _TYPE == stat.S_IFREG else None


def _entries(found: Found, root: Root, folder: bytes) -> Iterator[tuple[bytes, "os.DirEntry[bytes]"]]:
    """The entries of one folder; if it cannot be read (to its end), that is counted."""
    path = os.path.join(root.base, folder) if folder else root.base
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                yield entry.name, entry
    except OSError as error:
        if not folder:
            raise UsageError(f"the folder {display_name(path)!r} cannot be read: {os.strerror(error.errno or 0)}") from None
        found.num_unreadable += 1
        if found.num_unreadable <= _MAX_LOGGED:
            more = "; further ones are only in skipped.csv" if found.num_unreadable == _MAX_LOGGED else ""
            log(f"warning: the folder {display_name(path)} cannot be read and is skipped: {error.strerror}{more}")
        found.skip(root, folder, path, "unreadable")


def _is_folder(found: Found, root: Root, relative: bytes, entry: "os.DirEntry[bytes]") -> bool:
    """Count an entry that is no folder; True for a folder that is to be entered."""
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return _is_folder_by_type(found, root, relative, entry)
    if stat.S_ISREG(status.st_mode):
        found.add(root, relative, entry.path, status.st_size, status.st_mtime_ns)
        return False
    if stat.S_ISDIR(status.st_mode):
        if not found.leaves_out_folder(root, relative, entry.path):
            return True
        found.skip(root, relative, entry.path, "excluded")
        return False
    found.skip(root, relative, entry.path, reason_for(status.st_mode, entry.path) or "device")
    return False


def _is_folder_by_type(found: Found, root: Root, relative: bytes, entry: "os.DirEntry[bytes]") -> bool:
    """As above, for what can be named and not looked at: deleted since, or in a folder without search permission."""
    try:
        if entry.is_dir(follow_symlinks=False):
            return True
        if entry.is_symlink():
            found.skip(root, relative, entry.path, "link")
            return False
    except OSError:
        pass  # not even its type is known: the decoder will say what it is
    found.add(root, relative, entry.path, None, None)
    return False


def scan_path(found: Found, root: Root, relative: bytes) -> None:
    """Offer one file that was named itself; it is looked at again, whatever was known before."""
    path = os.path.join(root.base, relative)
    if os.path.basename(relative).startswith(b"."):
        return found.skip(root, relative, path, "hidden")
    status = os.lstat(path)
    reason = reason_for(status.st_mode, path)
    if reason is not None:
        return found.skip(root, relative, path, reason)
    return found.add(root, relative, path, status.st_size, status.st_mtime_ns)


def split_glob(pattern: str) -> tuple[bytes, list[str]]:
    """Cut a glob into its fixed folder, resolved, and the parts to match; a part that exists by name is no pattern."""
    folder, parts = os.getcwdb(), pattern.split("/")
    if pattern.startswith("/"):
        folder = b"/"
    while parts and (not has_magic(parts[0]) or os.path.lexists(os.path.join(folder, text_bytes(parts[0])))):
        folder = os.path.join(folder, text_bytes(parts.pop(0)))
    parts = [part for part in parts if part not in {"", "."}]
    return os.path.realpath(folder), [*parts, "*"] if parts[-1:] == ["**"] else parts


def scan_glob(found: Found, pattern: str, name: bytes | None) -> int:
    """Offer what a glob hits, each under its parent's name; under ``name`` and its path from the fixed folder if named.

    ``*``, ``?`` and ``[…]`` stay within one folder and leave hidden names alone, ``**`` goes down through folders. A
    folder that is hit is listed whole, unless the glob has ``**`` and so reaches its files by itself. Returns the number
    of hits.
    """
    fixed, parts = split_glob(pattern)
    if not os.path.isdir(fixed):
        return 0
    num_hits = 0
    for relative, entry in _hits(found, fixed, parts):
        if "**" in parts and entry.is_dir(follow_symlinks=False):
            continue
        root, short = _root_of(found, fixed, relative, name)
        if os.path.basename(relative).startswith(b"."):
            found.skip(root, short, entry.path, "hidden")
        elif _is_folder(found, root, short, entry):
            scan_folder(found, root, short)
        num_hits += 1
    return num_hits


def _root_of(found: Found, fixed: bytes, relative: bytes, name: bytes | None) -> tuple[Root, bytes]:
    if name is not None:
        return found.root(name, fixed), relative
    parent = os.path.dirname(os.path.join(fixed, relative))
    return found.root(os.path.basename(parent), parent), os.path.basename(relative)


def _hits(found: Found, fixed: bytes, parts: list[str]) -> Iterator[tuple[bytes, "os.DirEntry[bytes]"]]:
    """Entries that fit all parts, with their path from the fixed folder; each once."""
    whole = Root(name=os.path.basename(fixed), base=fixed)  # not registered: it names only what is not walked into
    pending, seen = [(b"", 0)], set()
    while pending:
        folder, at = pending.pop()
        if (folder, at) in seen:
            continue
        seen.add((folder, at))
        deep = parts[at] == "**"
        if deep:
            pending.append((folder, at + 1))
        for entry_name, entry in _entries(found, whole, folder):
            relative = os.path.join(folder, entry_name)
            if not _fits(name_text(entry_name), "*" if deep else parts[at]):
                continue
            if not deep and at == len(parts) - 1:
                yield relative, entry
            elif _is_way(found, whole, relative, entry):
                pending.append((relative, at if deep else at + 1))


def _fits(name: str, part: str) -> bool:
    return match_parts([name], [part]) and (not name.startswith(".") or part.startswith("."))


def _is_way(found: Found, whole: Root, relative: bytes, entry: "os.DirEntry[bytes]") -> bool:
    """Whether a glob goes on through this entry; a link to a folder or an excluded folder on the way is counted."""
    if entry.is_symlink():
        if os.path.isdir(entry.path):
            found.skip(whole, relative, entry.path, "link")
        return False
    if not entry.is_dir(follow_symlinks=False):
        return False
    if found.leaves_out_folder(whole, relative, entry.path):
        found.skip(whole, relative, entry.path, "excluded")
        return False
    return True
