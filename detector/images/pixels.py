"""Bytes of an image file → RGB pixels, in this process. Knows neither torch nor Ray.

Cheap checks come before any decoder runs: size, signature, the pixel count of the header, the scan count of a JPEG.
Whatever goes wrong ends as one :class:`DecodeError` with a code of the closed list. Files of strangers belong into
:mod:`detector.images.decoding`, which runs this in a child that can be killed.
"""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from detector.images import formats, rgb
from detector.images.fast import Sides, decode_fast, is_plain_jpeg
from detector.images.rgb import Allocate

# Recorded in the model's fingerprint: raise the number when any picture's pixels change.
DECODER_MODE = "simplejpeg+pillow/1"
# The same, for each way to decode that a user can ask for.
DECODERS = {"full": DECODER_MODE, "scaled": f"{DECODER_MODE}+dct-scaled/1", "gpu": f"{DECODER_MODE}+nvjpeg/1"}
# What is left to a GPU's decoder; larger files are decoded here. It depends on the file alone, so that a picture's score does
# not depend on which others are scored with it. Together they bound what a block of pictures takes on its way.
_MOST_ENCODED_BYTES, _MOST_ENCODED_PIXELS = 4 * 2**20, 32 * 10**6

_OUT_OF_MEMORY_WORDS = ("out of memory", "insufficient memory", "cannot allocate", "memory allocation")
_MESSAGE_CHARS = 200
Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class DecodeLimits:
    """What one picture may cost.

    ``max_pixels`` is twice Pillow's own warning level (its error level). ``max_scans``: honest JPEGs have at most 53,
    scan bombs more than 1,500. ``memory_bytes`` (above the child's idle state) and ``timeout_s`` (wall clock) hold in
    :mod:`detector.images.decoding` only.
    """

    max_bytes: int = 256 * 2**20
    max_pixels: int = 178_956_970
    max_scans: int = 100
    memory_bytes: int = 2**30
    timeout_s: float = 10.0


class DecodeError(Exception):
    """A picture that cannot be decoded: ``code`` is one of the contract's error codes, ``message`` is for a person."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code, self.message = code, message


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A decoded picture: ``pixels`` is uint8 [height, width, 3], RGB, C-contiguous, EXIF orientation applied.

    Where it was decoded at a smaller scale, ``width`` and ``height`` are still those of the file as displayed.
    """

    pixels: np.ndarray
    width: int
    height: int
    format: str


@dataclass(frozen=True, kw_only=True)
class EncodedJpeg:
    """A JPEG that is left to another decoder: its displayed size in pixels, and the EXIF orientation (1 to 8) to apply.

    ``format`` is Pillow's name: JPEG, or MPO where several pictures follow each other.
    """

    width: int
    height: int
    turn: int
    format: str


def decode_bytes(data: bytes, limits: DecodeLimits, at_least: Sides | None = None) -> Picture:
    """Decode the first picture of an image file as RGB.

    Args:
        data: the bytes of the file.
        limits: what it may cost.
        at_least: decode a large JPEG at half, a quarter or an eighth of its size as long as its sides keep this height and
            width (as displayed); None decodes in full. Everything else is decoded in full either way.

    Raises:
        DecodeError: and nothing else, whatever ``data`` holds.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what is an error or of no matter here
        return decode_into(data, limits, lambda height, width: np.empty((height, width, 3), np.uint8), at_least)


def decode_into(data: bytes, limits: DecodeLimits, allocate: Allocate, at_least: Sides | None = None) -> Picture:
    """As :func:`decode_bytes`, with the pixels in what ``allocate(height, width)`` returns (height and width as displayed).

    ``allocate`` is called when the size is known and within ``limits.max_pixels``; again where a first decoder gives up, and
    what it returned before is then not used.

    Raises:
        DecodeError: and nothing else, whatever ``data`` holds.
    """
    return _opened(data, limits, lambda image: _decode(image, data, limits, allocate, at_least))


def leave_encoded(data: bytes, limits: DecodeLimits) -> EncodedJpeg | None:
    """Check an image file as :func:`decode_into` does before it decodes; None if it is not a JPEG for a GPU's decoder.

    A plain JPEG of ordinary size that has an end is one. Damage inside its data is for the GPU's decoder to find.

    Raises:
        DecodeError: and nothing else, whatever ``data`` holds.
    """
    if formats.allowed_format(data) != "JPEG":  # most cheaply said here; what it is instead, decoding will say
        return None
    return _opened(data, limits, lambda image: _left_encoded(image, data))


def _left_encoded(image: Image.Image, data: bytes) -> EncodedJpeg | None:
    large = len(data) > _MOST_ENCODED_BYTES or image.width * image.height > _MOST_ENCODED_PIXELS
    if large or not is_plain_jpeg(image, data) or formats.ends_early(data, "JPEG"):
        return None
    turn = rgb.orientation(image)
    width, height = rgb.displayed_size(*image.size, turn)
    return EncodedJpeg(width=width, height=height, turn=turn, format=image.format or "JPEG")


def _opened(data: bytes, limits: DecodeLimits, use: Callable[[Image.Image], Made]) -> Made:
    """What ``use`` makes of the picture; nothing but a :class:`DecodeError` leaves this."""
    name = None
    try:
        name = _check_bytes(data, limits)
        image = Image.open(io.BytesIO(data), formats=formats.ALLOWED)
        _check_pixels(image.size, limits)
        return use(image)
    except DecodeError:
        raise
    except Exception as error:
        raise _explain(error, data, name) from None


def _check_bytes(data: bytes, limits: DecodeLimits) -> str:
    """The allowed format that the signature names."""
    if not data:
        raise DecodeError("empty", "the file has no bytes")
    if len(data) > limits.max_bytes:
        raise too_many_bytes(len(data), limits)
    name = formats.allowed_format(data)
    if name is None:
        other = formats.other_format(data)
        if other is not None:
            raise DecodeError("unsupported_format", f"{other} pictures are not decoded; convert it to PNG or JPEG")
        raise DecodeError("not_an_image", "the first bytes are of no image format")
    if name == "JPEG":
        scans = formats.count_jpeg_scans(data, enough=limits.max_scans)
        if scans > limits.max_scans:
            raise DecodeError("too_large", f"a JPEG of more than {limits.max_scans} scans would take minutes to decode")
    return name


def too_many_bytes(size: int, limits: DecodeLimits) -> DecodeError:
    """The error of a file over the byte cap."""
    return DecodeError("too_large", f"{size:,} bytes are more than the limit of {limits.max_bytes:,}")


def _check_pixels(size: tuple[int, int], limits: DecodeLimits) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise DecodeError("corrupt", f"the header says {width} × {height} pixels")
    if width * height > limits.max_pixels:
        raise DecodeError("too_large", f"{width} × {height} pixels are more than the limit of {limits.max_pixels:,}")


def _decode(image: Image.Image, data: bytes, limits: DecodeLimits, allocate: Allocate, at_least: Sides | None) -> Picture:
    kind = image.format or "unknown"
    fast = decode_fast(image, data, allocate, at_least)
    if fast is not None:
        return Picture(pixels=fast.pixels, width=fast.size[1], height=fast.size[0], format=kind)
    image.load()
    _check_pixels(image.size, limits)  # an animation's first frame may be larger than the canvas of its header
    turn = rgb.orientation(image)
    width, height = rgb.displayed_size(*image.size, turn)
    pixels = allocate(height, width)
    rgb.write_rgb(image, pixels, turn)
    return Picture(pixels=pixels, width=width, height=height, format=kind)


def _explain(error: Exception, data: bytes, name: str | None) -> DecodeError:
    """Name the code for an exception of a decoder."""
    text = f"{type(error).__name__}: {error}"[:_MESSAGE_CHARS]
    lowered = text.lower()
    if isinstance(error, MemoryError) or any(words in lowered for words in _OUT_OF_MEMORY_WORDS):
        return DecodeError("out_of_memory", "decoding needs more memory than the limit allows")
    if isinstance(error, Image.DecompressionBombError) or "too large" in lowered:
        return DecodeError("too_large", text)
    if isinstance(error, NotImplementedError) or "unsupported" in lowered or "not supported" in lowered:
        return DecodeError("unsupported_format", f"a variant of {name} that is not decoded ({text})")
    if isinstance(error, UnidentifiedImageError):
        text = f"it begins like {name}, but its header cannot be read"
    if "truncated" in lowered or (name is not None and formats.ends_early(data, name)):
        return DecodeError("truncated", f"the file ends before its picture does ({text})")
    return DecodeError("corrupt", f"the {name} data are damaged ({text})")
