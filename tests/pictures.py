"""Generated pictures of many kinds, for tests."""

import os

import numpy as np
from PIL import Image

KINDS = (
    "jpg",
    "png",
    "webp",
    "grey.jpg",
    "rgba.png",
    "palette.png",
    "cmyk.jpg",
    "gif",
    "bmp",
    "tif",
    "exif.jpg",
    "progressive.jpg",
)


def array(rng, height, width, channels=3):
    """Smooth colour with some texture: uint8 [height, width, channels]."""
    low = rng.integers(0, 256, (4, 4, channels)).astype(np.uint8)
    smooth = np.asarray(
        Image.fromarray(low[..., 0] if channels == 1 else low[..., :3]).resize((width, height), 3), dtype=np.float32
    )
    smooth = smooth.reshape(height, width, -1)
    noisy = smooth + rng.normal(0, rng.uniform(1, 40), smooth.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def save(path, rng, kind="jpg", height=48, width=64):
    """Write one picture of a kind from KINDS."""
    picture = Image.fromarray(array(rng, height, width))
    if kind == "grey.jpg":
        picture.convert("L").save(path, "JPEG")
    elif kind == "rgba.png":
        picture.putalpha(Image.fromarray(array(rng, height, width, 1)[..., 0]))
        picture.save(path, "PNG")
    elif kind == "palette.png":
        picture.quantize(64).save(path, "PNG")
    elif kind == "cmyk.jpg":
        picture.convert("CMYK").save(path, "JPEG")
    elif kind == "exif.jpg":
        exif = picture.getexif()
        exif[0x0112] = int(rng.integers(2, 9))
        picture.save(path, "JPEG", exif=exif)
    elif kind == "progressive.jpg":
        picture.save(path, "JPEG", progressive=True)
    else:
        picture.save(path, {"jpg": "JPEG", "tif": "TIFF"}.get(kind, kind.upper()))


def folder(path, count, *, seed=0, kinds=KINDS, sub=""):
    """Write ``count`` pictures, cycling through ``kinds``; their names."""
    rng = np.random.default_rng(seed)
    os.makedirs(os.path.join(path, sub), exist_ok=True)
    names = []
    for index in range(count):
        kind = kinds[index % len(kinds)]
        name = os.path.join(sub, f"{index:04d}-{kind}")
        save(os.path.join(path, name), rng, kind, int(rng.integers(20, 90)), int(rng.integers(20, 90)))
        names.append(name)
    return names
