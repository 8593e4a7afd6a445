"""What benchmarks.gpu feeds the model with: pictures that a pool has decoded, or files that the GPU decodes itself."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

import numpy as np

from benchmarks.decoder_pool import DecoderPool
from detector.images.pixels import DecodeLimits, decode_bytes, leave_encoded
from detector.images.transforms import EvaluationTransform
from detector.models.gpu_jpeg import GpuJpegDecoder

if TYPE_CHECKING:
    import torch


class Feed(Protocol):
    """Where the model's input comes from."""

    def run(self, count: int) -> Iterator[np.ndarray]:
        """Batches of uint8 [n, 3, h, w], ``count`` pictures in all; each is valid until the next is drawn."""


class PoolFeed:
    """The pool's own batches."""

    def __init__(self, pool: DecoderPool) -> None:
        self._pool = pool

    def run(self, count: int) -> Iterator[np.ndarray]:
        """As :meth:`Feed.run`."""
        return (self._pool.batches[batch, :rows] for batch, rows in self._pool.run(count))


class GpuFeed:
    """The pool's files, decoded and resized by the GPU in a thread, one batch ahead of the model."""

    def __init__(self, pool: DecoderPool, gpu: GpuJpegDecoder) -> None:
        self._pool, self._gpu = pool, gpu

    def run(self, count: int) -> Iterator[np.ndarray]:
        """As :meth:`Feed.run`."""
        with ThreadPoolExecutor(1) as thread:
            ahead = None
            for batch, rows in self._pool.run(count):
                lengths = self._pool.lengths[batch, :rows]
                files = [self._pool.batches[batch, row, :length].tobytes() for row, length in enumerate(lengths)]
                begun = thread.submit(self._decode, files)
                if ahead is not None:
                    yield ahead.result()
                ahead = begun
            if ahead is not None:
                yield ahead.result()

    def _decode(self, files: list[bytes]) -> np.ndarray:
        pictures = self._gpu.pictures(files, [1] * len(files), [2**20] * len(files))
        assert all(isinstance(picture, np.ndarray) for picture in pictures)
        return np.stack(pictures)  # type: ignore[arg-type]


def stand_in(files: "list[torch.Tensor]") -> "list[torch.Tensor]":
    """torchvision's CPU decoder, to try the code where there is no GPU."""
    from torchvision.io import ImageReadMode, decode_jpeg

    return [decode_jpeg(file, mode=ImageReadMode.RGB) for file in files]


def gap(paths: list[str], transform: EvaluationTransform, gpu: GpuJpegDecoder) -> tuple[float, int]:
    """Mean and largest difference, in grey levels, between what the GPU and what the CPU makes of files."""
    limits, gaps = DecodeLimits(), []
    for path in paths:
        with open(path, "rb") as file:
            data = file.read()
        found = leave_encoded(data, limits)
        assert found is not None, f"{path} is no JPEG for a GPU"
        (picture,) = gpu.pictures([data], [found.turn], [found.width * found.height])
        assert isinstance(picture, np.ndarray), f"the GPU refuses {path}"
        expected = transform.resize(decode_bytes(data, limits).pixels).numpy()
        gaps.append(np.abs(picture.astype(int) - expected))
    return float(np.mean(gaps)), int(np.max(gaps))
