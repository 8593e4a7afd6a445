"""Protected decoding: a child process that strangers' files may kill, hang or fill, at the cost of one row.

The child (:mod:`detector.images.decoder_child`) opens the path itself and decodes into one of two shared slots; the
parent gets a numpy view without a copy. While the caller works on one picture the child decodes the next. Every path
yields exactly one :class:`Decoded`, in order, whatever the file does.
"""

import mmap
import os
import time
from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from detector.errors import JobError
from detector.images.child_process import ChildProcess, new_slot
from detector.images.decoder_protocol import Reply
from detector.images.fast import Sides
from detector.images.pixels import DecodeLimits
from detector.images.remote import Fetched, read_ahead

# Deaths in a row before the child said that it is ready: of its own accord, or killed from outside.
_MAX_STARTS, _MAX_STARTS_KILLED = 3, 10
_CHILD_IS_LOST = {"timeout", "decoder_crashed"}
_MAX_TRIES = 2  # a picture whose child died or ran out of memory is tried once more, on a fresh child


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """What became of one file: ``pixels`` or ``encoded`` is set, or ``error`` is a code of the contract's list.

    ``pixels`` is uint8 [height, width, 3], RGB, orientation applied: a view into shared memory that is valid only until
    the next item is drawn. Where it was decoded at a smaller scale, ``width`` and ``height`` are still those of the file.
    ``encoded``, uint8 [bytes] and as short-lived, is a JPEG file left as it is (``leave_jpegs``), to be shown with EXIF
    orientation ``turn``. ``num_bytes``, ``modified_ns`` and ``sha256`` are of the bytes that were decoded, as far as they were
    read.
    """

    error: str | None = None
    message: str | None = None
    sha256: str | None = None
    num_bytes: int | None = None
    modified_ns: int | None = None
    width: int | None = None
    height: int | None = None
    format: str | None = None
    pixels: np.ndarray | None = None
    encoded: np.ndarray | None = None
    turn: int = 1


@dataclass(kw_only=True, slots=True)
class _Awaited:
    """One file on its way: in the child, or queued before it."""

    number: int
    slot: int
    path: bytes
    fetched: Fetched | None
    tries: int = 0


class _Slot:
    """The parent's side of a shared buffer. Its file is sealed against shrinking, so that no view can fault."""

    def __init__(self) -> None:
        self.descriptor = new_slot()
        self._bytes = np.empty(0, np.uint8)

    def view(self, height: int, width: int) -> np.ndarray:
        """uint8 [height, width, 3]. Raises ValueError if the slot does not hold so much."""
        size = height * width * 3
        if size > len(self._bytes) or size < 1:
            self._bytes = self._mapped(size)
        return self._bytes[:size].reshape(height, width, 3)

    def write(self, data: bytes) -> None:
        """Put a remote file's bytes where the child reads them."""
        if os.fstat(self.descriptor).st_size < len(data):
            os.ftruncate(self.descriptor, len(data))
        position, view = 0, memoryview(data)
        while position < len(view):
            position += os.pwrite(self.descriptor, view[position:], position)

    def _mapped(self, size: int) -> np.ndarray:
        capacity = os.fstat(self.descriptor).st_size
        if capacity < size or size < 1:
            raise ValueError(f"a slot of {capacity} bytes cannot hold {size}")
        return np.frombuffer(mmap.mmap(self.descriptor, capacity), np.uint8)  # views keep the mapping alive

    def close(self) -> None:
        """Give the descriptor back; the memory goes with the last view."""
        os.close(self.descriptor)
        self._bytes = np.empty(0, np.uint8)


class Decoder:
    """A standing decoder process and the two slots that it shares with this one. One thread at a time.

    ``at_least``: height and width that large JPEGs keep when they are decoded at a smaller scale (see
    :func:`detector.images.pixels.decode_bytes`); None decodes everything in full. ``leave_jpegs``: check plain JPEGs and hand
    them on as they are, for a GPU to decode.

    Raises (from ``decode``):
        JobError: the child does not start at all.
    """

    def __init__(self, limits: DecodeLimits | None = None, *, at_least: Sides | None = None, leave_jpegs: bool = False) -> None:
        self._limits, self._at_least, self.leave_jpegs = limits or DecodeLimits(), at_least, leave_jpegs
        self._slots = [_Slot(), _Slot()]
        self._child: ChildProcess | None = None
        self._window: deque[_Awaited] = deque()
        self._number = 0
        self._active = 0  # number of the decode() call that owns the window
        self._clock = 0.0  # when the child began on the head of the window, as far as it shows
        self._failed_starts = 0

    def decode(self, paths: Iterable[bytes]) -> Generator[Decoded, None, None]:
        """Decode files in order: one :class:`Decoded` per path, never an exception for a file's sake.

        Args:
            paths: absolute paths as bytes, or URIs in UTF-8 (read through pyarrow.fs in this process, some ahead).
        """
        return self._run(read_ahead(paths, self._limits))

    def decode_data(self, files: Iterable[bytes]) -> Generator[Decoded, None, None]:
        """As :meth:`decode`, for files whose bytes are at hand."""
        return self._run((b"", Fetched(data=data)) for data in files)

    def _run(self, files: Iterable[tuple[bytes, Fetched | None]]) -> Generator[Decoded, None, None]:
        self._abandon()
        self._active += 1
        mine = self._active
        try:
            for path, fetched in files:
                if isinstance(fetched, Fetched) and fetched.error:
                    while self._window:
                        yield self._receive(mine)
                    yield _unfetched(fetched)
                    continue
                self._send(path, fetched)
                if len(self._window) == len(self._slots):
                    yield self._receive(mine)
            while self._window:
                yield self._receive(mine)
        finally:
            if mine == self._active:
                self._abandon()

    def close(self) -> None:
        """End the child and give the shared memory back."""
        self._active += 1
        self._window.clear()
        self._stop()
        for slot in self._slots:
            slot.close()
        self._slots = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _send(self, path: bytes, fetched: Fetched | None) -> None:
        if not self._slots:
            raise RuntimeError("this Decoder is closed")
        if self._child is None or not (self._window or self._child.alive()):
            self._restart()  # it died while it had nothing to do: no picture's fault
        request = _Awaited(number=self._number, slot=self._number % len(self._slots), path=path, fetched=fetched)
        self._number += 1
        self._window.append(request)
        if len(self._window) == 1:
            self._clock = time.monotonic()
        self._submit(request)

    def _submit(self, awaited: _Awaited) -> None:
        assert self._child is not None
        size, path = -1, awaited.path
        if awaited.fetched is not None:
            size, path = len(awaited.fetched.data), b""
            self._slots[awaited.slot].write(awaited.fetched.data)
        self._child.send(awaited.number, awaited.slot, size, path)  # a dead child shows as the end of its replies

    def _receive(self, mine: int) -> Decoded:
        """The outcome of the head of the window."""
        if mine != self._active:
            raise RuntimeError("another decode() call has begun on this Decoder")
        head = self._window[0]
        while (outcome := self._outcome(head)) is None:
            self._restart()
        self._window.popleft()
        self._clock = time.monotonic()
        if outcome.error in _CHILD_IS_LOST:
            self._restart()  # at once: it starts while the caller handles this row
        return outcome

    def _outcome(self, head: _Awaited) -> Decoded | None:
        """Wait for the child; None if the head is to be tried again on a fresh one."""
        assert self._child is not None
        try:
            reply = self._child.reply(clock=self._clock, limit_s=self._limits.timeout_s)
        except TimeoutError:
            if self._child.ready:
                return self._timed_out()
            reply = None
        if not self._child.ready:
            self._start_failed()
            return None
        self._failed_starts = 0
        decoded = None if reply is None else self._read(head, reply)
        if decoded is None:
            return self._died(head)
        # What earlier pictures left in the child's heap counts too: no picture may harm another's result.
        if decoded.error == "out_of_memory" and self._child.num_replies > 1 and self._again(head):
            return None
        return decoded

    def _timed_out(self) -> Decoded:
        return Decoded(error="timeout", message=f"not decoded within {self._limits.timeout_s:g} s")

    def _died(self, head: _Awaited) -> Decoded | None:
        """The child is gone, or answers nonsense."""
        assert self._child is not None
        self._child.kill()
        if self._child.rang():
            return self._timed_out()
        if self._again(head):
            return None
        return Decoded(error="decoder_crashed", message=f"the decoder process died of it ({self._child.end()})")

    @staticmethod
    def _again(head: _Awaited) -> bool:
        head.tries += 1
        return head.tries < _MAX_TRIES

    def _start_failed(self) -> None:
        """Try again, but not for ever: it fails for every picture alike."""
        assert self._child is not None
        self._failed_starts += 1
        if self._failed_starts >= (_MAX_STARTS_KILLED if self._child.was_killed() else _MAX_STARTS):
            reason = self._child.complaint() or self._child.end()
            self._abandon()
            raise JobError(f"the decoder process does not start: {reason}")

    def _read(self, head: _Awaited, reply: Reply) -> Decoded | None:
        """Check a reply before it is believed; None if it makes no sense."""
        if reply.number != head.number or (reply.turn and not self._may_be_left(reply)):
            return None
        try:
            size, modified, pixels, encoded = reply.num_bytes, reply.modified_ns, None, None
            if head.fetched is not None:
                size, modified = len(head.fetched.data), head.fetched.modified_ns
            if reply.turn:
                encoded = self._slots[head.slot].view(1, -(-(size or 0) // 3)).reshape(-1)[:size]
            elif not reply.error:
                pixels = self._slots[head.slot].view(*reply.shape)
        except (ValueError, TypeError, OSError):
            return None
        return Decoded(
            error=reply.error, message=reply.message, sha256=reply.sha256, num_bytes=size, modified_ns=modified,
            width=reply.width, height=reply.height, format=reply.format, pixels=pixels, encoded=encoded, turn=reply.turn or 1,
        )  # fmt: skip

    def _may_be_left(self, reply: Reply) -> bool:
        return self.leave_jpegs and reply.error is None and 1 <= reply.turn <= 8

    def _restart(self) -> None:
        """A fresh child that has every request of the window before it."""
        self._stop()
        slots = [slot.descriptor for slot in self._slots]
        self._child = ChildProcess(slots, self._limits, self._at_least, leave_jpegs=self.leave_jpegs)
        self._clock = time.monotonic()
        for request in self._window:
            self._submit(request)

    def _stop(self) -> None:
        if self._child is not None and not self._child.kill():
            # It hangs in the kernel and may yet write: leave it the old slots.
            for slot in self._slots:
                slot.close()
            self._slots = [_Slot() for _ in self._slots]
        self._child = None

    def _abandon(self) -> None:
        """Forget requests that nobody waits for."""
        if self._window:
            self._window.clear()
            self._stop()


def _unfetched(fetched: Fetched) -> Decoded:
    return Decoded(error=fetched.error, message=fetched.message, num_bytes=fetched.num_bytes, modified_ns=fetched.modified_ns)
