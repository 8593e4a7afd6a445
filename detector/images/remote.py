"""Files that only a URI names (``s3://``, ``gs://`` …): fetched by the parent, some ahead, under the same limits."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass

from detector.images.pixels import DecodeLimits, too_many_bytes
from detector.uris import filesystem, is_uri

_NUM_AHEAD = 4  # each may hold ``max_bytes``; one picture's latency hides behind three others' decoding


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A remote file's bytes, or why there are none (``error`` is a code of the contract's list)."""

    data: bytes = b""
    num_bytes: int | None = None
    modified_ns: int | None = None
    error: str | None = None
    message: str | None = None


def read_ahead(paths: Iterable[bytes], limits: DecodeLimits) -> Iterator[tuple[bytes, Fetched | None]]:
    """Each path with what was fetched for it: None for a local path, which the child opens itself and just in time."""
    queue: deque[tuple[bytes, Future[Fetched] | None]] = deque()
    pool: ThreadPoolExecutor | None = None
    try:
        for path in paths:
            future = None
            if b"://" in path and is_uri(os.fsdecode(path)):
                pool = pool or ThreadPoolExecutor(_NUM_AHEAD, thread_name_prefix="fetch")
                future = pool.submit(fetch, path, limits)
            queue.append((path, future))
            while queue and (queue[0][1] is None or len(queue) > _NUM_AHEAD):
                yield _settled(queue.popleft(), limits)
        while queue:
            yield _settled(queue.popleft(), limits)
    finally:
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)


def _settled(item: tuple[bytes, Future[Fetched] | None], limits: DecodeLimits) -> tuple[bytes, Fetched | None]:
    path, future = item
    if future is None:
        return path, None
    try:
        return path, future.result(timeout=limits.timeout_s)
    except FutureTimeoutError:
        future.cancel()
        return path, Fetched(error="timeout", message=f"not fetched within {limits.timeout_s:g} s")


def fetch(path: bytes, limits: DecodeLimits) -> Fetched:
    """Read one remote file whole. Errors come back as data."""
    from pyarrow import fs

    try:
        files, key = filesystem(path.decode())
        info = files.get_file_info(key)
        if info.type == fs.FileType.NotFound:
            return Fetched(error="vanished", message="the object was listed and is gone")
        if info.type != fs.FileType.File:
            return Fetched(error="unreadable", message="no plain object")
        if info.size > limits.max_bytes:
            return Fetched(error="too_large", message=too_many_bytes(info.size, limits).message, num_bytes=info.size)
        with files.open_input_stream(key) as stream:
            data = stream.read(info.size + 1)  # one more, so that an object which grew shows
    except FileNotFoundError:
        return Fetched(error="vanished", message="the object was listed and is gone")
    except MemoryError:
        return Fetched(error="out_of_memory", message="the object does not fit into memory")
    except Exception as error:  # pyarrow raises OSError, ArrowInvalid, UnicodeDecodeError …
        return Fetched(error="unreadable", message=f"cannot be fetched: {error}"[:300])
    if len(data) != info.size:
        return Fetched(error="unreadable", message="the object changed while it was read; the next run reads it again")
    return Fetched(data=data, num_bytes=len(data), modified_ns=info.mtime_ns)
