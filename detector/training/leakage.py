"""The same or nearly the same picture in two splits, which makes a test look better than it is.

The same: equal SHA-256. Nearly the same (another format, quality or size): two perceptual hashes of imagehash, 64 and
256 bits of the DCT's sign pattern (Zauner 2010), both close, and tiny colour thumbnails that agree. The thumbnail is there
because flat pictures of any colour have one hash.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

# Bits of 64 and of 256 that may differ: the same picture after JPEG at quality 30 or at half the size stays below these,
# and for unrelated pictures half of all bits differ (128 ± 8 of 256).
MAX_BITS_64 = 10
MAX_BITS_256 = 40
MAX_THUMBNAIL_DIFFERENCE = 8.0  # mean absolute difference, grey levels
_THUMBNAIL = 8
_HASH_BYTES, _THUMBNAIL_BYTES = 8 + 32, _THUMBNAIL * _THUMBNAIL * 3
_BLOCK = 512
SIGNATURES_SCHEMA = pa.schema([("sha256", pa.string()), ("signature", pa.binary(_HASH_BYTES + _THUMBNAIL_BYTES))])


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two pictures that are the same or nearly so: row numbers in the two lists that were compared."""

    first: int
    second: int
    same_bytes: bool


def signature(pixels: np.ndarray) -> bytes:
    """What a picture is recognised by, from uint8 [H, W, 3]: 64 + 256 bits of hash and an 8 × 8 RGB thumbnail, 232 bytes."""
    import imagehash
    from PIL import Image

    picture = Image.fromarray(pixels)
    picture.thumbnail((256, 256), Image.Resampling.BOX)  # both hashes look at 64 × 64 pixels at most
    hashes = [imagehash.phash(picture, hash_size=size).hash for size in (8, 16)]
    packed = b"".join(np.packbits(bits).tobytes() for bits in hashes)
    small = picture.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    return packed + np.asarray(small, dtype=np.uint8).tobytes()


def find_pairs(first: pa.Table, second: pa.Table) -> list[Pair]:
    """Compare every picture of one table with every one of the other; both have :data:`SIGNATURES_SCHEMA`."""
    if not len(first) or not len(second):
        return []
    shas = dict(zip(second["sha256"].to_pylist(), range(len(second)), strict=True))
    same = {i: shas[sha] for i, sha in enumerate(first["sha256"].to_pylist()) if sha in shas}
    pairs = [Pair(first=i, second=j, same_bytes=True) for i, j in same.items()]
    near = [Pair(first=i, second=j, same_bytes=False) for i, j in _near(_matrix(first), _matrix(second)) if i not in same]
    return sorted([*pairs, *near], key=lambda pair: (pair.first, pair.second))


def _matrix(table: pa.Table) -> np.ndarray:
    """Signatures as uint8 [N, 232]."""
    data = b"".join(table["signature"].to_pylist())
    return np.frombuffer(data, dtype=np.uint8).reshape(len(table), _HASH_BYTES + _THUMBNAIL_BYTES)


def _near(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[int, int]]:
    """Row pairs whose hashes and thumbnails are close, block by block so that memory stays bounded."""
    words_1 = np.ascontiguousarray(first[:, :_HASH_BYTES]).view(np.uint64)
    words_2 = np.ascontiguousarray(second[:, :_HASH_BYTES]).view(np.uint64)
    for start in range(0, len(first), _BLOCK):
        block = words_1[start : start + _BLOCK]
        short = np.bitwise_count(block[:, None, 0] ^ words_2[None, :, 0])
        rows, columns = np.nonzero(short <= MAX_BITS_64)
        bits = np.bitwise_count(block[rows, 1:] ^ words_2[columns, 1:]).sum(axis=1)
        rows, columns = rows[bits <= MAX_BITS_256] + start, columns[bits <= MAX_BITS_256]
        difference = np.abs(first[rows, _HASH_BYTES:].astype(np.int16) - second[columns, _HASH_BYTES:]).mean(axis=1)
        close = difference <= MAX_THUMBNAIL_DIFFERENCE
        yield from zip(rows[close].tolist(), columns[close].tolist(), strict=True)
