"""The two ways in which a synthetic scene becomes a picture: through a camera, or through a generator's decoder.

Both are drawn once per picture and then called with the scene: the traces they leave are the only thing that tells the
two classes apart. Neither is a model of any particular camera or generator.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from detector.images.synthetic_scenes import Floats

Source = Callable[[Floats], Floats]
"""Display-referred RGB in, float32 [H, W, 3] around 0..1; the same out, not yet clipped or rounded."""

LATENT_STRIDE_PX = 8
"""Picture pixels per latent cell, the factor of latent diffusion: Rombach et al. 2022, "High-resolution image synthesis
with latent diffusion models"."""

_GAMMA = 2.2
# Green at a red or blue site: its four green neighbours, corrected by the Laplacian of the site's own colour: Malvar, He &
# Cutler 2004, "High-quality linear interpolation for demosaicing of Bayer-patterned color images".
_GREEN_KERNEL = np.array(
    [[0, 0, -1, 0, 0], [0, 0, 2, 0, 0], [-1, 2, 4, 2, -1], [0, 0, 2, 0, 0], [0, 0, -1, 0, 0]], dtype=np.float32
) / 8  # fmt: skip
# Bilinear interpolation of what is known on every fourth site, as red and blue are.
_RED_BLUE_KERNEL = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=np.float32) / 4


def optics(image: Floats, sigma_px: float) -> Floats:
    """Blur by a Gaussian point spread, the same in both sources: generators learn from photographs and copy it."""
    return ndimage.gaussian_filter(image, sigma=(sigma_px, sigma_px, 0.0), mode="reflect")


def draw_camera(rng: np.random.Generator, *, height: int, width: int) -> Source:
    """A camera for one exposure: optics, Bayer mosaic, shot and read noise, demosaic, tone curve.

    Shot noise grows with the light and read noise does not: Foi et al. 2008, "Practical Poissonian-Gaussian noise
    modeling and fitting for single-image raw-data". The mosaic's interpolation leaves its own correlations: Popescu &
    Farid 2005, "Exposing digital forgeries in color filter array interpolated images".
    """
    sigma_px = rng.uniform(0.4, 0.7)
    shot, read = rng.uniform(1e-4, 4e-4), rng.uniform(0.001, 0.003)
    noise = rng.standard_normal((height, width), dtype=np.float32)
    red_row, red_column = (int(i) for i in rng.integers(2, size=2))
    masks = _bayer_masks(height, width, red_row=red_row, red_column=red_column)

    def shoot(image: Floats) -> Floats:
        light = np.clip(optics(image, sigma_px), 0.0, 1.0) ** _GAMMA
        mosaic = (light * masks).sum(axis=-1)
        mosaic = mosaic + noise * np.sqrt(shot * mosaic + read**2)
        return np.clip(_demosaic(mosaic, masks), 0.0, 1.0) ** (1 / _GAMMA)

    return shoot


def _bayer_masks(height: int, width: int, *, red_row: int, red_column: int) -> Floats:
    """Which colour each sensor site sees: float32 [H, W, 3] of zeros and ones."""
    masks = np.zeros((height, width, 3), dtype=np.float32)
    masks[red_row::2, red_column::2, 0] = 1
    masks[1 - red_row :: 2, 1 - red_column :: 2, 2] = 1
    masks[..., 1] = 1 - masks[..., 0] - masks[..., 2]
    return masks


def _demosaic(mosaic: Floats, masks: Floats) -> Floats:
    """Green first, then red and blue as differences from it; borders mirrored, which keeps the mosaic's phase."""
    green = np.where(masks[..., 1] == 1, mosaic, ndimage.convolve(mosaic, _GREEN_KERNEL, mode="mirror"))
    red, blue = (green + ndimage.convolve((mosaic - green) * masks[..., c], _RED_BLUE_KERNEL, mode="mirror") for c in (0, 2))
    return np.stack([red, green, blue], axis=-1)


def draw_decoder(rng: np.random.Generator, *, height: int, width: int, ripple: float) -> Source:
    """A generator's decoder: latents of one cell per 8 × 8 pixels, upsampled by learnt kernels; no sensor noise.

    Kernels whose weights do not overlap evenly leave a pattern of the upsampler's period: Odena, Dumoulin & Olah 2016,
    "Deconvolution and checkerboard artifacts". In the spectrum these are peaks at the grid's frequencies: Zhang, Karaman
    & Chang 2019, "Detecting and simulating artifacts in GAN fake images". The step nearest to the latents has the
    longest period and survives resizing best.

    Args:
        rng: draws this picture's kernels and how surely each latent cell is decoded.
        height: of the scenes to come, in pixels.
        width: likewise.
        ripple: relative unevenness of the kernel nearest to the latents; the later ones have a third of it.
    """
    sigma_px = rng.uniform(0.4, 0.7)
    unevenness = ripple * rng.uniform(0.8, 1.2, size=(3, 2)) / np.array([[1.0], [3.0], [3.0]])
    num_cells = (-(-height // LATENT_STRIDE_PX), -(-width // LATENT_STRIDE_PX))
    gains = rng.uniform(0.8, 1.2, size=(*num_cells, 1)).astype(np.float32)
    gain = gains.repeat(LATENT_STRIDE_PX, axis=0).repeat(LATENT_STRIDE_PX, axis=1)[:height, :width]

    def decode(image: Floats) -> Floats:
        image = optics(image, sigma_px)
        latents = _encode(image)
        detail = image - _upsample(latents, np.zeros((3, 2)))[:height, :width]
        return _upsample(latents, unevenness)[:height, :width] + gain * detail

    return decode


def _encode(image: Floats) -> Floats:
    """Means of the 8 × 8 cells, float32 [ceil(H / 8), ceil(W / 8), 3]; the last cells repeat the border."""
    height, width, channels = image.shape
    padding = ((0, -height % LATENT_STRIDE_PX), (0, -width % LATENT_STRIDE_PX), (0, 0))
    padded = np.pad(image, padding, mode="edge")
    cells = padded.reshape(-(-height // LATENT_STRIDE_PX), LATENT_STRIDE_PX, -1, LATENT_STRIDE_PX, channels)
    return cells.mean(axis=(1, 3), dtype=np.float32)


def _upsample(latents: Floats, unevenness: npt.NDArray[np.float64]) -> Floats:
    """Three stride-2 transposed convolutions, latents first; ``unevenness`` is [step, axis], 0 for plain interpolation."""
    image = latents
    for step in unevenness:
        for axis, delta in enumerate(step):
            image = _transposed_convolution(image, axis=axis, unevenness=float(delta))
    return image


def _transposed_convolution(image: Floats, *, axis: int, unevenness: float) -> Floats:
    """Stride 2, kernel (1, 3, 3, 1) / 4 with the weights that reach even pixels raised and the others lowered."""
    image = np.moveaxis(image, axis, 0)
    padded = np.concatenate([image[:1], image, image[-1:]])
    larger = np.empty((2 * len(image), *image.shape[1:]), dtype=np.float32)
    larger[0::2] = (1.0 + unevenness) * (0.75 * image + 0.25 * padded[:-2])
    larger[1::2] = (1.0 - unevenness) * (0.75 * image + 0.25 * padded[2:])
    return np.moveaxis(larger, 0, axis)
