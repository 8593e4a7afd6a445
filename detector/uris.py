"""Paths that name remote storage: what is one, what may be shown of it, and the file system behind it."""

import functools
import os
import re
from typing import Any
from urllib.parse import SplitResult, quote, unquote_to_bytes, urlsplit

from detector.errors import UsageError

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+)://")
_URI_SAFE = "/%:@!$&'()*+,;=~?[]"


def is_uri(path: str) -> bool:
    """Whether a path names remote storage (``s3://…``, ``gs://…``). ``file://`` does not: see :func:`local_path`."""
    match = _URI.match(path)
    return match is not None and match[1].lower() != "file"


def local_path(path: str) -> str:
    """The plain path behind ``file:///a%20b``; any other local path as it is.

    Raises:
        UsageError: the URI names another machine.
    """
    match = _URI.match(path)
    if match is None or match[1].lower() != "file":
        return path
    host, slash, rest = path[match.end() :].partition("/")
    if host.lower() not in {"", "localhost"} or not slash:
        raise UsageError(f"{path!r} names a file of another machine: write file:///absolute/path")
    return os.fsdecode(b"/" + unquote_to_bytes(os.fsencode(rest)))


def without_credentials(uri: str) -> str:
    """The URI as it may be shown: without the user part and the query, where keys and tokens stand."""
    parts = _split(uri)
    host = parts.netloc.rpartition("@")[2]
    if not re.fullmatch(r"[^:]*(:\d+)?", host):  # a key with a slash that should have been %2F: the host comes later
        return f"{parts.scheme}://{(host + parts.path).rpartition('@')[2]}"
    return f"{parts.scheme}://{host}{parts.path}"


def shown(text: str) -> str:
    """A path, or a command-line argument with one in it, as it may be shown: a URI without its credentials."""
    match = re.search(r"[A-Za-z][A-Za-z0-9+.\-]+://.+", text, re.DOTALL)
    if match is None or not is_uri(match[0]):
        return text
    return text[: match.start()] + without_credentials(match[0])


def filesystem(uri: str) -> tuple[Any, str]:
    """The ``pyarrow.fs.FileSystem`` of a remote URI, and the path of the URI on it.

    One file system is kept for each bucket and set of options, so that opening a million objects connects once.

    Raises:
        UsageError: the scheme is not known, or the store does not answer.
    """
    parts = _split(uri)
    found, base = _connect(f"{parts.scheme}://{parts.netloc}", parts.query)
    try:
        path = unquote_to_bytes(parts.path).decode()
    except UnicodeDecodeError:
        raise UsageError(f"{without_credentials(uri)!r} is not UTF-8 behind its % escapes") from None
    return found, "/".join(part for part in (base.rstrip("/"), path.strip("/")) if part) or base


def uri_on(uri: str, path: str | bytes) -> str:
    """The URI of another path on the file system of ``uri``: same store, same options, every odd byte escaped."""
    parts = _split(uri)
    origin = f"{parts.scheme}://{parts.netloc}"
    _, base = _connect(origin, parts.query)
    raw = path if isinstance(path, bytes) else path.encode("utf-8", "surrogateescape")
    key = quote(raw[len(base.rstrip("/")) :].strip(b"/"))
    return f"{origin}/{key}?{parts.query}" if parts.query else f"{origin}/{key}"


def _split(uri: str) -> SplitResult:
    """Cut a URI into its parts. A ``#`` belongs to the path: object keys have them, and there are no fragments here."""
    try:
        return urlsplit(quote(uri, safe=_URI_SAFE))
    except ValueError as error:
        raise UsageError(f"the URI {uri.rpartition('@')[2]!r} cannot be read: {error}") from None


@functools.lru_cache(maxsize=64)
def _connect(base: str, query: str) -> tuple[Any, str]:
    import pyarrow as pa
    from pyarrow import fs

    # With delayed opening a small object is one PUT instead of the three requests of a multipart upload.
    delayed = [f"{query}&allow_delayed_open=true".lstrip("&")] if base.startswith("s3://") else []
    for options in [*delayed, query]:
        try:
            found, path = fs.FileSystem.from_uri(f"{base}?{options}" if options else base)
            return found, str(path)
        except pa.ArrowInvalid as error:
            failure: Exception = error
        except (pa.ArrowException, OSError, ImportError, ValueError) as error:
            failure = error
            break
    told = str(failure).replace(base, without_credentials(base)).replace(query or "\0", "…")
    raise UsageError(f"{without_credentials(base)} cannot be opened: {told}; check the URI, the network and the keys")
