"""What the decoder and its child say to each other: one small frame per request and per reply, no pickle.

Structs rather than JSON for what every picture needs: a parent that wakes up between two pictures has cold caches, and there
JSON took 45 of its 150 microseconds (measured). The parent believes no frame: one that makes no sense is None.
"""

import json
import struct
from typing import NamedTuple

_REQUEST = struct.Struct("<QBqI")  # number, slot, bytes in the slot or -1, length of the path that follows
_HEADER = struct.Struct("<BI")  # kind, length of what follows
_PICTURE = struct.Struct("<QIIIIBQq32s8s")  # number, width, height, rows, columns, turn, bytes, modified, SHA-256, format
_READY, _FOUND, _FAILED = 1, 2, 3
_LONGEST = 65_536  # of an honest reply: a message has 300 characters at most
_PICTURE_FRAME = _HEADER.pack(_FOUND, _PICTURE.size)

READY = _HEADER.pack(_READY, 0)


class Request(NamedTuple):
    """One file to decode: a local path, or (``size`` ≥ 0) a remote one's bytes, which lie in the slot."""

    number: int
    slot: int
    size: int
    path: bytes


class Reply(NamedTuple):
    """What became of one file; the fields of :class:`detector.images.decoding.Decoded`, as far as they are known.

    ``shape``: rows and columns of the pixels in the slot, fewer than ``height`` and ``width`` where it was scaled. Where
    ``turn`` is not 0 the slot holds the JPEG file itself instead, and ``turn`` is the EXIF orientation (1 to 8) to apply.
    """

    number: int
    error: str | None = None
    message: str | None = None
    sha256: str | None = None
    num_bytes: int | None = None
    modified_ns: int | None = None
    width: int | None = None
    height: int | None = None
    format: str | None = None
    shape: tuple[int, int] = (0, 0)
    turn: int = 0


def pack_request(number: int, slot: int, size: int, path: bytes) -> bytes:
    """A :class:`Request` as it goes down the pipe."""
    return _REQUEST.pack(number, slot, size, len(path)) + path


def unpack_request(data: bytes) -> tuple[Request, bytes] | None:
    """The first request in ``data`` and what follows it; None if it is not whole yet."""
    if len(data) < _REQUEST.size:
        return None
    number, slot, size, length = _REQUEST.unpack_from(data)
    end = _REQUEST.size + length
    return (Request(number, slot, size, data[_REQUEST.size : end]), data[end:]) if len(data) >= end else None


def pack_reply(reply: Reply) -> bytes:
    """A reply as it goes up the pipe."""
    if reply.error is None:
        try:
            return _PICTURE_FRAME + _PICTURE.pack(
                reply.number, reply.width, reply.height, *reply.shape, reply.turn, reply.num_bytes, reply.modified_ns,
                bytes.fromhex(reply.sha256 or ""), (reply.format or "").encode(),
            )  # fmt: skip
        except struct.error:  # a time stamp after the year 2262
            pass
    text = json.dumps(reply).encode()
    return _HEADER.pack(_FAILED, len(text)) + text


def frame_end(data: bytes) -> int | None:
    """Where the first frame in ``data`` ends; None if it is not whole yet.

    Raises:
        ValueError: no honest frame is that long.
    """
    if len(data) < _HEADER.size:
        return None
    length: int = _HEADER.unpack_from(data)[1]
    if length > _LONGEST:
        raise ValueError(f"a reply of {length} bytes")
    return _HEADER.size + length if len(data) >= _HEADER.size + length else None


def unpack_reply(frame: bytes) -> Reply | None:
    """A reply from its frame, or None if it makes no sense."""
    try:
        if frame.startswith(_PICTURE_FRAME):
            number, width, height, rows, columns, turn, size, modified, digest, kind = _PICTURE.unpack_from(frame, _HEADER.size)
            name = kind.rstrip(b"\0").decode("ascii")
            return Reply(number, None, None, digest.hex(), size, modified, width, height, name, (rows, columns), turn)
        facts = dict(zip(Reply._fields, json.loads(frame[_HEADER.size :]), strict=True))
        rows, columns = facts.pop("shape")
        reply = Reply(**facts, shape=(int(rows), int(columns)))
        return reply if all(isinstance(text, (str, type(None))) for text in (reply.error, reply.message)) else None
    except (ValueError, TypeError, LookupError, struct.error):
        return None
