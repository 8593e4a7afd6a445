"""``--decode gpu``: JPEG files that the decoding stage left as they are become the model's input, on the GPU's side."""

import threading
from collections.abc import Iterator
from copy import copy
from dataclasses import replace

import numpy as np
import pyarrow as pa

from detector.images.decoding import Decoded, Decoder
from detector.images.pixels import DecodeLimits
from detector.images.transforms import EvaluationTransform, ShapeError
from detector.models.gpu_jpeg import GpuJpegDecoder
from detector.scoring.rows import MODEL_FAILED, pixel_column, pixel_rows

# What the decoding stage adds for such a file: its bytes, and the EXIF orientation (1 to 8) to show it with.
COLUMNS = (("encoded", pa.large_binary()), ("turn", pa.int8()))
_NEEDED = ["encoded", "turn", "width", "height"]


class JpegFinisher:
    """Makes pixels of a decoded table's column ``encoded``: on the GPU, or where that refuses a file, in a protected child.

    Threads may share it.
    """

    def __init__(self, transform: EvaluationTransform, limits: DecodeLimits, *, gpu: GpuJpegDecoder | None = None) -> None:
        self._transform, self._limits, self._lock = transform, limits, threading.Lock()
        self._gpu = gpu or GpuJpegDecoder(transform)
        self._cpu: Decoder | None = None

    def __call__(self, decoded: pa.Table) -> pa.Table:
        """The table without the columns of :data:`COLUMNS`; where a file stood there are now pixels, or an error."""
        rows = np.flatnonzero(decoded["encoded"].is_valid().to_numpy())
        plain = decoded.drop_columns([name for name, _ in COLUMNS])
        if not len(rows):
            return plain
        pixels = pixel_rows(decoded["pixels"]).copy()
        errors: dict[int, Decoded] = {}
        for row, outcome in zip(rows.tolist(), self._outcomes(decoded.select(_NEEDED).take(pa.array(rows))), strict=True):
            if isinstance(outcome, np.ndarray):
                pixels[row] = outcome.reshape(-1)
            else:
                errors[row] = outcome
        return _with_errors(plain.set_column(plain.column_names.index("pixels"), "pixels", pixel_column(pixels)), errors)

    def _outcomes(self, left: pa.Table) -> Iterator[np.ndarray | Decoded]:
        """For each file the model's input, uint8 [3, h, w], or an error."""
        files = left["encoded"].to_pylist()
        sizes = [width * height for width, height in zip(left["width"].to_pylist(), left["height"].to_pylist(), strict=True)]
        found = self._gpu.pictures(files, left["turn"].to_pylist(), sizes)
        elsewhere = iter(self._on_cpu([file for file, picture in zip(files, found, strict=True) if picture is None]))
        for picture in found:
            if picture is None:
                yield next(elsewhere)
            elif isinstance(picture, MemoryError):
                yield Decoded(error=MODEL_FAILED, message=str(picture))
            else:
                yield picture

    def _on_cpu(self, files: list[bytes]) -> list[np.ndarray | Decoded]:
        if not files:
            return []
        with self._lock:
            self._cpu = self._cpu or Decoder(self._limits)
            return [copy(resized(picture, self._transform)) for picture in self._cpu.decode_data(files)]

    def close(self) -> None:
        """End the child process, if there is one."""
        if self._cpu is not None:
            self._cpu.close()


def resized(picture: Decoded, transform: EvaluationTransform) -> np.ndarray | Decoded:
    """The model's input of a decoded picture, uint8 [3, h, w], or why there is none."""
    if picture.pixels is None:
        return picture
    try:
        return transform.resize(picture.pixels).numpy()
    except ShapeError as error:
        return replace(picture, error="too_large", message=str(error), pixels=None)


def _with_errors(table: pa.Table, errors: dict[int, Decoded]) -> pa.Table:
    """The table with code and message of the rows in ``errors``; what is not decoded has no size and no format."""
    for name in ("error", "message", "width", "height", "format") if errors else ():
        values = table[name].to_pylist()
        for row, found in errors.items():
            values[row] = getattr(found, name)
        column = pa.array(values, table.schema.field(name).type)
        table = table.set_column(table.column_names.index(name), name, column)
    return table
