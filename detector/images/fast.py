"""The fastest exact decoder for each common format; whatever is not plain goes to Pillow.

Every function here returns the same array as Pillow, or None where Pillow must judge: the file is of a rare kind, or the
library as much as warns. Chosen by measurement (``benchmarks/decoding.py``):

* JPEG: simplejpeg. libjpeg-turbo without Pillow's own copy and conversion; torchvision and torchcodec are as fast, but
  import torch, which the decoding child must not.
* PNG and WebP: imagecodecs. libspng and libwebp straight into our buffer; its libspng inflates with zlib-ng, Pillow's wheels
  with whatever zlib the system has.
"""

from typing import NamedTuple

import numpy as np
import simplejpeg
from imagecodecs import spng_decode, webp_decode
from PIL import Image

from detector.images import formats, rgb
from detector.images.rgb import Allocate

Sides = tuple[int, int]  # height and width in pixels, as displayed


class Decoded(NamedTuple):
    """What a fast decoder made: ``pixels`` is uint8 [h, w, 3]; ``size`` is that of the file, larger where it was scaled."""

    pixels: np.ndarray
    size: Sides


# 7/8 to 3/8 have no SIMD code in libjpeg-turbo: measured, 5/8 takes longer than the whole picture and 3/8 longer than 1/2.
_SCALES = (8, 4, 2)


def decode_fast(image: Image.Image, data: bytes, allocate: Allocate, at_least: Sides | None) -> Decoded | None:
    """The pixels of a plain JPEG, PNG or WebP that Pillow has opened as ``image``; None where Pillow must decode it.

    Args:
        image: opened, not loaded.
        data: the bytes that it was opened from.
        allocate: called as (height, width) with the size of the result.
        at_least: height and width, as displayed, that a JPEG's sides keep when it is decoded at a smaller DCT scale; None
            decodes in full.

    Returns:
        RGB, orientation applied.
    """
    if image.format in {"JPEG", "MPO"}:
        return _decode_jpeg(image, data, allocate, at_least)
    decode = {"PNG": _decode_png, "WEBP": _decode_webp}.get(image.format or "")
    pixels = decode(image, data, allocate) if decode else None
    return None if pixels is None else Decoded(pixels, (image.height, image.width))


def dct_scale(size: Sides, at_least: Sides | None) -> int:
    """The largest divisor of 8, 4, 2, 1 at which both sides of ``size`` stay at least as long as ``at_least``."""
    if at_least is None:
        return 1
    return next((by for by in _SCALES if all(-(-side // by) >= least for side, least in zip(size, at_least, strict=True))), 1)


def is_plain_jpeg(image: Image.Image, data: bytes) -> bool:
    """Whether a JPEG that Pillow has opened as ``image`` is grey or YCbCr, which every decoder turns into RGB alike."""
    if image.format not in {"JPEG", "MPO"} or image.mode not in {"L", "RGB"}:
        return False
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return False
    return colours in {"Gray", "YCbCr"} and (width, height) == image.size


def _decode_jpeg(image: Image.Image, data: bytes, allocate: Allocate, at_least: Sides | None) -> Decoded | None:
    """Decode by libjpeg-turbo's own interface, at twice Pillow's speed.

    With the exact DCT and upsampling the arrays equal Pillow's (675 of 675 real JPEGs: baseline and progressive, grey,
    4:4:4, 4:2:2, 4:2:0). CMYK and Adobe RGB go to Pillow, and so does whatever libjpeg as much as warns about, since it
    is Pillow that tells a cut file from a harmless stray byte.
    """
    if not is_plain_jpeg(image, data):
        return None
    turn = rgb.orientation(image)
    shown_width, shown_height = rgb.displayed_size(*image.size, turn)
    by = dct_scale((shown_height, shown_width), at_least)
    stored_width, stored_height = (-(-side // by) for side in image.size)  # libjpeg rounds up
    width, height = rgb.displayed_size(stored_width, stored_height, turn)
    scale = {"min_height": stored_height, "min_width": stored_width} if by > 1 else {}
    try:
        stored = allocate(height, width) if turn == 1 else np.empty((stored_height, stored_width, 3), np.uint8)
        simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, buffer=stored, strict=True, **scale)
    except ValueError:
        return None
    pixels = stored
    if turn != 1:
        pixels = allocate(height, width)
        rgb.turn_into(stored, pixels, turn)
    return Decoded(pixels, (shown_height, shown_width))


def _decode_png(image: Image.Image, data: bytes, allocate: Allocate) -> np.ndarray | None:
    """Decode by libspng. Colour profiles and gamma are ignored and alpha is dropped, as Pillow's ``convert("RGB")`` does."""
    channels = formats.plain_png_channels(data)
    width, height = image.size
    if image.mode != {1: "L", 3: "RGB", 4: "RGBA"}.get(channels) or "transparency" in image.info:
        return None
    if rgb.stated_orientation(image) != 1:
        return None
    try:
        if channels == 3:
            return spng_decode(data, out=allocate(height, width))
        decoded = spng_decode(data).reshape(height, width, channels)
    except (ValueError, RuntimeError):
        return None
    pixels = allocate(height, width)
    for channel in range(3):  # one by one: five times as fast as numpy's walk over three of four
        pixels[..., channel] = decoded[..., min(channel, channels - 1)]
    return pixels


def _decode_webp(image: Image.Image, data: bytes, allocate: Allocate) -> np.ndarray | None:
    """Decode by libwebp, without the animation decoder and its canvas, which Pillow uses for every WebP."""
    if image.mode != "RGB" or not formats.is_plain_webp(data) or rgb.orientation(image) != 1:
        return None
    width, height = image.size
    try:
        return webp_decode(data, hasalpha=False, out=allocate(height, width))
    except (ValueError, RuntimeError):
        return None
