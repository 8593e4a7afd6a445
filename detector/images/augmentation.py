"""What training does to a picture so that the model does not learn its frame or its file: uint8 in, uint8 out.

``seed`` is the published recipe: a random resized crop and a horizontal flip. ``robust`` adds what pictures go through on
their way across the web, to both classes alike: JPEG of any quality, blur, and a resize round trip, at the probabilities of
Wang et al., "CNN-generated images are surprisingly easy to spot... for now" (CVPR 2020), section 4.1 (blur σ from U[0, 3] and
JPEG quality from U{30, …, 100}, each with probability 0.5). The damage is done at the source's scale, before the resize.

Every draw comes from one generator that the caller seeds by (seed, epoch, picture): which process does the work, and
after which restart, changes nothing.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import simplejpeg

if TYPE_CHECKING:
    import torch

_RATIOS = (3 / 4, 4 / 3)  # aspect ratios of the crop: torchvision's RandomResizedCrop, after Szegedy et al. (2014)
_CROP_ATTEMPTS = 10
_DAMAGE_PROBABILITY = 0.5
_JPEG_QUALITY = (30, 100)
_BLUR_SIGMA = 3.0
_ROUND_TRIP_SCALE = (0.5, 1.0)


@dataclass(frozen=True, kw_only=True)
class TrainingAugmentation:
    """From decoded pixels to one training input.

    Attributes:
        size: height and width in pixels of the model's input.
        resample: mode of ``torch.nn.functional.interpolate``, the evaluation transform's.
        min_scale: smallest share of the picture's area that the crop keeps.
        robust: whether JPEG, blur and resize round trips are added.
    """

    size: tuple[int, int]
    resample: str = "bicubic"
    min_scale: float = 0.08
    robust: bool = False

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> "torch.Tensor":
        """Augment one picture: uint8 [H, W, 3] → torch.uint8 [3, h, w]."""
        import torch

        top, left, height, width = self._crop(pixels.shape[0], pixels.shape[1], rng)
        crop = pixels[top : top + height, left : left + width]
        if self.robust:
            crop = _damage(crop, rng)
        picture = _resize(torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1), self.size, self.resample)
        return picture.flip(-1).contiguous() if rng.random() < 0.5 else picture.contiguous()

    def _crop(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """A random box (top, left, height, width) in pixels, of random area and aspect ratio, inside the picture."""
        for _ in range(_CROP_ATTEMPTS):
            area = height * width * rng.uniform(self.min_scale, 1.0)
            ratio = math.exp(rng.uniform(math.log(_RATIOS[0]), math.log(_RATIOS[1])))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
        w = min(width, max(1, round(height * _RATIOS[1])))  # a very long picture: the largest box of an allowed shape
        h = min(height, max(1, round(w / _RATIOS[0])))
        return (height - h) // 2, (width - w) // 2, h, w


def _resize(picture: "torch.Tensor", size: tuple[int, int], mode: str) -> "torch.Tensor":
    """Resize uint8 [3, H, W] → [3, h, w] with antialiasing, as the evaluation transform does."""
    from torch.nn import functional

    if tuple(picture.shape[-2:]) == tuple(size):
        return picture
    smooth: dict[str, Any] = {"antialias": True, "align_corners": False} if mode in {"bilinear", "bicubic"} else {}
    return functional.interpolate(picture.unsqueeze(0), size=tuple(size), mode=mode, **smooth)[0]


def _damage(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur, resize round trip and JPEG, each or none of them: uint8 [H, W, 3] → the same shape."""
    if rng.random() < _DAMAGE_PROBABILITY:
        pixels = _blur(pixels, rng.uniform(0, _BLUR_SIGMA))
    if rng.random() < _DAMAGE_PROBABILITY:
        pixels = _round_trip(pixels, rng.uniform(*_ROUND_TRIP_SCALE))
    if rng.random() < _DAMAGE_PROBABILITY:
        quality = int(rng.integers(_JPEG_QUALITY[0], _JPEG_QUALITY[1] + 1))
        chroma = "420" if rng.random() < 0.5 else "444"
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality, colorspace="RGB", colorsubsampling=chroma)
        pixels = simplejpeg.decode_jpeg(data, colorspace="RGB")
    return pixels


def _blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of standard deviation ``sigma`` pixels, separable, edges repeated."""
    import torch
    from torch.nn import functional

    radius = min(math.ceil(3 * sigma), min(pixels.shape[:2]) - 1)
    if radius < 1:
        return pixels
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float32) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).repeat(3, 1)
    planes = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).unsqueeze(0).float()
    planes = functional.pad(planes, (radius, radius, radius, radius), mode="replicate")
    planes = functional.conv2d(planes, kernel.view(3, 1, 1, -1), groups=3)
    planes = functional.conv2d(planes, kernel.view(3, 1, -1, 1), groups=3)
    return planes[0].permute(1, 2, 0).round_().clamp_(0, 255).to(torch.uint8).numpy()


def _round_trip(pixels: np.ndarray, scale: float) -> np.ndarray:
    """Make the picture ``scale`` times as large and then its old size again."""
    import torch

    height, width = pixels.shape[:2]
    small = (max(1, round(height * scale)), max(1, round(width * scale)))
    picture = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
    return _resize(_resize(picture, small, "bicubic"), (height, width), "bicubic").permute(1, 2, 0).numpy()
