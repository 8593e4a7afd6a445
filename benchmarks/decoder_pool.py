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
    """Processes that decode and resize into shared batches of uint8 [batch_size, 3, h, w].

    With ``leave_jpegs`` they only check the files, for a GPU to decode: uint8 [batch_size, bytes of the longest file], and
    ``lengths`` says how long each is.
    """

    def __init__(
        self,
        paths: list[str],
        transform: EvaluationTransform,
        *,
        size: int,
        batch_size: int,
        num_batches: int,
        leave_jpegs: bool = False,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        row = (max(map(os.path.getsize, paths)),) if leave_jpegs else (3, *transform.input_size)
        shape = (num_batches, batch_size, *row)
        memory, lengths = context.RawArray("B", int(np.prod(shape))), context.RawArray("q", num_batches * batch_size)
        self.batches = np.frombuffer(memory, dtype=np.uint8).reshape(shape)
        self.lengths = np.frombuffer(lengths, dtype=np.int64).reshape(shape[:2])
        self._jobs, self._done = context.Queue(), context.Queue()
        args = (paths, transform, memory, lengths, shape, leave_jpegs, self._jobs, self._done)
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
    paths: list[str],
    transform: EvaluationTransform,
    memory: Any,
    lengths: Any,
    shape: tuple[int, ...],
    leave_jpegs: bool,
    jobs: Any,
    done: Any,
) -> None:
    """A decoding process's life."""
    import torch

    from detector.images.decoding import Decoder
    from detector.images.pixels import DecodeLimits

    torch.set_num_threads(1)
    batches = np.frombuffer(memory, dtype=np.uint8).reshape(shape)
    all_lengths = np.frombuffer(lengths, dtype=np.int64).reshape(shape[:2])
    with Decoder(DecodeLimits(), leave_jpegs=leave_jpegs) as decoder:
        for _ in decoder.decode([os.fsencode(paths[0])]):  # its child process has started
            pass
        done.put((-1, 0))
        while (job := jobs.get()) is not None:
            batch, start, count, first = job
            wanted = [os.fsencode(paths[(first + row) % len(paths)]) for row in range(count)]
            for row, picture in enumerate(decoder.decode(wanted)):
                if leave_jpegs:
                    assert picture.encoded is not None, picture.message
                    all_lengths[batch, start + row] = len(picture.encoded)
                    batches[batch, start + row, : len(picture.encoded)] = picture.encoded
                else:
                    assert picture.pixels is not None, picture.message
                    batches[batch, start + row] = transform.resize(picture.pixels).numpy()
            done.put((batch, count))
