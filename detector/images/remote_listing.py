"""Object stores: folders, globs, single objects and manifests behind a URI, through ``pyarrow.fs``.

The rules are those of local folders as far as they have a meaning there: an object whose key has a part with a leading
dot is hidden, a hidden or excluded folder is one entry, and there are no links.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from detector.errors import UsageError
from detector.images.found import Found, Root
from detector.images.manifest import candidates, has_header, is_manifest, no_file_there, read_manifest, values
from detector.images.names import has_magic, match_parts, text_bytes
from detector.storage import filesystem, uri_on, without_credentials

_REQUEST_NAMES = 1_000
_KNOWN_FOLDERS = 65_536


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A file system, and the URI that opened it."""

    uri: str
    files: Any

    def root(self, found: Found, name: bytes | None, folder: str) -> Root:
        """The listed folder as it is named in the `filename` column."""
        base = text_bytes(without_credentials(uri_on(self.uri, folder)))
        return found.root(name or text_bytes(folder.rpartition("/")[2]), base)

    def path(self, key: str | bytes) -> bytes:
        """The URI of one object, as UTF-8."""
        return uri_on(self.uri, key).encode()

    def info(self, keys: Any) -> Any:
        """``get_file_info`` with a store that does not answer as the user's to put right."""
        try:
            return self.files.get_file_info(keys)
        except (OSError, pa.ArrowException) as error:
            raise UsageError(f"{without_credentials(self.uri)} cannot be listed: {error}") from None


def list_uri(found: Found, uri: str, name: bytes | None) -> None:
    """Offer what a URI names.

    Raises:
        UsageError: there is no such object, folder or match, or the store does not answer.
    """
    files, path = filesystem(uri)
    place = _Place(uri=uri, files=files)
    info = place.info(path)
    folder, _, file = path.rpartition("/")
    if info.is_file and is_manifest(file):
        _list_manifest(found, place, place.root(found, name, folder), folder, file)
    elif info.is_file:
        _add(found, place, place.root(found, name, folder), file, info)
    elif _is_there(info):
        _list_folder(found, place, place.root(found, name, path), path)
    elif not (has_magic(path) and _list_glob(found, place, path, name)):
        raise UsageError(f"{without_credentials(uri)} does not exist: check --images and the keys' rights")


def _is_there(info: Any) -> bool:
    from pyarrow import fs

    return bool(info.type != fs.FileType.NotFound)


def _add(found: Found, place: _Place, root: Root, relative: str, info: Any) -> None:
    path = place.path(info.path)
    if relative.rpartition("/")[2].startswith("."):
        found.skip(root, relative.encode(), path, "hidden")
    else:
        found.add(root, relative.encode(), path, info.size, info.mtime_ns)


def _below(place: _Place, folder: str) -> Iterator[tuple[str, Any]]:
    """Everything below a folder with its relative path; one request for each thousand objects."""
    from pyarrow import fs

    infos = place.info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
    infos.reverse()
    while infos:  # each is let go once it is a row: there may be millions
        info = infos.pop()
        yield info.path[len(folder) :].strip("/"), info


def _list_folder(found: Found, place: _Place, root: Root, folder: str) -> None:
    barriers: dict[str, tuple[str, str] | None] = {}
    counted: set[str] = set()
    for relative, info in _below(place, folder):
        parent = relative if not info.is_file else relative.rpartition("/")[0]
        if parent not in barriers:
            if len(barriers) >= _KNOWN_FOLDERS:
                barriers.clear()
            barriers[parent] = _barrier(found, root, parent)
        barrier = barriers[parent]
        if barrier is None:
            if info.is_file:
                _add(found, place, root, relative, info)
        elif barrier[0] not in counted:
            counted.add(barrier[0])
            found.skip(root, barrier[0].encode(), place.path(f"{folder}/{barrier[0]}"), barrier[1])


def _barrier(found: Found, root: Root, folder: str) -> tuple[str, str] | None:
    """The outermost folder on the way that is not entered, and why."""
    parts = folder.split("/") if folder else []
    for at, part in enumerate(parts):
        outer = "/".join(parts[: at + 1])
        if part.startswith("."):
            return outer, "hidden"
        if found.leaves_out_folder(root, outer.encode(), b""):
            return outer, "excluded"
    return None


def _list_glob(found: Found, place: _Place, path: str, name: bytes | None) -> int:
    """Offer the objects that a glob hits, or that lie in a folder it hits; returns their number."""
    parts = path.split("/")
    at = next(at for at, part in enumerate(parts) if has_magic(part))
    fixed, patterns = "/".join(parts[:at]), parts[at:]
    if patterns[-1] == "**":
        patterns.append("*")
    deep = "**" in patterns
    num_hits = 0
    for relative, info in _below(place, fixed) if fixed else ():
        below = relative.split("/")
        if not info.is_file or any(part.startswith(".") for part in below):
            continue
        if not match_parts(below, patterns, below=not deep):
            continue
        num_hits += 1
        if name is not None:
            _add(found, place, place.root(found, name, fixed), relative, info)
            continue
        depth = len(below) - 1 if deep else len(patterns) - 1
        root = place.root(found, None, "/".join([fixed, *below[:depth]]))
        _add(found, place, root, "/".join(below[depth:]), info)
    return num_hits


def _list_manifest(found: Found, place: _Place, root: Root, folder: str, file: str) -> None:
    with place.files.open_input_file(f"{folder}/{file}") as stream:
        names = read_manifest(stream.read_buffer(), file)
    if has_header(names, file) and not place.info(f"{folder}/filename").is_file:
        names = names.slice(1)
    found.may_overlap = True
    num_there, waiting = 0, []
    for raw in values(names):
        waiting.append(candidates(raw))
        if len(waiting) >= _REQUEST_NAMES:
            num_there += _offer_names(found, place, root, folder, waiting)
            waiting = []
    if not num_there + _offer_names(found, place, root, folder, waiting):
        raise no_file_there(len(names), root)


def _offer_names(found: Found, place: _Place, root: Root, folder: str, names: list[list[bytes]]) -> int:
    """Offer names of a manifest, each with what it can mean; the number of those that are there."""
    meant = [(number, name) for number, each in enumerate(names) for name in each if _is_text(name)]
    infos = place.info([f"{folder}/{name.decode()}" for _, name in meant])
    there: dict[int, tuple[bytes, Any]] = {}
    for (number, name), info in zip(meant, infos, strict=True):
        if _is_there(info):
            there.setdefault(number, (name, info))
    for number, each in enumerate(names):
        name, info = there.get(number, (each[0], None))
        path = place.path(text_bytes(folder) + b"/" + name)
        if any(part.startswith(b".") for part in name.split(b"/")):
            found.skip(root, name, path, "hidden")
        elif info is None:
            found.add(root, name, path, None, None)
        elif info.is_file:
            found.add(root, name, path, info.size, info.mtime_ns)
        else:
            found.skip(root, name, path, "folder")
    return len(there)


def _is_text(name: bytes) -> bool:
    """Keys of objects are UTF-8; other names cannot be asked for."""
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
