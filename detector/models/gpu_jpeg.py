"""JPEG files decoded and resized on a GPU by NVIDIA's nvJPEG, for ``--decode gpu``.

Files come from the protected decoder, which has checked their header, size and end. What nvJPEG makes of damaged data is its
own affair: where it refuses, the caller decodes on the CPU.
"""

import io
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from detector.errors import UsageError
from detector.images.transforms import EvaluationTransform, ShapeError

if TYPE_CHECKING:
    import torch

# Decoded pixels that are on the GPU at once: 3 bytes each, and 12 while they are resized one by one.
_MOST_PIXELS = 256 * 10**6

Outcome = np.ndarray | MemoryError | None


class GpuJpegDecoder:
    """Decodes and resizes JPEG files in batches. Threads may share it.

    Args:
        transform: what pictures are resized with.
        decode: uint8 tensors of files, on the host → RGB uint8 [3, H, W] on the device. It raises RuntimeError, without a
            partial result, if it refuses one of them.
    """

    def __init__(
        self,
        transform: EvaluationTransform,
        *,
        decode: "Callable[[list[torch.Tensor]], list[torch.Tensor]] | None" = None,
    ) -> None:
        self._transform, self._lock = transform, threading.Lock()
        self._decode = decode or NvJpeg()

    def pictures(self, files: Sequence[bytes], turns: Sequence[int], sizes: Sequence[int]) -> list[Outcome]:
        """The model's input for each file: uint8 [3, h, w]; None for one that is to be decoded elsewhere; or why it has none.

        Args:
            files: JPEG files.
            turns: the EXIF orientation (1 to 8) that each is shown with.
            sizes: number of pixels of each.
        """
        found: list[Outcome] = []
        with self._lock:
            for chosen in _chunks(sizes):
                found += self._chunk(files[chosen], turns[chosen])
        return found

    def _chunk(self, files: Sequence[bytes], turns: Sequence[int]) -> list[Outcome]:
        """Halve what is refused, or does not fit, until the one file is found that is to blame."""
        import torch

        try:
            return list(self._resized(files, turns))
        except torch.OutOfMemoryError:
            if len(files) == 1:
                return [MemoryError("the GPU has no memory for decoding it: try a smaller --batch-size")]
        except (RuntimeError, ShapeError):
            if len(files) == 1:
                return [None]
        half = len(files) // 2
        return self._chunk(files[:half], turns[:half]) + self._chunk(files[half:], turns[half:])

    def _resized(self, files: Sequence[bytes], turns: Sequence[int]) -> Iterator[np.ndarray]:
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the bytes are read-only: nothing writes to them
            tensors = [torch.frombuffer(data, dtype=torch.uint8) for data in files]
        decoded = self._decode(tensors)
        resized = [self._transform.resize_tensor(turned(pixels, turn)) for pixels, turn in zip(decoded, turns, strict=True)]
        return iter(torch.stack(resized).cpu().numpy())


class NvJpeg:
    """torchvision's nvJPEG decoder on the current CUDA device, in a stream of its own.

    Raises:
        UsageError: it does not work on this machine.
    """

    def __init__(self) -> None:
        import torch

        self._stream = torch.cuda.Stream()
        try:
            self([torch.frombuffer(_small_jpeg(), dtype=torch.uint8)])
        except RuntimeError as error:
            raise UsageError(f"--decode gpu: nvJPEG does not work here ({str(error).splitlines()[0][:200]})") from None

    def __call__(self, files: "list[torch.Tensor]") -> "list[torch.Tensor]":
        """uint8 [bytes] on the host → RGB uint8 [3, H, W] on the device.

        Raises:
            torch.OutOfMemoryError: there is no memory for them.
            RuntimeError: nvJPEG refuses one of the files.
        """
        import torch
        from torchvision.io import ImageReadMode, decode_jpeg

        # torchvision's decoder writes into memory that work queued on the caller's stream may still read
        # (pytorch/vision#9606): here the caller's stream is one on which nothing is queued.
        self._stream.synchronize()
        try:
            with torch.cuda.stream(self._stream), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # deprecated for torchcodec, whose GPU decoder for pictures is younger
                decoded = decode_jpeg(files, mode=ImageReadMode.RGB, device="cuda")
            self._stream.synchronize()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            _end_if_lost()
            if is_out_of_memory(error):
                raise torch.OutOfMemoryError(str(error)) from None
            raise
        for pixels in decoded:
            pixels.record_stream(torch.cuda.current_stream())
        return decoded


def _small_jpeg() -> bytearray:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "white").save(file, "JPEG")
    return bytearray(file.getvalue())


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torchvision's decoder failed for want of memory; it raises the same plain error whatever the cause was.

    5 and 6 are NVJPEG_STATUS_ALLOCATOR_FAILURE and NVJPEG_STATUS_EXECUTION_FAILED (nvJPEG 12.4, nvjpegStatus_t); 2 to 4 are
    about the file.
    """
    return re.search(r"out of memory|failed: [56]\b", str(error)) is not None


def _end_if_lost() -> None:
    """End the process if its CUDA context is: every later batch would fail, and a new process has a new one."""
    import torch

    try:
        torch.cuda.synchronize()
    except RuntimeError:
        os.abort()


def turned(pixels: "torch.Tensor", turn: int) -> "torch.Tensor":
    """A picture as stored, [3, h, w], as EXIF orientation ``turn`` (Exif 2.32, tag 0x0112) shows it."""
    flips = [axis for axis, turns in ((-2, {3, 4, 6, 7}), (-1, {2, 3, 7, 8})) if turn in turns]
    shown = pixels.flip(flips) if flips else pixels
    return shown.transpose(-2, -1) if turn >= 5 else shown


def _chunks(sizes: Sequence[int]) -> Iterator[slice]:
    """Runs of pictures that have at most ``_MOST_PIXELS`` together."""
    start, total = 0, 0
    for index, size in enumerate(sizes):
        if index > start and total + size > _MOST_PIXELS:
            yield slice(start, index)
            start, total = index, 0
        total += size
    if start < len(sizes):
        yield slice(start, len(sizes))
