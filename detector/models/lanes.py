"""Several batches on their way through a GPU at once: one is filled, one is copied, one is computed.

A lane is a pinned buffer on the host, its copy on the device, and a pinned buffer for the answers. Copies in have a stream of
their own, so that they overlap with the computing of the batch before. The order of everything comes from events; the host
waits only where it reads an answer, or would fill a lane whose batch is not finished.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch

NUM_LANES = 3


class Event(Protocol):
    """A point in a stream."""

    def synchronize(self) -> None:
        """Let the host wait for it."""


class Streams(Protocol):
    """Where work is queued: ``copy`` and ``compute``, each in order, side by side."""

    def queue(self, name: str, work: Callable[[], None], *, after: Event | None = None) -> Event:
        """Queue ``work`` behind ``after``; the event of its end."""

    def drain(self) -> None:
        """Wait for everything, and give unused device memory back."""


class CudaStreams:
    """The two streams of the current CUDA device."""

    def __init__(self) -> None:
        import torch

        # The model's weights were copied on the current stream, so what computes with them stays on it.
        self._streams = {"copy": torch.cuda.Stream(), "compute": torch.cuda.current_stream()}

    def queue(self, name: str, work: Callable[[], None], *, after: Any = None) -> Event:
        """Queue ``work`` behind ``after``; the event of its end."""
        import torch

        stream = self._streams[name]
        if after is not None:
            stream.wait_event(after)
        with torch.cuda.stream(stream):
            work()
        event: Any = torch.cuda.Event(blocking=True)  # the host sleeps while it waits: decoders want the core
        event.record(stream)
        return event

    def drain(self) -> None:
        """Wait for everything, and give unused device memory back."""
        import torch

        torch.cuda.synchronize()
        torch.cuda.empty_cache()


class Ticket:
    """One submitted batch; its result may be fetched later, by any thread."""

    def __init__(self, count: int) -> None:
        self._count, self._lock = count, threading.Lock()
        self._event: Event | None = None
        self._answers: torch.Tensor | None = None
        self._result: np.ndarray | None = None
        self._error: RuntimeError | None = None

    def queued(self, event: Event, answers: "torch.Tensor") -> None:
        """Note when the batch is finished, and where its answers then are."""
        self._event, self._answers = event, answers

    def failed(self, error: RuntimeError) -> None:
        """Note that the batch could not be queued."""
        self._error = error

    def result(self) -> np.ndarray:
        """Wait for the batch: float32 [count].

        Raises:
            RuntimeError: what torch raised for this batch.
        """
        with self._lock:
            if self._result is None and self._error is None:
                assert self._event is not None
                assert self._answers is not None
                try:
                    self._event.synchronize()
                    self._result = self._answers[: self._count].numpy().copy()
                except RuntimeError as error:
                    self._error = error
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result


class _Lane:
    def __init__(self, shape: tuple[int, ...], device: "torch.device") -> None:
        import torch

        pin = device.type == "cuda"
        self.host = torch.zeros(shape, dtype=torch.uint8, pin_memory=pin)
        self.device = torch.empty(shape, dtype=torch.uint8, device=device)  # no fill that a first copy could meet
        self.answers = torch.zeros(shape[0], dtype=torch.float32, pin_memory=pin)
        self.ticket: Ticket | None = None


class Lanes:
    """Lanes in turn. Threads may share them: a batch is filled and queued by one thread at a time.

    Args:
        forward: uint8 [batch_size, 3, h, w] on the device → float32 [batch_size] on the device.
        shape: batch_size, 3, h, w.
        device: where the model is.
        streams: where work is queued.
    """

    def __init__(
        self,
        forward: "Callable[[torch.Tensor], torch.Tensor]",
        *,
        shape: tuple[int, ...],
        device: "torch.device",
        streams: Streams,
    ) -> None:
        self._forward, self._streams, self._lock = forward, streams, threading.Lock()
        self._lanes = [_Lane(shape, device) for _ in range(NUM_LANES)]
        self._turn = 0

    def submit(self, pixels: np.ndarray, rows: np.ndarray) -> Ticket:
        """Queue ``pixels[rows]`` (uint8 [N, 3, h, w], at most a batch); what cannot be queued fails in its own ticket."""
        with self._lock:
            lane = self._lanes[self._turn % NUM_LANES]
            self._turn += 1
            _settle(lane)
            np.take(pixels, rows, axis=0, out=lane.host.numpy()[: len(rows)])
            lane.ticket = Ticket(len(rows))
            with self._memory_retry(lane, lane.ticket):
                self._queue(lane, lane.ticket)
            return lane.ticket

    def _queue(self, lane: _Lane, ticket: Ticket) -> None:
        copied = self._streams.queue("copy", lambda: _copy(lane.device, lane.host))
        ticket.queued(
            self._streams.queue("compute", lambda: _copy(lane.answers, self._forward(lane.device)), after=copied), lane.answers
        )

    @contextlib.contextmanager
    def _memory_retry(self, lane: _Lane, ticket: Ticket) -> Iterator[None]:
        """A batch that finds no memory beside the others is queued once more when they are finished."""
        import torch

        try:
            try:
                yield
            except torch.OutOfMemoryError:
                self._streams.drain()
                self._queue(lane, ticket)
        except RuntimeError as error:
            ticket.failed(error)


def _copy(target: "torch.Tensor", source: "torch.Tensor") -> None:
    target.copy_(source, non_blocking=True)


def _settle(lane: _Lane) -> None:
    """Wait until the lane's last batch is finished and its answers are out of the buffer."""
    if lane.ticket is not None:
        with contextlib.suppress(RuntimeError):  # kept in the ticket for the one who asks
            lane.ticket.result()
