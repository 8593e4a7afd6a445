"""Putting a prepared picture into its place: hard link, symbolic link or copy, and the name it gets there."""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator

from detector.training.prepare_config import Link

_CANNOT_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES}


def free_names(name: bytes, source: str) -> Iterator[bytes]:
    """The names to try in turn: its own, ``<source>__<name>``, then ``<source>__2__<name>`` and so on."""
    prefix = os.fsencode(source)
    yield name
    yield prefix + b"__" + name
    number = 2
    while True:
        yield b"%b__%d__%b" % (prefix, number, name)
        number += 1


def choose_name(folder: bytes, name: bytes, *, source: str, sha256: str, taken: set[bytes]) -> bytes:
    """The first name that is free in ``folder``; one under which exactly these bytes lie already counts as free.

    A run that was killed before it wrote the manifest leaves such files; the next run takes them over.
    """
    for candidate in free_names(name, source):
        path = os.path.join(folder, candidate)
        if path in taken:
            continue
        if not os.path.lexists(path) or file_sha256(path) == sha256:
            taken.add(path)
            return candidate
    raise AssertionError("free_names never ends")


def place(path: bytes, target: bytes, link: Link) -> bool:
    """Link or copy a file to ``target``; a hard link falls back to a copy where the file system refuses it.

    Returns:
        Whether something was written: not so where the target is there already.
    """
    if os.path.lexists(target):
        return False
    if link == "symbolic":
        os.symlink(os.path.realpath(path), target)
        return True
    if link == "hard":
        _hard_link(path, target)
    else:
        _copy(path, target)
    return True


def file_sha256(path: bytes) -> str | None:
    """SHA-256 of a file in hex, or None where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _hard_link(path: bytes, target: bytes) -> None:
    try:
        os.link(os.path.realpath(path), target)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        _copy(path, target)


def _copy(path: bytes, target: bytes) -> None:
    """Copy through a hidden temporary name, so that a kill leaves no half picture under a real one."""
    temporary = os.path.join(os.path.dirname(target), b"." + os.path.basename(target)[:200] + b".tmp")
    try:
        shutil.copyfile(path, temporary)
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
