"""The generated corpus of the demo and the tests: the same scenes through a camera (Real) or a decoder (AI), as JPEGs.

Nothing but the picture itself tells the classes apart. Size, JPEG quality and chroma subsampling are drawn before the
label is looked at, and so is the weight of the file: each picture's fine texture is scaled until its JPEG weighs what a
label-blind draft of the same scene weighs. Without that a file without sensor noise is lighter at the same quality.
"""

import csv
import io
import os
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import numpy as np
import numpy.typing as npt
from PIL import Image

from detector.errors import UsageError
from detector.images.synthetic_scenes import Floats, draw_scene
from detector.images.synthetic_sources import draw_camera, draw_decoder, optics
from detector.labels import Label

Colours = tuple[Floats, npt.NDArray[np.float64]]

_GRAIN_RANGE = (0.0, 0.2)
_LEVELLING_STEPS = 6
_LEVELLING_TOLERANCE = 0.015
_PICTURES_PER_TASK = 16


@dataclass(frozen=True, kw_only=True)
class CorpusSpec:
    """What to generate; equal specs give equal bytes.

    Attributes:
        seed: of everything; another seed shares no scene with this one.
        images_per_split: split name → number of pictures, even: half AI, half Real.
        min_side_px: least width and height; each is drawn on its own, evenly up to ``max_side_px``.
        max_side_px: greatest width and height.
        ripple: relative unevenness of the generator's upsampling kernels; 0 leaves only weak traces.
        min_quality: least JPEG quality (libjpeg's scale), drawn evenly up to ``max_quality``.
        max_quality: greatest JPEG quality.
    """

    seed: int
    images_per_split: Mapping[str, int]
    min_side_px: int = 96
    max_side_px: int = 120
    ripple: float = 0.2
    min_quality: int = 75
    max_quality: int = 95

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UsageError("a corpus's seed must not be negative")
        if not self.images_per_split:
            raise UsageError("a corpus needs at least one split: give images_per_split, such as {'train': 800}")
        for split, num_images in self.images_per_split.items():
            if num_images <= 0 or num_images % 2:
                raise UsageError(f"split {split!r} asks for {num_images} pictures: give a positive even number")
            if not split or os.path.basename(split) != split or split.startswith("."):
                raise UsageError(f"{split!r} cannot name a split: give a plain folder name")
        if not 32 <= self.min_side_px <= self.max_side_px:
            raise UsageError(f"no sizes from {self.min_side_px} to {self.max_side_px} px: give 32 <= min <= max")
        if not 1 <= self.min_quality <= self.max_quality <= 95:
            raise UsageError(f"no JPEG qualities from {self.min_quality} to {self.max_quality}: give 1 <= min <= max <= 95")


def write_corpus(folder: str, spec: CorpusSpec, *, workers: int | None = None) -> dict[str, dict[str, str | int]]:
    """Write ``folder/SPLIT/images/*.jpg`` and ``folder/SPLIT/labels.csv`` (``filename,label``; 0 = AI, 1 = Real).

    Args:
        folder: made if missing; pictures of the same spec are written again, with the same bytes.
        spec: what to generate.
        workers: processes; the bytes do not depend on it. None: one per core.

    Returns:
        By split: ``images`` and ``labels`` (paths), ``num_images``, ``num_ai``, ``num_real``.

    Raises:
        UsageError: a split's picture folder already holds other files.
    """
    tasks = [(split, number) for split, count in spec.images_per_split.items() for number in range(count)]
    for split in spec.images_per_split:
        _make_picture_folder(folder, spec, split)
    _run(partial(_write_picture, folder, spec), tasks, workers=workers or os.cpu_count() or 1)
    return {split: _write_labels(folder, spec, split) for split in spec.images_per_split}


def render_picture(spec: CorpusSpec, split: str, number: int) -> bytes:
    """The JPEG file of picture ``number`` of ``split``; it depends on no other picture."""
    rng = np.random.default_rng(np.random.SeedSequence(spec.seed, spawn_key=(_split_key(split), 1, number)))
    height, width = (int(side) for side in rng.integers(spec.min_side_px, spec.max_side_px, size=2, endpoint=True))
    encode = _draw_encoder(rng, spec)
    scene = draw_scene(rng, height=height, width=width)
    draft = optics(scene.structure + rng.uniform(0.04, 0.07) * scene.grain, 0.5)
    # Both are drawn for every picture, so that the label moves no other draw.
    camera = draw_camera(rng, height=height, width=width)
    decoder = draw_decoder(rng, height=height, width=width, ripple=spec.ripple)
    source = decoder if draw_labels(spec, split)[number] == Label.AI else camera
    colours = _colour_statistics(draft)

    def render(amount: float) -> bytes:
        return encode(_grade(source(scene.structure + amount * scene.grain), like=colours))

    return _level(render, target_bytes=len(encode(draft)))


def draw_labels(spec: CorpusSpec, split: str) -> npt.NDArray[np.int64]:
    """The labels of a split's pictures, int64 [N], in the order of their names: half AI, half Real, shuffled."""
    labels = np.repeat(np.array([Label.AI, Label.REAL], dtype=np.int64), spec.images_per_split[split] // 2)
    return np.random.default_rng(np.random.SeedSequence(spec.seed, spawn_key=(_split_key(split), 0))).permutation(labels)


def picture_name(split: str, number: int) -> str:
    """File name of a picture; names and their order say nothing about the label."""
    return f"{split}-{number:06d}.jpg"


def _split_key(split: str) -> int:
    """A number for a split's name, so that adding a split leaves the others as they were."""
    return zlib.crc32(split.encode())


def _draw_encoder(rng: np.random.Generator, spec: CorpusSpec) -> Callable[[Floats], bytes]:
    """A JPEG encoder of random quality and chroma subsampling (4:4:4 or 4:2:0)."""
    quality = int(rng.integers(spec.min_quality, spec.max_quality, endpoint=True))
    subsampling = int(rng.choice([0, 2]))

    def encode(image: Floats) -> bytes:
        pixels = np.rint(np.clip(image, 0.0, 1.0) * 255).astype(np.uint8)
        with io.BytesIO() as file:
            Image.fromarray(pixels).save(file, format="JPEG", quality=quality, subsampling=subsampling)
            return file.getvalue()

    return encode


def _grade(image: Floats, *, like: Colours) -> Floats:
    """``image`` with the brightness, contrast and saturation of another: the mean and the covariance of its colours.

    The linear transfer by Cholesky factors, one of those in Pitié & Kokaram 2007, "The linear Monge-Kantorovitch linear
    colour mapping for example-based colour transfer".
    """
    (mean, spread), (target_mean, target_spread) = _colour_statistics(image), like
    transfer = (target_spread @ np.linalg.inv(spread)).astype(np.float32)
    # einsum, not matmul: its sums do not depend on the number of threads.
    return np.einsum("ij,hwj->hwi", transfer, image - mean) + target_mean


def _colour_statistics(image: Floats) -> Colours:
    """Mean colour, float32 [3], and the lower Cholesky factor of the colours' covariance, float64 [3, 3]."""
    planes = np.array(image.reshape(-1, 3).T, order="C")  # a copy, by colour: three times as fast to sum
    means = planes.mean(axis=1)
    planes -= means[:, None]
    covariance = np.einsum("in,jn->ij", planes, planes).astype(np.float64) / planes.shape[1]
    return means, np.linalg.cholesky(covariance + 1e-8 * np.eye(3))


def _level(render: Callable[[float], bytes], target_bytes: int) -> bytes:
    """The file whose grain makes it weigh ``target_bytes``, as nearly as a few steps of bisection reach.

    Args:
        render: amount of grain → file; the weight grows with the amount.
        target_bytes: the weight wanted.
    """
    low, high = _GRAIN_RANGE
    best = b""
    for _ in range(_LEVELLING_STEPS):
        middle = (low + high) / 2
        file = render(middle)
        if not best or abs(len(file) - target_bytes) < abs(len(best) - target_bytes):
            best = file
        if abs(len(file) / target_bytes - 1) < _LEVELLING_TOLERANCE:
            break
        low, high = (middle, high) if len(file) < target_bytes else (low, middle)
    return best


def _make_picture_folder(folder: str, spec: CorpusSpec, split: str) -> None:
    """Create the split's picture folder; refuse one that holds anything but this corpus's own files."""
    images = os.path.join(folder, split, "images")
    os.makedirs(images, exist_ok=True)
    own = {picture_name(split, number) for number in range(spec.images_per_split[split])}
    foreign = sorted(set(os.listdir(images)) - own)
    if foreign:
        raise UsageError(f"{images} already holds other files ({foreign[0]!r}): give an empty folder")


def _write_picture(folder: str, spec: CorpusSpec, task: tuple[str, int]) -> None:
    split, number = task
    with open(os.path.join(folder, split, "images", picture_name(split, number)), "wb") as file:
        file.write(render_picture(spec, split, number))


def _write_labels(folder: str, spec: CorpusSpec, split: str) -> dict[str, str | int]:
    """Write the split's ``labels.csv`` and say what the split holds."""
    labels = draw_labels(spec, split)
    path = os.path.join(folder, split, "labels.csv")
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["filename", "label"])
        writer.writerows([picture_name(split, number), int(label)] for number, label in enumerate(labels))
    num_ai = int((labels == Label.AI).sum())
    counts = {"num_images": len(labels), "num_ai": num_ai, "num_real": len(labels) - num_ai}
    return {"images": os.path.join(folder, split, "images"), "labels": path, **counts}


def _run(write: Callable[[tuple[str, int]], None], tasks: list[tuple[str, int]], *, workers: int) -> None:
    """Call ``write`` for every task, in this process or in ``workers`` of their own.

    The processes are spawned, not forked: the caller may have threads running, which a forked copy would find dead.
    """
    if workers == 1:
        for task in tasks:
            write(task)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for _ in pool.map(write, tasks, chunksize=_PICTURES_PER_TASK):
            pass  # drawing the results is what raises a worker's error here
