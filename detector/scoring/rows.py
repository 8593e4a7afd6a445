"""The columns of a scored row, the closed list of error codes, and which errors may pass."""

import numpy as np
import pyarrow as pa

MODEL_FAILED = "model_failed"

ERROR_CODES = (
    "empty",
    "not_an_image",
    "unsupported_format",
    "truncated",
    "corrupt",
    "too_large",
    "unreadable",
    "vanished",
    "timeout",
    "out_of_memory",
    "decoder_crashed",
    MODEL_FAILED,
)

# What another attempt may cure; everything else follows from the bytes and the decoder, and is not tried again.
PASSING_ERRORS = ("unreadable", "vanished", "timeout", "out_of_memory", "decoder_crashed", MODEL_FAILED)

# What the decoder reports of a picture; the order is that of the published file.
FACTS = (
    ("error", pa.string()),
    ("message", pa.string()),
    ("sha256", pa.string()),
    ("bytes", pa.int64()),
    ("modified", pa.timestamp("ns", "UTC")),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("format", pa.string()),
)

PARTS_SCHEMA = pa.schema(
    [
        pa.field("filename", pa.string(), nullable=False),
        pa.field("label", pa.int8()),
        pa.field("score", pa.float32()),
        pa.field("p_ai", pa.float32()),
        *(pa.field(name, kind) for name, kind in FACTS),
        pa.field("model", pa.string(), nullable=False),
        pa.field("run", pa.string(), nullable=False),
        pa.field("scored_at", pa.timestamp("us", "UTC"), nullable=False),
    ]
)

SUMMARY_SCHEMA = pa.schema([("part", pa.string()), ("rows", pa.int64()), ("scored", pa.int64()), ("failed", pa.int64())])


def one_chunk(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column as one contiguous array; copied only where it has several chunks."""
    if isinstance(column, pa.Array):
        return column
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def pixel_rows(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Fixed-size binary of width K → uint8 [N, K], Arrow's own memory where it is one chunk; null rows hold anything."""
    array = one_chunk(column)
    width = array.type.byte_width
    flat = np.frombuffer(array.buffers()[1], dtype=np.uint8)
    return flat[array.offset * width : (array.offset + len(array)) * width].reshape(len(array), width)


def pixel_column(pixels: np.ndarray, valid: np.ndarray | None = None) -> pa.Array:
    """uint8 [N, K] → fixed-size binary of width K, without a copy; rows that are not ``valid`` (bool [N]) are null."""
    mask = None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little").tobytes())
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(pixels.shape[1]), len(pixels), [mask, pa.py_buffer(pixels)])
