"""Scoring against the alternatives, on the same files and weights: ``python -m benchmarks.run``, or ``make bench``.

Every way scores a small and a large folder, in turn, several times. The slope between the two (CPU-seconds and wall time
a picture) is the steady state, without imports and start-up; what is left is the fixed cost. The machine may be shared:
medians and ranges are printed, and CPU-seconds stand beside wall time. Starting takes a second or two more or less each
time: the further apart the two sizes are, the steadier the slope.
"""

import os
import statistics
import sys
import tempfile
from dataclasses import dataclass

import numpy as np
import tyro
from PIL import Image

from benchmarks.measure import Cost, heading, run, save, summary


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Measure scoring against the alternatives and write a Markdown table."""

    small: int = 64
    """Pictures in the small folder."""
    large: int = 256
    """Pictures in the large folder."""
    repeats: int = 5
    """Interleaved rounds."""
    out: str = "benchmarks/results"
    """Folder for the table."""
    ways: tuple[str, ...] = (
        "loop", "local", "ray", "loop-openvino", "local-openvino", "naive", "batched", "dataloader", "dataloader-bf16", "recipe"
    )  # fmt: skip
    """Which ways to measure."""


def commands(folder: str, model: str, work: str) -> dict[str, list[str]]:
    """Every way as a command line; each writes to a fresh output."""
    fresh = tempfile.mkdtemp(dir=work)
    score = [sys.executable, "-m", "jobs.score", "--images", folder, "--model", model, "--out", f"{fresh}/out"]
    naive = [sys.executable, "-m", "benchmarks.naive", folder, model, f"{fresh}/out.csv"]
    loop = [sys.executable, "-m", "benchmarks.loop", folder, model, f"{fresh}/out.csv"]
    loader = [sys.executable, "-m", "benchmarks.dataloader", folder, model, f"{fresh}/out.csv"]
    return {
        "local": [*score, "--engine", "local"],
        "ray": [*score, "--engine", "ray"],
        "local-openvino": [*score, "--engine", "local", "--backend", "openvino"],
        "loop": [*loop, "torch"],
        "loop-openvino": [*loop, "openvino"],
        "dataloader": [*loader, "pillow", "fp32"],
        "dataloader-bf16": [*loader, "torchvision", "bf16"],
        "recipe": [sys.executable, "-m", "benchmarks.ray_recipe", folder, model, f"{fresh}/csv"],
        "naive": [*naive, "1"],
        "batched": [*naive, "16"],
    }


def write_pictures(folder: str, count: int) -> str:
    """JPEGs of 1 and 3 megapixels in turn, smooth with noise, as photographs compress."""
    os.makedirs(folder)
    rng = np.random.default_rng(0)
    for index in range(count):
        height, width = ((768, 1360), (1536, 2048))[index % 2]
        low = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(low, dtype=np.int16) + rng.integers(-12, 13, (height, width, 1), dtype=np.int16)
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(os.path.join(folder, f"{index:05d}.jpg"), quality=88)
    return folder


def save_model(folder: str) -> str:
    """A Swin-tiny of published size with random weights: speed does not depend on them."""
    from transformers import SwinConfig, SwinForImageClassification, ViTImageProcessor

    config = SwinConfig(num_labels=2, id2label={0: "AI", 1: "Real"}, label2id={"AI": 0, "Real": 1})
    SwinForImageClassification(config).save_pretrained(folder)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    ViTImageProcessor(size={"height": 224, "width": 224}, resample=3, image_mean=mean, image_std=std).save_pretrained(folder)
    return folder


def main(flags: Flags) -> None:
    """Measure and write."""
    with tempfile.TemporaryDirectory() as work:
        model = save_model(f"{work}/model")
        if any(way.endswith("openvino") for way in flags.ways):  # converted once, as for a user, before anything is measured
            run(commands(write_pictures(f"{work}/one", 1), model, work)["local-openvino"], log=f"{work}/log")
        folders = {count: write_pictures(f"{work}/{count}", count) for count in (flags.small, flags.large)}
        costs: dict[tuple[str, int], list[Cost]] = {(way, count): [] for way in flags.ways for count in folders}
        for repeat in range(flags.repeats):
            for way in flags.ways:
                for count, folder in folders.items():
                    cost = run(commands(folder, model, work)[way], log=f"{work}/log")
                    costs[way, count].append(cost)
                    print(f"round {repeat + 1} {way} {count}: {cost.cpu_s:.1f} CPU-s, {cost.wall_s:.1f} s", file=sys.stderr)
    print(save(table(flags, costs), flags.out, "scoring"))


def slopes(flags: Flags, costs: dict[tuple[str, int], list[Cost]], way: str, what: str) -> list[float]:
    """Milliseconds a picture between the two sizes, round by round."""
    pairs = zip(costs[way, flags.large], costs[way, flags.small], strict=True)
    return [1000 * (getattr(big, what) - getattr(little, what)) / (flags.large - flags.small) for big, little in pairs]


def ratio(flags: Flags, costs: dict[tuple[str, int], list[Cost]], other: str, way: str, what: str) -> str:
    """How many times dearer ``other`` is than ``way``: median and range over the rounds."""
    if other not in flags.ways or other == way:
        return "–"
    pairs = zip(slopes(flags, costs, other, what), slopes(flags, costs, way, what), strict=True)
    return summary([theirs / ours for theirs, ours in pairs]) + " ×"


def table(flags: Flags, costs: dict[tuple[str, int], list[Cost]]) -> str:
    """The results as Markdown."""
    lines = [
        *heading("Scoring against the alternatives", "benchmarks.run"),
        f"Swin-tiny, random weights; JPEGs, half 1 MP and half 3 MP; {flags.small} and {flags.large} pictures.",
        f"{flags.repeats} interleaved rounds; median (range).",
        "",
        "| way | CPU-ms a picture | wall-ms | naive ÷ it, CPU | wall | loop ÷ it, CPU | wall | fixed CPU-s | PSS, MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for way in flags.ways:
        cpu, wall = (slopes(flags, costs, way, what) for what in ("cpu_s", "wall_s"))
        middle = statistics.median(cpu)
        bound = "loop-openvino" if way.endswith("openvino") else "loop"
        ratios = [ratio(flags, costs, other, way, what) for other in ("naive", bound) for what in ("cpu_s", "wall_s")]
        fixed = [cost.cpu_s - flags.small * middle / 1000 for cost in costs[way, flags.small]]
        peak = statistics.median([cost.peak_pss_bytes / 1e6 for cost in costs[way, flags.large]])
        lines.append(f"| {way} | {summary(cpu)} | {summary(wall)} | {' | '.join(ratios)} | {summary(fixed)} | {peak:.0f} |")
    lines += [
        "",
        "local, ray: this project's two engines; -openvino: with that back-end. loop: a hand-written loop in one process per",
        "core, without hashing, protected decoding or resume. naive: transformers' pipeline in fp32, one picture at a time;",
        "batched: the same in batches of 16. dataloader: PyTorch's, two workers, Pillow, fp32; dataloader-bf16: torchvision's",
        "decoder and bf16. recipe: Ray's documented batch inference (read_images, fp32).",
        "Ratios are taken round by round; above 1 means that the other way is dearer.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(tyro.cli(Flags))
