"""The fast decoders give Pillow's pixels or step aside; scaled decoding keeps its promises."""

import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from detector.images import fast, formats
from detector.images.decoding import Decoder
from detector.images.fast import dct_scale
from detector.images.pixels import DecodeError, DecodeLimits, decode_bytes
from tests.images.decoding_files import write
from tests.images.hostile import chunk, encode, picture
from tests.images.test_pixels import decoded, pillow

LIMITS = DecodeLimits()
TURNED = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'


def insert(data, kind, content, *, behind):
    """A PNG with one more chunk, before or behind its pixels."""
    at = data.index(b"IEND" if behind else b"IDAT") - 4
    return data[:at] + chunk(kind, content) + data[at:]


def exif(turn):
    found = Image.Exif()
    found[0x0112] = turn
    return found.tobytes()[6:]


def plain():
    for mode in ("RGB", "RGBA", "L"):
        yield f"{mode}-PNG", encode(picture(97, 61, mode=mode), "PNG")
    base = encode(picture(97, 61), "PNG")
    profile = b"profile\0\0" + zlib.compress(b"no colour profile at all" * 9)
    for kind, content in ((b"gAMA", struct.pack(">I", 20_000)), (b"iCCP", profile), (b"sBIT", b"\5\6\5"),
                          (b"bKGD", b"\0\1\0\2\0\3"), (b"pHYs", b"\0\0\0\1\0\0\0\2\0"), (b"tEXt", b"Title\0x")):  # fmt: skip
        yield kind.decode(), insert(base, kind, content, behind=False)
    yield "date-behind", insert(base, b"tEXt", b"date:create\x002026", behind=True)
    for name, options in (("lossy", {}), ("lossless", {"lossless": True}), ("profile", {"icc_profile": b"x" * 99})):
        yield f"{name}-WebP", encode(picture(97, 61), "WEBP", **options)


def not_plain():
    base = encode(picture(97, 61), "PNG")
    for mode in ("P", "1", "LA"):
        yield f"{mode}-PNG", encode(picture(97, 61, mode=mode), "PNG")
    yield "key-colour", encode(picture(97, 61), "PNG", transparency=(1, 2, 3))
    yield "frames-PNG", encode(picture(97, 61), "PNG", save_all=True, append_images=[picture(97, 61, seed=1)])
    for behind in (False, True):
        yield f"exif-{behind}", insert(base, b"eXIf", exif(6), behind=behind)
        yield f"xmp-{behind}", insert(base, b"iTXt", TURNED, behind=behind)
    clear = picture(97, 61, mode="RGBA")
    clear.putalpha(picture(97, 61, seed=5, mode="L"))
    yield "alpha-WebP", encode(clear, "WEBP")
    yield "turned-WebP", encode(picture(97, 61), "WEBP", exif=b"Exif\0\0" + exif(6))
    yield "frames-WebP", encode(picture(97, 61), "WEBP", save_all=True, append_images=[picture(97, 61, seed=1)])


@pytest.fixture
def taken(monkeypatch):
    """For every picture, whether a fast decoder's pixels were used."""
    used = []
    for name in ("_decode_png", "_decode_webp"):
        real = getattr(fast, name)

        def watch(*args, real=real):
            found = real(*args)
            used.append(found is not None)
            return found

        monkeypatch.setattr(fast, name, watch)
    return used


def test_plain_pngs_and_webps_are_decoded_fast_and_equal_pillow(taken):
    for name, data in plain():
        assert np.array_equal(decoded(data), pillow(data)), name
        assert taken[-1], name


def test_what_only_pillow_reads_rightly_is_left_to_it(taken):
    for name, data in not_plain():
        assert np.array_equal(decoded(data), pillow(data)), name
        assert not taken[-1], name


def test_pngs_in_pieces_with_junk_or_without_an_end_equal_pillow():
    base = encode(picture(97, 61), "PNG")
    start = base.index(b"IDAT") - 4
    data = base[start + 8 : base.index(b"IEND") - 8]
    pieces = b"".join(chunk(b"IDAT", data[at : at + 100]) for at in range(0, len(data), 100))
    end = chunk(b"IEND", b"")
    halves = chunk(b"IDAT", data[:500]) + chunk(b"tIME", b"\x07\xea\1\1\0\0\0") + chunk(b"IDAT", data[500:])
    for body in (pieces + end, pieces + end + b"junk" * 99, pieces, chunk(b"IDAT", data + b"more") + end):
        assert np.array_equal(decoded(base[:start] + body), pillow(base))
    with pytest.raises(DecodeError):
        decode_bytes(base[:start] + halves + end, LIMITS)  # Pillow reads the first run only, and that is cut


def test_the_header_of_a_one_scan_jpeg_settles_it():
    """What libjpeg reads one scan of cannot take long, whatever follows; what it reads on is counted."""
    whole = encode(picture(mode="L"), "JPEG")
    scan = whole[whole.index(b"\xff\xda") : -2]
    repeated = whole[:-2] + scan * 500 + b"\xff\xd9"
    assert formats.count_jpeg_scans(repeated, enough=100) == 1
    start = time.monotonic()
    try:
        assert np.array_equal(decoded(repeated), decoded(whole))
    except DecodeError as error:
        assert error.code == "corrupt"
    assert time.monotonic() - start < 1
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, 8, 8, 3) + bytes(9)
    one_of_three = b"\xff\xda" + struct.pack(">HB", 8, 1) + bytes(5)
    assert formats.count_jpeg_scans(b"\xff\xd8" + frame + one_of_three * 200 + b"\xff\xd9", enough=100) == 101


def test_the_scale_is_the_smallest_that_keeps_both_sides():
    seed = 11
    print("seed", seed)
    rng = np.random.default_rng(seed)
    for _ in range(300):
        size, least = tuple(rng.integers(1, 5000, 2).tolist()), tuple(rng.integers(1, 1000, 2).tolist())
        by = dct_scale(size, least)
        sides = [-(-side // by) for side in size]
        assert by == 1 or (sides[0] >= least[0] and sides[1] >= least[1])
        assert by == 8 or not all(-(-side // (2 * by)) >= limit for side, limit in zip(size, least, strict=True))
    assert dct_scale((4000, 4000), None) == 1


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"exif": b"Exif\0\0" + exif(6)}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_large_jpeg_is_scaled_a_little_different_and_recorded_in_its_own_size(options, mode, tmp_path):
    data = encode(picture(400, 304, mode=mode), "JPEG", quality=92, **options)
    full = decode_bytes(data, LIMITS)
    height, width = full.pixels.shape[:2]
    found = decode_bytes(data, LIMITS, at_least=(height // 2, width // 2))
    assert (found.width, found.height, found.format) == (full.width, full.height, full.format) == (width, height, "JPEG")
    assert found.pixels.shape == (height // 2, width // 2, 3)
    halved = full.pixels.reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3))
    assert 0 < np.abs(halved - found.pixels).mean() < 4
    assert np.array_equal(decode_bytes(data, LIMITS, at_least=(height // 2 + 1, 1)).pixels, full.pixels)
    path = write(tmp_path / "a.jpg", data)
    with Decoder(LIMITS, at_least=(height // 2, width // 2)) as decoder:
        (there,) = decoder.decode([path])
        assert np.array_equal(there.pixels, found.pixels)
        assert (there.width, there.height) == (width, height)


def test_an_odd_side_is_rounded_up(tmp_path):
    data = encode(picture(401, 303), "JPEG", exif=b"Exif\0\0" + exif(6))
    found = decode_bytes(data, LIMITS, at_least=(201, 152))
    assert (found.height, found.width, found.pixels.shape) == (401, 303, (201, 152, 3))


def test_only_jpegs_that_pillow_need_not_judge_are_scaled():
    for kind, mode in (("PNG", "RGB"), ("WEBP", "RGB"), ("TIFF", "RGB"), ("JPEG", "CMYK")):
        data = encode(picture(400, 300, mode=mode), kind)
        assert np.array_equal(decode_bytes(data, LIMITS, at_least=(30, 30)).pixels, decoded(data)), kind
