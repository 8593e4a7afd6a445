"""Protected decoders in a pool of processes that fill shared batches: what feeds a GPU without Ray."""

import contextlib
import multiprocessing
import os
import queue
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from detector.images.transforms import EvaluationTransform

_CHUNK = 16  # pictures that a decoding process takes at a time


class DecoderPool:
    """Processes that decode and resize into shared batches of uint8 [batch_size, 3, h, w]."""

    def __init__(
        self, paths: list[str], transform: EvaluationTransform, *, size: int, batch_size: int, num_batches: int
    ) -> None:
        context = multiprocessing.get_context("spawn")
        shape = (num_batches, batch_size, 3, *transform.input_size)
        memory = context.RawArray("B", int(np.prod(shape)))
        self.batches = np.frombuffer(memory, dtype=np.uint8).reshape(shape)
        self._jobs, self._done = context.Queue(), context.Queue()
        args = (paths, transform, memory, shape, self._jobs, self._done)
        self._processes = [context.Process(target=_decode, args=args, daemon=True) for _ in range(size)]
        for process in self._processes:
            process.start()
        for _ in self._processes:  # each says once that it is ready
            self._next_done()

    def run(self, count: int) -> Iterator[tuple[int, int]]:
        """Decode ``count`` pictures: (number of a batch, pictures in it); drawing the next lets the batch be filled again."""
        size = self.batches.shape[1]
        free, given, finished = deque(range(len(self.batches))), 0, 0
        missing: dict[int, list[int]] = {}  # batch → pictures still being decoded, pictures in all
        while finished < count:
            while free and given < count:
                batch, rows = free.popleft(), min(size, count - given)
                missing[batch] = [rows, rows]
                for start in range(0, rows, _CHUNK):
                    self._jobs.put((batch, start, min(_CHUNK, rows - start), given + start))
                given += rows
            batch, rows = self._next_done()
            missing[batch][0] -= rows
            if missing[batch][0] == 0:
                finished += missing[batch][1]
                yield batch, missing[batch][1]
                free.append(batch)

    def _next_done(self) -> tuple[int, int]:
        while True:
            with contextlib.suppress(queue.Empty):
                return self._done.get(timeout=5)
            dead = [process.exitcode for process in self._processes if not process.is_alive()]
            if dead:
                raise RuntimeError(f"a decoding process ended with {dead[0]}")

    def close(self) -> None:
        """End the processes."""
        for _ in self._processes:
            self._jobs.put(None)
        for process in self._processes:
            process.join(10)


def _decode(
    paths: list[str], transform: EvaluationTransform, memory: Any, shape: tuple[int, ...], jobs: Any, done: Any
) -> None:
    """A decoding process's life."""
    import torch

    from detector.images.decoding import Decoder
    from detector.images.pixels import DecodeLimits

    torch.set_num_threads(1)
    batches = np.frombuffer(memory, dtype=np.uint8).reshape(shape)
    with Decoder(DecodeLimits()) as decoder:
        for _ in decoder.decode([os.fsencode(paths[0])]):  # its child process has started
            pass
        done.put((-1, 0))
        while (job := jobs.get()) is not None:
            batch, start, count, first = job
            wanted = [os.fsencode(paths[(first + row) % len(paths)]) for row in range(count)]
            for row, picture in enumerate(decoder.decode(wanted)):
                assert picture.pixels is not None, picture.message
                batches[batch, start + row] = transform.resize(picture.pixels).numpy()
            done.put((batch, count))
