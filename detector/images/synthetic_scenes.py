"""What the synthetic pictures show: scenes with the statistics of natural images, drawn before any label is known.

A scene has two parts. ``structure`` is a dead-leaves picture, a 1/f texture or a smooth gradient, in colour. ``grain`` is
the finest texture of its materials, kept apart so that the corpus can level the weight of the files (see ``synthetic``).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

Floats = npt.NDArray[np.float32]

_NUM_COLOURS = 6
_SMALLEST_LEAF_PX = 3.0


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Display-referred RGB, float32 [H, W, 3]: ``structure`` within 0..1, ``grain`` of zero mean and unit deviation."""

    structure: Floats
    grain: Floats


def draw_scene(rng: np.random.Generator, *, height: int, width: int) -> Scene:
    """Draw one scene of ``height`` × ``width`` pixels."""
    shape = (height, width)
    palette = _draw_palette(rng)
    kind = rng.choice(3, p=[0.5, 0.3, 0.2])
    if kind == 0:
        structure = _draw_leaves(rng, shape, palette, num_leaves=int(rng.integers(60, 120)))
    elif kind == 1:
        structure = _draw_clouds(rng, shape, palette, exponent=rng.uniform(1.0, 1.4))
    else:
        structure = _draw_gradient(rng, shape, palette)
    light = 1.0 + rng.uniform(0.0, 0.15) * power_law_field(rng, shape, exponent=2.5)
    structure = np.clip(structure * light[..., None], 0.03, 0.97).astype(np.float32)
    return Scene(structure=structure, grain=_draw_grain(rng, shape))


def power_law_field(rng: np.random.Generator, shape: tuple[int, int], *, exponent: float) -> Floats:
    """Gaussian field, float32 [H, W], zero mean, unit deviation, whose amplitude spectrum falls as 1 / f^exponent.

    Natural images have an exponent of about 1: Field 1987, "Relations between the statistics of natural images and the
    response properties of cortical cells".
    """
    height, width = shape
    frequency = np.hypot(fft.fftfreq(height)[:, None], fft.rfftfreq(width)[None, :]).astype(np.float32)
    frequency[0, 0] = np.inf
    spectrum = fft.rfft2(rng.standard_normal(shape, dtype=np.float32)) * frequency**-exponent
    field = fft.irfft2(spectrum, s=shape)
    return (field / field.std()).astype(np.float32)


def _draw_palette(rng: np.random.Generator) -> Floats:
    """Colours, float32 [6, 3]: luminances spread over the range, the hues scattered around the scene's own tint."""
    luminance = rng.uniform(0.42, 0.58) + rng.uniform(0.7, 1.1) * np.linspace(-0.32, 0.32, _NUM_COLOURS)
    tint = rng.normal(0.0, 0.06, size=3)
    chroma = tint + rng.normal(0.0, 0.09, size=(_NUM_COLOURS, 3))
    colours = luminance[:, None] + chroma - chroma.mean(axis=1, keepdims=True)
    return rng.permutation(np.clip(colours, 0.05, 0.95)).astype(np.float32)


def _draw_leaves(rng: np.random.Generator, shape: tuple[int, int], palette: Floats, *, num_leaves: int) -> Floats:
    """Ellipses that hide one another, radii by an inverse cube law, each shaded and textured, on a cloudy ground.

    The dead leaves model: Lee, Mumford & Huang 2001, "Occlusion models for natural images".
    """
    canvas = _draw_clouds(rng, shape, palette, exponent=1.3)
    texture = 0.05 * power_law_field(rng, shape, exponent=1.0)
    radii = _draw_radii(rng, num_leaves, largest=0.45 * min(shape))
    centres = rng.uniform(-0.05, 1.05, size=(num_leaves, 2)) * shape
    colours = palette[rng.integers(_NUM_COLOURS, size=num_leaves)] + rng.normal(0.0, 0.03, size=(num_leaves, 3))
    for centre, radius, colour in zip(centres, radii, colours.astype(np.float32), strict=True):
        _paint_leaf(rng, canvas, texture, centre=centre, radius=float(radius), colour=colour)
    return canvas


def _draw_radii(rng: np.random.Generator, num_leaves: int, *, largest: float) -> npt.NDArray[np.float64]:
    """Radii in pixels with density r^-3 between the smallest leaf and ``largest`` (inverse of the distribution)."""
    low, high = _SMALLEST_LEAF_PX**-2, largest**-2
    return (low + rng.uniform(size=num_leaves) * (high - low)) ** -0.5


def _paint_leaf(rng: np.random.Generator, canvas: Floats, texture: Floats, *, centre: npt.NDArray[np.float64],
                radius: float, colour: Floats) -> None:  # fmt: skip
    """Lay one ellipse over ``canvas`` in place, with its own shading and the scene's texture."""
    angle, flatness = rng.uniform(0.0, np.pi), rng.uniform(0.5, 1.0)
    slope = rng.normal(0.0, 0.12, size=2)
    top, left = (max(0, int(c - radius)) for c in centre)
    rows, columns = (slice(start, max(start, int(c + radius) + 2)) for start, c in zip((top, left), centre, strict=True))
    patch = canvas[rows, columns]
    if patch.size == 0:
        return
    y = ((np.arange(top, top + patch.shape[0]) - centre[0]) / radius)[:, None]
    x = ((np.arange(left, left + patch.shape[1]) - centre[1]) / radius)[None, :]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    inside = along**2 + (across / flatness) ** 2 <= 1.0
    shade = texture[rows, columns] + (slope[0] * y + slope[1] * x).astype(np.float32)
    patch[inside] = (shade[..., None] + colour)[inside]


def _draw_clouds(rng: np.random.Generator, shape: tuple[int, int], palette: Floats, *, exponent: float) -> Floats:
    """A 1/f texture in colour: the luminance field in full, two weaker chroma fields (chroma varies less in nature)."""
    luminance = power_law_field(rng, shape, exponent=exponent)
    warm, green = (power_law_field(rng, shape, exponent=exponent + 0.3) for _ in range(2))
    amplitude = palette.mean(axis=1).std()
    chroma = np.stack([0.5 * warm - 0.25 * green, 0.5 * green, -0.5 * warm - 0.25 * green], axis=-1)
    field = palette.mean(axis=0) + amplitude * (0.85 * luminance[..., None] + 0.35 * chroma)
    return np.clip(field, 0.0, 1.0).astype(np.float32)


def _draw_gradient(rng: np.random.Generator, shape: tuple[int, int], palette: Floats) -> Floats:
    """A smooth sweep through the palette along a bent front, with a few leaves on it, as of a sky or an airbrush."""
    height, width = shape
    y, x = np.linspace(-1.0, 1.0, height)[:, None], np.linspace(-1.0, 1.0, width)[None, :]
    angle = rng.uniform(0.0, 2.0 * np.pi)
    front = np.cos(angle) * x + np.sin(angle) * y + 0.6 * power_law_field(rng, shape, exponent=2.2)
    place = (front - front.min()) / (front.max() - front.min()) * (_NUM_COLOURS - 1)
    canvas = np.stack([np.interp(place, np.arange(_NUM_COLOURS), palette[:, c]) for c in range(3)], axis=-1)
    canvas = canvas.astype(np.float32)
    texture = 0.03 * power_law_field(rng, shape, exponent=1.0)
    for radius in rng.uniform(0.08, 0.3, size=rng.integers(4, 9)) * min(shape):
        centre = rng.uniform(0.0, 1.0, size=2) * shape
        colour = palette[rng.integers(_NUM_COLOURS)]
        _paint_leaf(rng, canvas, texture, centre=centre, radius=float(radius), colour=colour)
    return canvas


def _draw_grain(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Fine texture of canvas, paper or skin: nearly white below the optics' blur, mostly grey, a little coloured."""
    noise = rng.standard_normal((*shape, 4), dtype=np.float32)
    grain = noise[..., :1] + 0.4 * noise[..., 1:]
    grain = ndimage.gaussian_filter(grain, sigma=(0.5, 0.5, 0.0))
    return (grain / grain.std()).astype(np.float32)
