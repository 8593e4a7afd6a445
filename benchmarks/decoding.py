"""Decoding and resizing, interleaved: ``python -m benchmarks.decoding``.

In every round each way handles the same files in turn; ratios are taken within a round, and their medians and ranges printed.
CPU-seconds are those of this process and of the decoder's child together. Beside this project's own ways, every decoding
library that is installed is measured with this project's resize.
"""

import glob
import hashlib
import io
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import psutil
import torch
import tyro
from PIL import Image

from benchmarks.decoders import installed
from benchmarks.measure import heading, save, summary
from detector.images.decoding import Decoder
from detector.images.pixels import DecodeLimits, decode_bytes
from detector.images.synthetic_scenes import draw_scene
from detector.images.transforms import EvaluationTransform

SIZE = 224
LIMITS = DecodeLimits()
TRANSFORM = EvaluationTransform(
    resize_to=(SIZE, SIZE), shortest_edge=None, crop=None, resample="bicubic", rescale=1 / 255,
    mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
)  # fmt: skip
ARTWORKS = Path(__file__).parents[1].parent / "shared" / "data" / "artworks"
MADE = {
    "JPEG 1024 × 768": (768, 1024, "jpg", {"quality": 88}),
    "JPEG 2048 × 1536": (1536, 2048, "jpg", {"quality": 88}),
    "PNG 512 × 768": (768, 512, "png", {}),
    "PNG 1024 × 1024": (1024, 1024, "png", {}),
    "WebP 1024 × 768": (768, 1024, "webp", {"quality": 85}),
}
_REFERENCE = "Pillow, with its own resize"
WAYS = ("Pillow", "ours", "protected", "read", "protected read", "scaled")


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Measure decoding and resizing against Pillow and other libraries, and write a Markdown table."""

    pictures: int = 6
    """Pictures of each kind."""
    passes: int = 4
    """How often a way goes over them in one round."""
    rounds: int = 9
    """Interleaved rounds."""
    libraries: bool = True
    """Also measure the other decoding libraries that are installed."""
    out: str = "benchmarks/results"
    """Folder for the table."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What one way took for one picture, in milliseconds."""

    cpu_ms: float
    wall_ms: float


Samples = dict[str, list[Sample]]


_COLUMNS = ("kind", "Pillow, CPU-ms", "ours", "ours, protected", "ours, CPU", "protected, CPU", "protected, wall",
            "protection costs, %", "difference, mean / max", "scaled, CPU", "scaled, difference")  # fmt: skip
_LEGEND = (
    f"To {SIZE} × {SIZE}, bicubic, one thread. CPU-ms: median a picture. ×: pictures in the time that one takes through",
    "Pillow's decoding and resizing, median (range). protected: through the decoder's child process, its CPU-seconds",
    "included. Protection costs: reading, SHA-256 and decoding in the child over the same in this process. Difference: grey",
    "levels (0 to 255) of the model's input from Pillow's. scaled: `--decode scaled`, protected. Real files: EXIF orientation",
    "is applied by this project only.",
)


def write_pictures(folder: str, count: int) -> dict[str, list[bytes]]:
    """Painterly scenes in each size and format; and real files, where there are any. Paths by kind."""
    kinds = {}
    for kind, (height, width, ending, options) in MADE.items():
        rng, paths = np.random.default_rng(7), []
        for number in range(count):
            scene = draw_scene(rng, height=height, width=width)
            pixels = np.clip(scene.structure * 255 + 2.0 * scene.grain, 0, 255).astype(np.uint8)
            path = os.path.join(folder, f"{width}-{number}.{ending}")
            Image.fromarray(pixels).save(path, **options)
            paths.append(os.fsencode(path))
        kinds[kind] = paths
    for kind, ending in (("real JPEG", "jpg"), ("real PNG", "png")):
        found = sorted(glob.glob(f"{ARTWORKS}/*/*.{ending}"))
        if found:
            kinds[kind] = [os.fsencode(path) for path in found[:: max(1, len(found) // (4 * count))]]
    return kinds


def with_pillow(data: bytes) -> np.ndarray:
    """The reference: Pillow decodes, Pillow resizes."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def with_decode(decode: Callable[[bytes], np.ndarray]) -> Callable[[bytes], np.ndarray]:
    """A decoder of bytes, followed by this project's resize."""
    return lambda data: TRANSFORM.resize(decode(data)).permute(1, 2, 0).numpy()


def read(path: bytes) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def each(function: Callable[[bytes], object]) -> Callable[[list[bytes]], None]:
    def run(paths: list[bytes]) -> None:
        for path in paths:
            function(read(path))

    return run


def protected(decoder: Decoder, *, resize: bool) -> Callable[[list[bytes]], None]:
    def run(paths: list[bytes]) -> None:
        for found in decoder.decode(paths):
            assert found.pixels is not None, found.message
            if resize:
                TRANSFORM.resize(found.pixels)

    return run


def read_and_decode(data: bytes) -> None:
    """What the child does for a picture, in this process."""
    hashlib.sha256(data).hexdigest()
    decode_bytes(data, LIMITS)


def ways(decoder: Decoder, scaled: Decoder) -> dict[str, Callable[[list[bytes]], None]]:
    ours = with_decode(lambda data: decode_bytes(data, LIMITS).pixels)
    runs = (each(with_pillow), each(ours), protected(decoder, resize=True), each(read_and_decode),
            protected(decoder, resize=False), protected(scaled, resize=True))  # fmt: skip
    return dict(zip(WAYS, runs, strict=True))


def cpu_s() -> float:
    """CPU-seconds of this process and its children so far, to the nanosecond where the system says so."""
    total = time.process_time()
    for child in psutil.Process().children():
        try:
            with open(f"/proc/{child.pid}/schedstat", encoding="ascii") as file:
                total += int(file.read().split()[0]) / 1e9
        except OSError:
            times = child.cpu_times()
            total += times.user + times.system
    return total


def take(run: Callable[[list[bytes]], None], paths: list[bytes]) -> Sample:
    cpu, wall = cpu_s(), time.perf_counter()
    run(paths)
    wall_ms, cpu_ms = 1000 * (time.perf_counter() - wall), 1000 * (cpu_s() - cpu)
    return Sample(cpu_ms=cpu_ms / len(paths), wall_ms=wall_ms / len(paths))


def measure(run_by_way: dict[str, Callable[[list[bytes]], None]], paths: list[bytes], flags: Flags) -> Samples:
    """Every way in turn, ``rounds`` times; the first round warms up and is left out."""
    found: Samples = {way: [] for way in run_by_way}
    for round_ in range(flags.rounds + 1):
        for way, run in run_by_way.items():
            sample = take(run, paths * flags.passes)
            if round_:
                found[way].append(sample)
    return found


def ratios(samples: Samples, over: str, under: str, what: str = "cpu_ms") -> list[float]:
    return [getattr(a, what) / getattr(b, what) for a, b in zip(samples[over], samples[under], strict=True)]


def middle(samples: Samples, way: str, what: str = "cpu_ms") -> float:
    return statistics.median(getattr(sample, what) for sample in samples[way])


def difference(paths: list[bytes], decode: Callable[[bytes], np.ndarray]) -> str:
    """Grey levels between this project's input to the model and Pillow's: mean, largest."""
    gaps = [np.abs(decode(data).astype(int) - with_pillow(data)) for data in map(read, paths)]
    return f"{np.mean([gap.mean() for gap in gaps]):.4f} / {max(int(gap.max()) for gap in gaps)}"


def own_rows(kinds: dict[str, list[bytes]], flags: Flags) -> Iterator[str]:
    ours = with_decode(lambda data: decode_bytes(data, LIMITS).pixels)
    minimum = TRANSFORM.scaled_minimum
    scaled_here = with_decode(lambda data: decode_bytes(data, LIMITS, minimum).pixels)
    with Decoder(LIMITS) as decoder, Decoder(LIMITS, at_least=minimum) as scaled:
        for kind, paths in kinds.items():
            samples = measure(ways(decoder, scaled), paths, flags)
            faster = summary(ratios(samples, "Pillow", "ours"))
            cost = [100 * (ratio - 1) for ratio in ratios(samples, "protected read", "read")]
            print(f"{kind}: {faster} × Pillow, protection {summary(cost)} %", file=sys.stderr)
            yield (
                f"| {kind} | {middle(samples, 'Pillow'):.2f} | {middle(samples, 'ours'):.2f} "
                f"| {middle(samples, 'protected'):.2f} | {faster} × "
                f"| {summary(ratios(samples, 'Pillow', 'protected'))} × "
                f"| {summary(ratios(samples, 'Pillow', 'protected', 'wall_ms'))} × | {summary(cost)} "
                f"| {difference(paths, ours)} "
                f"| {summary(ratios(samples, 'Pillow', 'scaled'))} × | {difference(paths, scaled_here)} |"
            )


def library_rows(kinds: dict[str, list[bytes]], flags: Flags) -> Iterator[str]:
    for kind, paths in kinds.items():
        decoders = {"this project": lambda data: decode_bytes(data, LIMITS).pixels}
        decoders |= installed(Path(os.fsdecode(paths[0])).suffix[1:])
        runs = {_REFERENCE: each(with_pillow)} | {name: each(with_decode(decode)) for name, decode in decoders.items()}
        samples = measure(runs, paths, flags)
        yield f"| {kind} | {_REFERENCE} | {middle(samples, _REFERENCE):.2f} | 1 | – |"
        for name, decode in decoders.items():
            exact = all(np.array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
                        for data in map(read, paths))  # fmt: skip
            yield (
                f"| {kind} | {name} | {middle(samples, name):.2f} | {summary(ratios(samples, _REFERENCE, name))} × "
                f"| {'yes' if exact else 'no'} |"
            )


def main(flags: Flags) -> None:
    """Measure and write."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        kinds = write_pictures(folder, flags.pictures)
        head = [f"| {' | '.join(_COLUMNS)} |", f"|{' --- |' * len(_COLUMNS)}"]
        lines = [*head, *own_rows(kinds, flags), "", f"{flags.rounds} interleaved rounds of {flags.passes} passes.", *_LEGEND]
        if flags.libraries:
            lines += [
                "",
                "## Decoders, each with this project's resize",
                "",
                "| kind | decoder | CPU-ms | Pillow ÷ it, CPU | pixels equal Pillow's |",
                "| --- | --- | --- | --- | --- |",
                *library_rows(kinds, flags),
            ]
    text = "\n".join([*heading("Decoding and resizing", "benchmarks.decoding"), *lines])
    print(save(text + "\n", flags.out, "decoding"))


if __name__ == "__main__":
    main(tyro.cli(Flags))
