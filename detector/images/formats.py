"""What kind of file this is, by its first bytes: which formats are decoded, which are known but refused, where one ends.

Nothing here decodes. The walks over segments, chunks and boxes exist to name a failure rightly (``truncated`` or
``corrupt``), to refuse a JPEG with absurdly many scans before any decoder sees it, and to tell a plain picture, which any
decoder reads alike, from one that Pillow must judge.
"""

import re
import struct

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

# Imported for their side effect: each registers itself, so that Image.open(formats=…) need not load Pillow's 40 others.
_PLUGINS = (AvifImagePlugin, BmpImagePlugin, GifImagePlugin, JpegImagePlugin, MpoImagePlugin, PngImagePlugin,
            TiffImagePlugin, WebPImagePlugin)  # fmt: skip

ALLOWED = tuple(
    name
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "AVIF")
    if name in Image.OPEN and (name not in ("AVIF", "WEBP") or features.check(name.lower()))
)

# (first bytes, Pillow's name of an allowed format)
_ALLOWED_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"GIF87a", "GIF"), (b"GIF89a", "GIF"),
    (b"II\x2a\x00", "TIFF"), (b"MM\x00\x2a", "TIFF"), (b"II\x2b\x00", "TIFF"),
    (b"MM\x00\x2b", "TIFF"),
)  # fmt: skip

# (offset, bytes, name for a person) of pictures that are known for what they are and not decoded.
_OTHER_SIGNATURES = (
    (0, b"8BPS", "Photoshop"), (0, b"\x00\x00\x01\x00", "ICO"), (0, b"\x00\x00\x02\x00", "CUR"), (0, b"icns", "ICNS"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"), (0, b"\xff\x4f\xff\x51", "JPEG 2000"), (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\x00\x00\x00\x0cJXL ", "JPEG XL"), (0, b"II\xbc", "JPEG XR"), (0, b"BPG\xfb", "BPG"), (0, b"FLIF", "FLIF"),
    (0, b"qoif", "QOI"), (0, b"DDS ", "DDS"), (0, b"%!PS", "EPS"), (0, b"\xc5\xd0\xd3\xc6", "EPS"),
    (0, b"gimp xcf", "XCF"), (0, b"\x76\x2f\x31\x01", "OpenEXR"), (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"#?RGBE", "Radiance HDR"), (0, b"SIMPLE  =", "FITS"), (0, b"\x01\xda\x00\x01", "SGI"),
    (0, b"\x01\xda\x01\x01", "SGI"), (0, b"\x59\xa6\x6a\x95", "Sun raster"), (0, b"/* XPM */", "XPM"),
    (0, b"\xd7\xcd\xc6\x9a", "WMF"), (40, b" EMF", "EMF"), (0, b"AT&TFORM", "DjVu"), (0, b"SDPX", "DPX"),
    (0, b"XPDS", "DPX"), (0, b"\x8aMNG", "MNG"), (0, b"\x8bJNG", "JNG"), (0, b"\xabKTX ", "KTX"), (0, b"BLP1", "BLP"),
    (0, b"BLP2", "BLP"), (0, b"FUJIFILMCCD-RAW", "camera raw"), (0, b"IIU\x00", "camera raw"),
    (0, b"IIRO", "camera raw"), (0, b"\x3a\xde\x68\xb1", "DCX"), (0, b"DanM", "MSP"), (0, b"LinS", "MSP"),
    (0, b"PG ML", "GBR"), (0, b"P7 332", "XV thumbnail"), (4, b"\x11\xaf", "FLI"), (4, b"\x12\xaf", "FLC"),
    (0, b"\x89HDF\r\n\x1a\n", "HDF5"), (0, b"FTEX", "FTEX"), (0, b"GRIB", "GRIB"), (0, b"BUFR", "BUFR"),
    (2048, b"PCD_", "Photo CD"), (0, b"\x80\xe8\x00\x00", "PIXAR"),
)  # fmt: skip

_OTHER_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"crx ", b"jxl "}
_PNM = re.compile(rb"P[1-7FfyY][\s#]")
_PCX = re.compile(rb"\x0a[\x00\x02-\x05][\x00\x01][\x01\x02\x04\x08]")
_SVG = re.compile(rb"<svg[\s>]", re.IGNORECASE)
_XBM = re.compile(rb"\s*#define\s+\w*_width\s+\d+")
_TGA_FOOTER = b"TRUEVISION-XFILE"

_ISPE = re.compile(rb"ispe\0\0\0\0(.{8})", re.DOTALL)

_JPEG_SOS, _JPEG_EOI = 0xDA, 0xD9
_JPEG_SEQUENTIAL = {0xC0, 0xC1}
# In entropy-coded data FF00 and RSTn are no markers; TEM (01) has no length.
_JPEG_MARKER = re.compile(rb"\xff+[^\x00\x01\xff\xd0-\xd7]")

# Channels of the PNG colour types that need no palette; and the text that tools write behind the picture.
_PNG_CHANNELS = {0: 1, 2: 3, 6: 4}
_PNG_HARMLESS_TEXT = (b"date:", b"Software\0", b"Comment\0")
_PNG_MOST_CHUNKS = 20_000  # 160 MB in the usual chunks of 8 KB
_WEBP_ALPHA_OR_ANIMATION = 0x12


def allowed_format(data: bytes) -> str | None:
    """Pillow's name of the allowed format whose signature ``data`` carries, or None."""
    for magic, name in _ALLOWED_SIGNATURES:
        if data.startswith(magic) or (1 < len(data) < len(magic) and magic.startswith(data)):
            return name
    # "BM" begins many a text: the header's own size, at offset 14, tells them apart.
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") < 65536:
        return "BMP"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp" and b"avi" in _brands(data) and "AVIF" in ALLOWED:
        return "AVIF"
    return None


def other_format(data: bytes) -> str | None:
    """The name of a known picture format that is not decoded, or None where the bytes look like no picture at all."""
    for offset, magic, name in _OTHER_SIGNATURES:
        if data.startswith(magic, offset):
            return name
    if data[4:8] == b"ftyp":
        brands = _brands(data)
        if any(brands[i : i + 4] in _OTHER_BRANDS for i in range(0, len(brands), 4)):
            return "HEIC"
        if b"avi" in brands:
            return "AVIF"
    head = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    if head[:1] == b"<" and _SVG.search(head):
        return "SVG"
    patterns = ((_PNM, "PNM"), (_PCX, "PCX"), (_XBM, "XBM"))
    found = next((name for pattern, name in patterns if pattern.match(data)), None)
    return "TGA" if found is None and _TGA_FOOTER in data[-26:] else found


def _brands(data: bytes) -> bytes:
    """The major and compatible brands of an ISO base media file (ISO/IEC 14496-12, 4.3), four bytes each."""
    size = min(int.from_bytes(data[:4], "big"), 256)
    return data[8:12] + data[16:size]


def count_jpeg_scans(data: bytes, *, enough: int) -> int:
    """Number of scans (SOS markers) of the first picture in a JPEG file; stops counting above ``enough``.

    The header settles most files: where the first scan of a sequential JPEG holds every component, decoders read no
    second one (libjpeg refuses it). For the others a plain byte count comes first, which can only be too high (an
    embedded thumbnail, a video after the picture).
    """
    if _is_one_scan(data):
        return 1
    plain = data.count(b"\xff\xda")
    if plain <= enough:
        return plain
    scans, position = 0, 2
    while scans <= enough:
        marker = _JPEG_MARKER.search(data, position)
        if marker is None or data[marker.end() - 1] == _JPEG_EOI:
            break
        position = marker.end()
        scans += data[position - 1] == _JPEG_SOS
        position += max(int.from_bytes(data[position : position + 2], "big"), 2)
    return scans


def _is_one_scan(data: bytes) -> bool:
    """Whether the header says: sequential, and all components in the first scan (ITU-T T.81, B.2.2 and B.2.3)."""
    position, components = 2, 0
    while (marker := _JPEG_MARKER.search(data, position)) is not None:
        position = marker.end()
        kind = data[position - 1]
        if kind == _JPEG_SOS:
            return 0 < components == int.from_bytes(data[position + 2 : position + 3], "big")
        if kind in _JPEG_SEQUENTIAL and not components:
            components = int.from_bytes(data[position + 7 : position + 8], "big")
        elif 0xC0 <= kind <= 0xCF and kind not in {0xC4, 0xC8, 0xCC}:
            return False  # another kind of frame, or a second one
        elif kind == _JPEG_EOI:
            return False
        position += max(int.from_bytes(data[position : position + 2], "big"), 2)
    return False


def plain_png_channels(data: bytes) -> int:
    """1, 3 or 4 (grey, RGB, RGB with alpha) for a PNG that every decoder reads alike; 0 where Pillow must judge.

    Plain is: 8 bit, not interlaced, no palette, no key colour, one frame, its data in one run, whole to its end, and behind
    the data nothing that Pillow would take for an orientation.
    """
    if len(data) < 33 or data[12:16] != b"IHDR" or data[24] != 8 or data[28] != 0:
        return 0
    position, kind, runs = 8, b"", 0
    for _ in range(_PNG_MOST_CHUNKS):
        if position + 12 > len(data):
            return 0
        before, kind = kind, data[position + 4 : position + 8]
        runs += kind == b"IDAT" != before
        if kind in {b"tRNS", b"acTL", b"fcTL", b"fdAT"} or (runs and not _follows_png_data(kind, data, position + 8)):
            return 0
        if kind == b"IEND":
            return _PNG_CHANNELS.get(data[25], 0) if runs == 1 else 0
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return 0


def _follows_png_data(kind: bytes, data: bytes, start: int) -> bool:
    return kind in {b"IDAT", b"IEND", b"tIME"} or (kind == b"tEXt" and data.startswith(_PNG_HARMLESS_TEXT, start))


def is_plain_webp(data: bytes) -> bool:
    """Whether a WebP is one opaque frame that fills its canvas, which every decoder reads alike (RFC 9649, 2.5 to 2.7)."""
    if data[12:16] == b"VP8X":
        return len(data) > 20 and not data[20] & _WEBP_ALPHA_OR_ANIMATION
    return data[12:16] in {b"VP8 ", b"VP8L"}


def stated_pixels(data: bytes, name: str) -> int:
    """Number of pixels that the header of a WebP or AVIF file states, 0 for anything else.

    Layouts: RFC 9649 sections 2.5 to 2.7 (WebP), ISO/IEC 23008-12 section 6.5.3 (``ispe``, the largest one counts).
    """
    sizes = [(0, 0)]
    if name == "AVIF":
        sizes += [struct.unpack(">II", box[1]) for box in _ISPE.finditer(data[:65536])]
    elif name == "WEBP" and data[12:16] == b"VP8X" and len(data) >= 30:
        sizes.append((int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1))
    elif name == "WEBP" and data[12:16] == b"VP8 " and len(data) >= 30:
        sizes.append((int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF))
    elif name == "WEBP" and data[12:16] == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        sizes.append(((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1))
    return max(width * height for width, height in sizes)


def ends_early(data: bytes, name: str) -> bool:
    """Whether the container of an allowed format says that it goes on after the last byte of ``data``."""
    walk = {"JPEG": _jpeg_ends_early, "MPO": _jpeg_ends_early, "PNG": _png_ends_early, "GIF": _gif_ends_early,
            "BMP": _bmp_ends_early, "TIFF": _tiff_ends_early, "WEBP": _riff_ends_early, "AVIF": _boxes_end_early}  # fmt: skip
    try:
        return walk[name](data)
    except (struct.error, IndexError, KeyError):
        return True


def _jpeg_ends_early(data: bytes) -> bool:
    position = 2
    while True:
        marker = _JPEG_MARKER.search(data, position)
        if marker is None:
            return True
        if data[marker.end() - 1] == _JPEG_EOI:
            return False
        position = marker.end() + max(struct.unpack_from(">H", data, marker.end())[0], 2)


def _png_ends_early(data: bytes) -> bool:
    position = 8
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if not kind.isalpha():
            return False  # no chunk at all: damaged before its end
        position += 12 + length
        if kind == b"IEND":
            break
    return position > len(data) or position == 8


def _gif_ends_early(data: bytes) -> bool:
    return len(data) < 14 or not data.rstrip(b"\x00").endswith(b"\x3b")


def _bmp_ends_early(data: bytes) -> bool:
    return len(data) < 26 or struct.unpack_from("<I", data, 2)[0] > len(data)


def _tiff_ends_early(data: bytes) -> bool:
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    start = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    return start + 2 > len(data)


def _riff_ends_early(data: bytes) -> bool:
    return struct.unpack_from("<I", data, 4)[0] + 8 > len(data)


def _boxes_end_early(data: bytes) -> bool:
    position = 0
    while position < len(data):
        size = struct.unpack_from(">I", data, position)[0]
        if size == 1:
            size = struct.unpack_from(">Q", data, position + 8)[0]
        if size == 0:  # the last box goes to the end of the file
            return False
        if size < 8:
            return False  # no box at all: damaged before its end
        position += size
    return position > len(data)
