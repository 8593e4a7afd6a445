"""The decoding child: reads paths from stdin, decodes into shared memory, answers on stdout.

Started by :class:`detector.images.decoding.Decoder` as ``python -P -m detector.images.decoder_child CONFIG``; no command
of its own. :mod:`detector.images.decoder_protocol` holds what the two say to each other. It imports no torch: 25 MB and
0.1 s to start. Whatever a picture does to this process, the parent notices and starts another.
"""

import contextlib
import hashlib
import json
import mmap
import os
import resource
import select
import signal
import stat
import sys
from typing import Any

import numpy as np
from PIL import AvifImagePlugin, Image

from detector.images import formats
from detector.images.decoder_protocol import READY, Reply, Request, pack_reply, unpack_request
from detector.images.fast import Sides
from detector.images.pixels import DecodeError, DecodeLimits, EncodedJpeg, decode_into, leave_encoded, too_many_bytes

ORPHAN_CHECK_S = 2.0
ALARM_GRACE_S = 2.0  # the parent's own limit comes first; the alarm is for a child whose parent is gone
SLOT_GRAIN = 4 * 2**20
SLOT_KEEP = 64 * 2**20  # a slot's pages above this are given back after a picture that needed them
_PEAK_BYTES_PER_PIXEL = 20
_PAGE = mmap.PAGESIZE


class MemoryLimit:
    """RLIMIT_AS at the idle address space + ``memory_bytes`` + what of the shared slots is mapped.

    The slots are the parent's output, not the decoder's appetite: a picture of 178 MP fills 537 MB of slot, which would
    leave half of 1 GiB for decoding it, and a slot that stays mapped would take from the pictures after it.
    """

    def __init__(self, memory_bytes: int, reserve: int) -> None:
        self._soft = _address_space() + memory_bytes
        ceiling = resource.getrlimit(resource.RLIMIT_AS)[1]
        wanted = self._soft + reserve
        self._hard = wanted if ceiling == resource.RLIM_INFINITY else min(wanted, ceiling)
        self.add(0)

    def add(self, num_bytes: int) -> None:
        """Allow ``num_bytes`` more (or fewer) of shared mapping."""
        self._soft += num_bytes
        # Where there is no /proc the address space is unknown (macOS also refuses the limit): the wall clock remains.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (min(self._soft, self._hard), self._hard))


def _address_space() -> int:
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[0]) * _PAGE
    except OSError:
        return resource.RLIM_INFINITY


class Slot:
    """One of the two shared buffers that pictures are decoded into; its file only ever grows (the parent sealed it)."""

    def __init__(self, descriptor: int, limit: MemoryLimit) -> None:
        self._descriptor, self._limit, self._map, self._used = descriptor, limit, mmap.mmap(-1, 1), 1

    def read(self, size: int) -> bytes:
        """The first ``size`` bytes: the content of a remote file, put there by the parent."""
        return os.pread(self._descriptor, size, 0)

    def allocate(self, height: int, width: int) -> np.ndarray:
        """A uint8 [height, width, 3] view of the slot, which grows if it must.

        Raises:
            DecodeError: ``out_of_memory`` if the shared memory cannot grow.
        """
        size = height * width * 3
        try:
            self._give_back(size)
            if size > len(self._map):
                self._grow(-(-size // SLOT_GRAIN) * SLOT_GRAIN)
        except (OSError, ValueError, MemoryError) as error:
            raise DecodeError("out_of_memory", f"no shared memory for {width} × {height} pixels ({error})") from None
        self._used = size
        return np.frombuffer(self._map, np.uint8, size).reshape(height, width, 3)

    def _grow(self, size: int) -> None:
        if os.fstat(self._descriptor).st_size < size:
            os.ftruncate(self._descriptor, size)
        self._limit.add(size - len(self._map))
        self._map = mmap.mmap(self._descriptor, size)

    def _give_back(self, size: int) -> None:
        """Punch a hole rather than truncate: a stale view in the parent then reads zeros instead of dying of SIGBUS."""
        if self._used > SLOT_KEEP >= size and hasattr(mmap, "MADV_REMOVE"):
            self._map.madvise(mmap.MADV_REMOVE, SLOT_KEEP, len(self._map) - SLOT_KEEP)


def read_file(path: bytes, limits: DecodeLimits, facts: dict[str, Any]) -> bytes:
    """The bytes of a regular file; its size and modification time go into ``facts`` as soon as they are known.

    Raises:
        DecodeError: ``vanished``, ``unreadable`` (also: no regular file, or changed while it was read), ``too_large``.
    """
    try:
        _require_regular(os.lstat(path))  # before opening: opening some devices has effects
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY)
        try:
            before = os.fstat(descriptor)
            _require_regular(before)
            facts.update(num_bytes=before.st_size, modified_ns=before.st_mtime_ns)
            if before.st_size > limits.max_bytes:
                raise too_many_bytes(before.st_size, limits)
            data = _read_all(descriptor, before.st_size + 1)
            after = os.fstat(descriptor)
        finally:
            os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError):
        raise DecodeError("vanished", "the file was listed and is gone") from None
    except (OSError, ValueError) as error:
        raise DecodeError("unreadable", f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if (before.st_size, before.st_mtime_ns, before.st_size) != (after.st_size, after.st_mtime_ns, len(data)):
        raise DecodeError("unreadable", "the file changed while it was read; the next run reads it again")
    return data


def _require_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError("unreadable", f"no regular file (mode {stat.filemode(status.st_mode)})")


def _read_all(descriptor: int, most: int) -> bytes:
    data = os.read(descriptor, most)
    parts = [data]
    while data and most > len(data):
        most -= len(data)
        data = os.read(descriptor, most)
        parts.append(data)
    return parts[0] if len(parts) <= 2 and not data else b"".join(parts)


def answer(
    request: Request, slots: list[Slot], limits: DecodeLimits, at_least: Sides | None = None, *, leave_jpegs: bool = False
) -> Reply:
    """Decode one request into its slot, or put the file itself there; every outcome is a reply."""
    facts: dict[str, Any] = {"num_bytes": 0, "modified_ns": 0} if request.size >= 0 else {}  # the parent knows a remote file's
    slot, data = slots[request.slot], b""
    try:
        data = slot.read(request.size) if request.size >= 0 else read_file(request.path, limits, facts)
        facts["sha256"] = hashlib.sha256(data).hexdigest()
        left = leave_encoded(data, limits) if leave_jpegs else None
        picture = left or decode_into(data, limits, slot.allocate, at_least)
        if left:
            slot.allocate(1, -(-len(data) // 3)).reshape(-1)[: len(data)] = np.frombuffer(data, np.uint8)
    except DecodeError as error:
        error = _or_too_large(error, data, limits)
        return Reply(request.number, error.code, error.message, **facts)
    except MemoryError:
        return Reply(request.number, "out_of_memory", "reading needs more memory than the limit allows", **facts)
    facts |= {"width": picture.width, "height": picture.height, "format": picture.format}
    if isinstance(picture, EncodedJpeg):
        return Reply(request.number, turn=picture.turn, **facts)
    rows, columns, _ = picture.pixels.shape
    return Reply(request.number, shape=(rows, columns), **facts)


def _or_too_large(error: DecodeError, data: bytes, limits: DecodeLimits) -> DecodeError:
    """The WebP and AVIF libraries report a failed allocation as damaged data: say so for large ones.

    Measured with Pillow 13 on 36 MP: both need 12 to 17 bytes a pixel at their peak.
    """
    name = formats.allowed_format(data) if error.code in {"corrupt", "truncated"} else None
    if name is None or formats.stated_pixels(data, name) * _PEAK_BYTES_PER_PIXEL < limits.memory_bytes:
        return error
    return DecodeError("out_of_memory", f"the memory limit is too small for a {name} of this size, or its data are damaged")


class Requests:
    """What comes on stdin; ends at EOF, or when the parent is gone though another process still holds its end open."""

    def __init__(self, parent: int) -> None:
        self._parent, self._buffer, self._poll = parent, b"", select.poll()
        self._poll.register(0, select.POLLIN)

    def next(self) -> Request | None:
        """The next request, or None when the child should end."""
        while (found := unpack_request(self._buffer)) is None:
            if not self._poll.poll(ORPHAN_CHECK_S * 1000):
                if os.getppid() != self._parent:
                    return None
                continue
            data = os.read(0, 65536)
            if not data:
                return None
            self._buffer += data
        request, self._buffer = found
        return request


def _quiet() -> int:
    """Keep the reply pipe to ourselves: C libraries print warnings about strangers' files to stdout and stderr."""
    replies = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.close(null)
    return replies


def main(config: dict[str, Any]) -> None:
    """Serve until stdin ends."""
    limits = DecodeLimits(**config["limits"])
    limit = MemoryLimit(limits.memory_bytes, 2 * (limits.max_pixels * 3 + SLOT_GRAIN))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the kernel ends us even inside a C library
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    Image.MAX_IMAGE_PIXELS = limits.max_pixels // 2  # Pillow refuses at twice this, frame by frame
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each thread would take address space; one picture, one core
    slots = [Slot(descriptor, limit) for descriptor in config["slots"]]
    at_least = tuple(config["at_least"]) if config["at_least"] else None
    requests, replies = Requests(config["parent"]), _quiet()
    with contextlib.suppress(BrokenPipeError):
        os.write(replies, READY)
        while (request := requests.next()) is not None:
            signal.setitimer(signal.ITIMER_REAL, limits.timeout_s + ALARM_GRACE_S)
            reply = answer(request, slots, limits, at_least, leave_jpegs=config["leave_jpegs"])
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.write(replies, pack_reply(reply))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    os._exit(0)
