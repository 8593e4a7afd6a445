"""Bytes → RGB: the same pixels as transformers' own loader, and one code of the closed list for everything else."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from detector.images import fast, formats, rgb
from detector.images.pixels import DecodeError, DecodeLimits, decode_bytes
from tests.images.hostile import contents, encode, picture, png, scan_bomb, with_exif

ARTWORKS = Path(__file__).parents[2].parent / "shared" / "data" / "artworks"
CODES = {"empty", "not_an_image", "unsupported_format", "truncated", "corrupt", "too_large", "unreadable", "vanished",
         "timeout", "out_of_memory", "decoder_crashed", "model_failed"}  # fmt: skip
LIMITS = DecodeLimits()


def pillow(data):
    """What transformers.image_utils.load_image does, once the file is open."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def decoded(data, limits=LIMITS):
    found = decode_bytes(data, limits)
    assert found.pixels.dtype == np.uint8
    assert found.pixels.flags.c_contiguous
    assert found.pixels.shape == (found.height, found.width, 3)
    return found.pixels


def code(data, limits=LIMITS):
    with pytest.raises(DecodeError) as caught:
        decode_bytes(data, limits)
    assert caught.value.code in CODES
    assert caught.value.message
    return caught.value.code


def odd_pictures():
    """(name, bytes): every mode that the allowed formats can hold, but the wide ones."""
    for mode in ("RGB", "L", "1", "P", "CMYK"):
        for kind in ("PNG", "TIFF", "JPEG", "WEBP", "GIF", "BMP", "AVIF"):
            fits = {"PNG": "RGB L 1 P", "TIFF": "RGB L 1 P CMYK", "JPEG": "RGB L CMYK", "GIF": "L 1 P", "BMP": "RGB L 1 P"}
            if mode in fits.get(kind, "RGB").split():
                yield f"{mode}-{kind}", encode(picture(mode=mode), kind)
    clear = picture(mode="RGBA")
    clear.putalpha(picture(seed=5, mode="L"))
    for kind in ("PNG", "TIFF", "WEBP", "AVIF"):
        yield f"RGBA-{kind}", encode(clear, kind)
    yield "LA-PNG", encode(clear.convert("LA"), "PNG")
    yield "LA-TIFF", encode(clear.convert("LA"), "TIFF")
    yield "P-transparent-PNG", encode(picture(mode="P"), "PNG", transparency=7)
    yield "P-transparent-bytes-PNG", encode(picture(mode="P"), "PNG", transparency=bytes(range(256)))
    yield "P-transparent-GIF", encode(picture(mode="P"), "GIF", transparency=7)
    yield "RGB-transparent-PNG", encode(picture(), "PNG", transparency=(1, 2, 3))
    yield "LAB-TIFF", encode(Image.merge("LAB", picture().split()), "TIFF")
    yield "YCbCr-TIFF", encode(picture(mode="YCbCr"), "TIFF")
    yield "Adobe-RGB-JPEG", encode(picture(), "JPEG", keep_rgb=True)
    yield "16-bit-RGB-PNG", png(20, 10, colour=2, depth=16)
    for kind in ("GIF", "PNG", "WEBP", "TIFF", "MPO"):
        frames = [picture(seed=seed, mode="P" if kind == "GIF" else "RGB") for seed in range(3)]
        yield f"frames-{kind}", encode(frames[0], kind, save_all=True, append_images=frames[1:])
    for turn in range(10):
        yield f"turn-{turn}-JPEG", with_exif(turn)
        exif = Image.Exif()
        exif[0x0112] = turn
        for kind in ("PNG", "WEBP", "TIFF", "AVIF"):
            yield f"turn-{turn}-{kind}", encode(picture(60, 40, seed=turn), kind, exif=exif)


ODD = dict(odd_pictures())


@pytest.mark.parametrize("name", ODD)
def test_every_mode_equals_pillow_as_transformers_uses_it(name, monkeypatch):
    monkeypatch.setattr(rgb, "BAND_PIXELS", 500)  # several bands even in these small pictures
    assert np.array_equal(decoded(ODD[name]), pillow(ODD[name]))


def test_equals_transformers_own_loader(tmp_path):
    load_image = pytest.importorskip("transformers.image_utils").load_image
    for name, data in ODD.items():
        (tmp_path / name).write_bytes(data)
        assert np.array_equal(decoded(data), np.asarray(load_image(str(tmp_path / name)))), name


def jpegs():
    for seed, (width, height) in enumerate([(97, 61), (64, 64), (1, 1), (17, 200), (333, 8)]):
        for subsampling in (0, 1, 2):
            for options in ({}, {"progressive": True}, {"optimize": True}, {"restart_marker_blocks": 2}):
                image = picture(width, height, seed=seed)
                yield f"{width}x{height}-{subsampling}-{options}", encode(image, "JPEG", subsampling=subsampling, **options)
        yield f"{width}x{height}-grey", encode(picture(width, height, seed=seed, mode="L"), "JPEG", quality=90)


def test_the_fast_jpeg_path_is_taken_and_equals_pillow(monkeypatch):
    taken = []
    real = simplejpeg.decode_jpeg
    monkeypatch.setattr(fast.simplejpeg, "decode_jpeg", lambda *args, **more: taken.append(1) or real(*args, **more))
    names = dict(jpegs())
    for name, data in names.items():
        assert np.array_equal(decoded(data), pillow(data)), name
    assert len(taken) == len(names)


@pytest.mark.skipif(not ARTWORKS.is_dir(), reason=f"no {ARTWORKS}")
def test_real_artworks_equal_pillow():
    files = sorted(path for path in ARTWORKS.glob("*/*") if path.is_file())[::4]
    compared = 0
    for path in files:
        data = path.read_bytes()
        assert np.array_equal(decoded(data), pillow(data)), path
        compared += 1
    assert compared >= 100


def mutant(rng, data):
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(3, len(data)))
        match rng.integers(0, 4):
            case 0:
                data = data[: max(at, 12)]
            case 1:
                data[at] = int(rng.integers(0, 256))
            case 2:
                del data[at : at + int(rng.integers(1, 20))]
            case _:
                data[at:at] = rng.bytes(int(rng.integers(1, 10)))
        if len(data) < 12:
            break
    return bytes(data)


@pytest.mark.parametrize("kind", ["JPEG", "progressive", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_damaged_files_end_as_in_pillow(kind):
    """The same pixels, or both refuse: the fast path must not accept what Pillow calls truncated."""
    seed = 20240 + len(kind)
    print("seed", seed)
    rng = np.random.default_rng(seed)
    mode = "P" if kind == "GIF" else "RGB"
    whole = encode(picture(97, 61, mode=mode), "JPEG", progressive=True) if kind == "progressive" else None
    whole = whole or encode(picture(97, 61, mode=mode), kind)
    for _ in range(150):
        data = mutant(rng, whole)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                expected = pillow(data)
            except Exception:
                assert code(data)
                continue
        assert np.array_equal(decoded(data), expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "AVIF", "TIFF"])
def test_a_cut_file_is_truncated_wherever_it_is_cut(kind):
    whole = encode(picture(97, 61), kind)
    for part in (0.1, 0.3, 0.5, 0.7, 0.9):
        cut = whole[: int(len(whole) * part)]
        assert code(cut) == "truncated", part


def test_hostile_files_have_the_code_that_says_what_is_wrong():
    for name, data, outcomes in contents():
        try:
            decode_bytes(data, LIMITS)
            outcome = None
        except DecodeError as error:
            outcome = error.code
        assert outcome in outcomes, name
        assert outcomes <= CODES | {None}, name


def test_the_limits_are_checked_before_anything_is_decoded():
    data = encode(picture(40, 30), "PNG")
    assert code(data, DecodeLimits(max_bytes=len(data) - 1)) == "too_large"
    assert code(data, DecodeLimits(max_pixels=40 * 30 - 1)) == "too_large"
    assert decoded(data, DecodeLimits(max_bytes=len(data), max_pixels=40 * 30)).shape == (30, 40, 3)


def test_scans_are_counted_in_the_picture_and_not_after_it():
    honest = encode(picture(), "JPEG", progressive=True)
    video = honest + b"\xff\xda\0\x08" * 500  # a phone's motion photo: anything may follow the picture
    assert formats.count_jpeg_scans(video, enough=100) < 20
    assert np.array_equal(decoded(video), decoded(honest))
    assert formats.count_jpeg_scans(scan_bomb(scans=300, side=64), enough=100) == 101
    assert code(scan_bomb(scans=300, side=64)) == "too_large"
    assert decode_bytes(scan_bomb(scans=300, side=64), DecodeLimits(max_scans=400)).width == 64


def test_sixteen_bit_pictures_are_scaled_and_not_clipped():
    values = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    for kind in ("PNG", "TIFF"):
        grey = decoded(encode(Image.fromarray(values), kind))
        assert np.array_equal(grey[..., 0], np.rint(values / 257).astype(np.uint8))
        assert np.array_equal(grey[..., 0], grey[..., 2])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0.5, 1], [0, 128, 255]),  # floats of 0 to 1
        ([0, 100.4, 255], [0, 100, 255]),  # floats of an 8-bit picture
        ([0, 257 * 7, 65535], [0, 7, 255]),  # floats of a 16-bit one
        ([-1, 0, 1], [0, 128, 255]),  # their own range
        ([5.01e30, 0, 1e31], [128, 0, 255]),
        ([np.nan, 0.5, 1], [0, 128, 255]),
        ([-np.inf, 0.5, np.inf], [0, 128, 255]),
        ([np.nan, np.nan, np.nan], [0, 0, 0]),
    ],
)
def test_floats_are_scaled_by_the_range_that_holds_them(values, expected):
    image = Image.fromarray(np.array([values] * 4, np.float32))
    grey = decoded(encode(image, "TIFF"))[0, :, 0]
    assert np.abs(grey.astype(int) - expected).max() == 0


@pytest.mark.parametrize(("top", "expected"), [(200, 100), (60_000, 117), (2_000_000_000, 128)])
def test_wide_integers_are_scaled_by_the_range_that_holds_them(top, expected):
    image = Image.fromarray(np.array([[0, top // 2, top]] * 4, np.int32))
    assert decoded(encode(image, "TIFF"))[0, 1, 0] == expected


def test_a_wide_picture_is_turned_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.arange(200, dtype=np.uint16).reshape(10, 20) * 300
    found = decoded(encode(Image.fromarray(values), "PNG", exif=exif))
    assert np.array_equal(found[..., 0], np.rot90(np.rint(values / 257), -1).astype(np.uint8))


def test_damaged_metadata_does_not_cost_the_pixels():
    whole = with_exif(6)
    start = whole.index(b"Exif\0\0")
    plain = pillow(with_exif(1))
    assert decoded(whole).shape == (60, 40, 3)
    for junk in (b"\xff" * 20, b"II*\0\xff\xff\xff\xff" + b"\0" * 12, b"MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 10):
        data = whole[: start + 6] + junk + whole[start + 26 :]
        assert decoded(data).shape in {plain.shape, (60, 40, 3)}


def test_names_of_formats_are_pillows():
    assert decode_bytes(encode(picture(), "JPEG"), LIMITS).format == "JPEG"
    assert decode_bytes(ODD["frames-MPO"], LIMITS).format == "MPO"
    assert decode_bytes(encode(picture(), "WEBP"), LIMITS).format == "WEBP"


def test_a_premultiplied_grey_tiff_is_decoded_though_pillow_has_no_direct_way():
    band = Image.new("LA", (4, 4), (100, 255)).convert("La")
    out = np.empty((4, 4, 3), np.uint8)
    rgb.write_rgb(band, out, 1)
    assert (out == 100).all()
