"""Small helpers of the decoder's tests."""

import os

from detector.images.pixels import DecodeLimits, decode_bytes
from tests.images.hostile import encode, picture

LIMITS = DecodeLimits()


def write(path, data):
    path.write_bytes(data)
    return os.fsencode(path)


def honest(folder, count):
    """Pictures of several kinds, and their pixels decoded here."""
    paths, arrays = [], []
    for seed in range(count):
        kind = ("JPEG", "PNG", "WEBP")[seed % 3]
        data = encode(picture(80 + seed, 60, seed=seed), kind)
        paths.append(write(folder / f"honest-{seed:03}.{kind.lower()}", data))
        arrays.append(decode_bytes(data, LIMITS).pixels)
    return paths, arrays


def running(number):
    try:
        with open(f"/proc/{number}/stat", encoding="ascii") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pid(decoder):
    return decoder._child._process.pid
