"""Other libraries that decode pictures, as far as they are installed: bytes → uint8 [H, W, 3], RGB."""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np

Decode = Callable[[bytes], np.ndarray]


def installed(ending: str) -> dict[str, Decode]:
    """Decoders for files of a kind (``jpg``, ``png``, ``webp``), by the name of their library."""
    found: dict[str, Decode] = {}
    for add in (_pillow, _simplejpeg, _torchvision, _torchcodec, _imagecodecs, _opencv, _pyvips, _pyspng):
        with contextlib.suppress(ImportError, RuntimeError, OSError):  # torchcodec raises what its loader does
            found |= add(ending)
    return found


def _pillow(_ending: str) -> dict[str, Decode]:
    import io

    from PIL import Image

    return {"Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))}


def _simplejpeg(ending: str) -> dict[str, Decode]:
    import simplejpeg

    return {"simplejpeg": lambda data: simplejpeg.decode_jpeg(data, "RGB")} if ending == "jpg" else {}


def _torchvision(_ending: str) -> dict[str, Decode]:
    import torch
    from torchvision.io import ImageReadMode, decode_image

    def decode(data: bytes) -> np.ndarray:
        return _channels_last(decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB))

    return {"torchvision": decode}


def _torchcodec(_ending: str) -> dict[str, Decode]:
    from torchcodec.decoders import decode_image

    def decode(data: bytes) -> np.ndarray:
        picture = decode_image(data, mode="RGB")
        return _channels_last(picture[0] if picture.ndim == 4 else picture)

    return {"torchcodec": decode}


def _channels_last(picture: Any) -> np.ndarray:
    return picture.permute(1, 2, 0).numpy()


def _imagecodecs(ending: str) -> dict[str, Decode]:
    import imagecodecs

    names = {"jpg": ("jpeg8",), "png": ("png", "spng"), "webp": ("webp",)}[ending]
    decoders = {f"imagecodecs {name}": getattr(imagecodecs, f"{name}_decode") for name in names}
    return {name: lambda data, decode=decode: np.ascontiguousarray(decode(data)[..., :3]) for name, decode in decoders.items()}


def _opencv(_ending: str) -> dict[str, Decode]:
    import cv2

    cv2.setNumThreads(1)
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return {"opencv": lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), flags)}


def _pyvips(_ending: str) -> dict[str, Decode]:
    import pyvips

    pyvips.cache_set_max(0)
    return {"pyvips": lambda data: pyvips.Image.new_from_buffer(data, "", access="sequential").numpy()[..., :3]}


def _pyspng(ending: str) -> dict[str, Decode]:
    import pyspng

    return {"pyspng-seunglab": lambda data: pyspng.load(data, format="RGB")} if ending == "png" else {}
