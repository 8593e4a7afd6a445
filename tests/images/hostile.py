"""Files as strangers send them: broken, odd and hostile ones, made here. For every test that needs them.

:func:`write_hostile` fills a folder; each :class:`Hostile` says which outcomes are right, None standing for pixels.
"""

import io
import os
import pickle
import socket
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

OK = None


@dataclass(frozen=True, kw_only=True)
class Hostile:
    """One entry of a folder, and the error codes (or None: decoded) that are right for it."""

    path: bytes
    outcomes: frozenset[str | None]
    regular: bool = True


def picture(width: int = 64, height: int = 48, *, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """A smooth picture with some noise, different for each seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / rng.uniform(3, 30) + y / rng.uniform(3, 30) + c) for c in range(3)]
    pixels = np.stack(waves, axis=-1) * 110 + 128 + rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of a picture in a format, as Pillow writes it."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, *, colour: int = 2, depth: int = 8, rows: int | None = None, extra: bytes = b"") -> bytes:
    """A PNG of zeros with any header one likes; ``rows`` of image data (all by default); ``extra`` chunks before them."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = b"\0" * (1 + (width * channels * depth + 7) // 8)
    packer, packed = zlib.compressobj(1), []
    packed += [packer.compress(row) for _ in range(height if rows is None else rows)]
    data = b"".join([*packed, packer.flush()])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    """One PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def scan_bomb(scans: int = 1500, side: int = 4000) -> bytes:
    """A progressive grey JPEG that goes over the whole picture once for each of its scans: a small file, minutes of work."""
    whole = encode(Image.new("L", (side, side), 90), "JPEG", progressive=True, quality=50)
    last = whole.rindex(b"\xff\xda")
    tables = whole.rfind(b"\xff\xc4", 0, last)
    start = tables if tables > whole.index(b"\xff\xda") else last
    return whole[:start] + whole[start:-2] * scans + b"\xff\xd9"


def with_exif(orientation: int, **options: object) -> bytes:
    """A JPEG whose EXIF says how to turn it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(picture(60, 40, seed=orientation), "JPEG", exif=exif.tobytes(), **options)


def animation(kind: str) -> bytes:
    """Three frames, each another picture."""
    frames = [picture(seed=seed, mode="P" if kind == "GIF" else "RGB") for seed in range(3)]
    return encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)


def contents() -> Iterator[tuple[str, bytes, set[str | None]]]:
    """Name, bytes and right outcomes of every hostile or odd regular file of modest size."""
    jpeg, plain_png = encode(picture(400, 300), "JPEG"), encode(picture(400, 300), "PNG")
    yield "empty.jpg", b"", {"empty"}
    yield "one_byte.png", b"\x89", {"not_an_image"}
    yield "only_soi.jpg", b"\xff\xd8", {"truncated"}
    yield "text.jpg", b"BMW is no picture, and this is a text of more than 54 bytes, honestly.", {"not_an_image"}
    yield "page.jpg", b"<!doctype html><html><script>alert(1)</script></html>", {"not_an_image"}
    yield "zeros.webp", bytes(10_000), {"not_an_image"}
    yield "noise.gif", np.random.default_rng(1).bytes(10_000), {"not_an_image"}
    yield "pickle.png", pickle.dumps({"a": 1}), {"not_an_image"}
    yield "archive.jpg", _zip(), {"not_an_image"}
    yield "shell.png", b"#!/bin/sh\ntouch /tmp/harm\n", {"not_an_image"}
    yield "cut.jpg", jpeg[: len(jpeg) // 2], {"truncated"}
    yield "cut_header.jpg", jpeg[:100], {"truncated"}
    yield "cut_progressive.jpg", encode(picture(400, 300), "JPEG", progressive=True)[:4000], {"truncated"}
    yield "cut.png", plain_png[: len(plain_png) // 2], {"truncated"}
    yield "cut_header.png", plain_png[:20], {"truncated"}
    yield "cut.webp", encode(picture(400, 300), "WEBP")[:2000], {"truncated"}
    yield "cut.gif", encode(picture(400, 300, mode="P"), "GIF")[:3000], {"truncated"}
    yield "cut.bmp", encode(picture(400, 300), "BMP")[:5000], {"truncated"}
    yield "cut.tif", encode(picture(400, 300), "TIFF")[:5000], {"truncated"}
    yield "cut.avif", encode(picture(400, 300), "AVIF")[:1500], {"truncated"}
    yield "bad_crc.png", plain_png[:40] + bytes(60) + plain_png[100:], {"corrupt", "truncated"}
    yield "no_rows.png", png(300, 300, rows=0), {"truncated", "corrupt"}
    yield "missing_rows.png", png(300, 300, rows=100), {OK}  # as in Pillow: the rest is black
    yield "zero_size.png", png(0, 10, rows=1), {"corrupt"}
    yield "pixel_bomb.png", png(60_000, 60_000, depth=1, colour=0, rows=10), {"too_large"}
    yield "text_bomb.png", png(10, 10, extra=chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100_000_000)))), {"too_large"}
    yield "scan_bomb.jpg", scan_bomb(), {"too_large"}
    for other, data in _other_formats():
        yield other, data, {"unsupported_format"}
    yield "cmyk.jpg", encode(picture(mode="CMYK"), "JPEG"), {OK}
    yield "stray_bytes.jpg", jpeg + b"appended" * 100, {OK}
    yield "damaged_exif.jpg", _damaged_exif(), {OK}
    yield "renamed_png.jpg", plain_png, {OK}
    yield "no_extension", jpeg, {OK}
    yield "sixteen_bit.png", encode(Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16), "PNG"), {OK}
    yield "float.tif", encode(Image.fromarray(np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64)), "TIFF"), {OK}
    yield "palette.png", encode(picture(mode="P"), "PNG"), {OK}
    yield "palette_transparent.png", encode(picture(mode="P"), "PNG", transparency=3), {OK}
    yield "grey_alpha.png", encode(picture(mode="L").convert("LA"), "PNG"), {OK}
    yield "thin.png", png(100_000, 1), {OK}
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        yield f"animated.{kind.lower()}", animation(kind), {OK}
    for orientation in range(9):
        yield f"orientation_{orientation}.jpg", with_exif(orientation), {OK}


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.jpg", encode(picture(), "JPEG"))
    return buffer.getvalue()


def _other_formats() -> Iterator[tuple[str, bytes]]:
    yield "icon.ico", encode(picture(), "ICO")
    yield "plain.ppm", encode(picture(), "PPM")
    yield "old.pcx", encode(picture(), "PCX")
    yield "wavelet.jp2", encode(picture(), "JPEG2000")
    yield "drawing.svg", b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>'
    yield "layers.psd", b"8BPS\0\1" + bytes(40)
    yield "phone.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


def _damaged_exif() -> bytes:
    whole = with_exif(6)
    start = whole.index(b"Exif\0\0") + 6
    return whole[:start] + b"\xff" * 12 + whole[start + 12 :]


ODD_NAMES = (
    b"line\nbreak.png", b"carriage\rreturn.png", b"tab\there.png", b"comma,quote\".png", b"=1+1.png", b"@SUM(A1).png",
    b"<img src=x onerror=alert(1)>.png", "\u202egnp.exe.png".encode(), "e\u0301.png".encode(), "é.png".encode(),
    "🖼.png".encode(), b"\xff\xfe not utf8.png", b"%41.png", b" leading and trailing .png ", b"n" * 230 + b".png", b"NA",
)  # fmt: skip


def write_hostile(folder: str | bytes, *, special: bool = True) -> list[Hostile]:
    """Fill ``folder`` (it exists); the entries in the order of their names.

    Args:
        folder: where to write.
        special: also a FIFO, a socket, links, a directory and a sparse file of 60 GB, which are no plain pictures.
    """
    root, entries = os.fsencode(folder), []
    for name, data, outcomes in contents():
        entries.append(_write(root, name.encode(), data, outcomes))
    for at, raw in enumerate(ODD_NAMES):
        entries.append(_write(root, raw, encode(picture(seed=at), "PNG"), {OK}))
    if special:
        entries += _write_special(root)
    return sorted(entries, key=lambda entry: entry.path)


def _write(root: bytes, name: bytes, data: bytes, outcomes: set[str | None]) -> Hostile:
    path = os.path.join(root, name)
    with open(path, "wb") as file:
        file.write(data)
    return Hostile(path=path, outcomes=frozenset(outcomes))


def _write_special(root: bytes) -> list[Hostile]:
    names = (b"fifo.jpg", b"socket.jpg", b"link_to_zero.jpg", b"link_to_itself.jpg", b"directory.jpg")
    fifo, sock, zero, loop, directory = paths = [os.path.join(root, name) for name in names]
    os.mkfifo(fifo)
    with socket.socket(socket.AF_UNIX) as listener:  # by a relative name: an absolute one may be too long for a socket
        before = os.open(".", os.O_RDONLY)
        os.chdir(root)
        listener.bind(os.path.basename(sock))
        os.fchdir(before)
        os.close(before)
    os.symlink(b"/dev/zero", zero)
    os.symlink(os.path.basename(loop), loop)
    os.mkdir(directory)
    sparse = _write(root, b"sparse.png", b"", {"too_large"})
    os.truncate(sparse.path, 60 * 10**9)
    gone = Hostile(path=os.path.join(root, b"vanished.png"), outcomes=frozenset({"vanished"}), regular=False)
    return [Hostile(path=path, outcomes=frozenset({"unreadable"}), regular=False) for path in paths] + [sparse, gone]
