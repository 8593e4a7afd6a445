"""Scoring on one GPU, without Ray: ``python -m benchmarks.gpu``, on a machine that has one.

Three rates, in images/s: the model alone (uint8 pictures already in memory), decoding alone (a pool of processes, each with
its protected decoder), and both together: the pool writes uint8 pictures of the model's input size into shared memory, this
process hands them to the model batch by batch. What should come out is the smaller of the first two. With ``--decode gpu``
the pool only checks the files, and the GPU decodes and resizes them beside the model; the table then says how far its pixels
are from the CPU's.

``--device cpu --pictures 32`` runs the same code where there is no GPU, to see that it works; its figures are no GPU's.
"""

import contextlib
import os
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import tyro
from PIL import Image

from benchmarks.decoder_pool import DecoderPool
from benchmarks.gpu_decode import Feed, GpuFeed, PoolFeed, gap, stand_in
from benchmarks.measure import machine, summary
from detector.errors import UsageError
from detector.models.backbones import build_backbone
from detector.models.backbones_files import save_classifier
from detector.models.checkpoint import Checkpoint, inspect_checkpoint
from detector.models.devices import DeviceSettings, local_device_kind, resolve_settings
from detector.models.gpu_jpeg import GpuJpegDecoder
from detector.models.predictor import BatchPredictor, ModelError, load_predictor

_SOURCES = 64  # different pictures; the list of files repeats them, so that writing them takes no time
_SAMPLE_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Measure scoring on one GPU and print a Markdown table."""

    device: Literal["cuda", "cpu"] = "cuda"
    """cpu: only to see that the code runs; no GPU figure."""
    pictures: int = 20_000
    """Pictures of one megapixel that are scored in each round."""
    decoders: int = 0
    """Decoding processes. Default: one per CPU but one."""
    model: str = "swin-small"
    """An architecture of detector.models.backbones, with random weights: speed does not depend on them."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: as scoring chooses it."""
    batch_size: int | None = None
    """Default: as scoring chooses it."""
    channels_last: bool = False
    """The other memory layout, to measure which is better."""
    decode: Literal["full", "gpu"] = "full"
    """gpu: the GPU decodes the JPEGs too."""
    repeats: int = 5
    """Rounds, interleaved."""
    out: str | None = None
    """File for the table; without it, it is only printed."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Images/s of one round, and the GPU's utilisation in per cent while both ran (None if it cannot be had)."""

    model: float
    decode: float
    both: float
    utilisation: float | None


def settings_of(flags: Flags) -> DeviceSettings:
    """The device's settings, as scoring would choose them.

    Raises:
        UsageError: there is no GPU.
    """
    kind = local_device_kind(gpus=flags.device == "cuda")
    if flags.device == "cuda" and not kind.startswith("cuda"):
        raise UsageError("there is no NVIDIA GPU here: run it where one is, or try the code with --device cpu --pictures 32")
    found = resolve_settings(kind=kind, batch_size=flags.batch_size, precision=flags.precision)
    return replace(found, channels_last=flags.channels_last)


def write_pictures(folder: str) -> list[str]:
    """JPEGs of 1024 × 1024 pixels, smooth with coloured noise, in which decoders differ most."""
    rng, paths = np.random.default_rng(0), []
    for index in range(_SOURCES):
        low = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((1024, 1024), Image.Resampling.BICUBIC)
        noisy = np.asarray(low, dtype=np.int16) + rng.integers(-12, 13, (1024, 1024, 3), dtype=np.int16)
        paths.append(os.path.join(folder, f"{index:03d}.jpg"))
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(paths[-1], quality=88)
    return paths


class Utilisation:
    """Samples the GPU's utilisation in a thread, by NVIDIA's management library through torch."""

    def __init__(self, *, is_cuda: bool) -> None:
        self._samples: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True) if is_cuda else None

    def __enter__(self) -> "Utilisation":
        if self._thread:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    def _sample(self) -> None:
        import torch

        with contextlib.suppress(Exception):  # the library is optional; without it there is no figure
            while not self._stop.wait(_SAMPLE_S):
                self._samples.append(float(torch.cuda.utilization()))

    @property
    def mean(self) -> float | None:
        """Per cent, or None."""
        return statistics.mean(self._samples) if self._samples else None


def model_rate(predictor: BatchPredictor, count: int) -> float:
    """Images/s of the model alone, copies to the device included."""
    size = predictor.settings.batch_size
    pixels = np.random.default_rng(1).integers(0, 256, (size, 3, *predictor.transform.input_size), dtype=np.uint8)
    rows = np.arange(count) % size
    begun = time.monotonic()
    for _, outcome in predictor.stream(pixels, rows):
        _checked(outcome)
    return count / (time.monotonic() - begun)


def decode_rate(feed: Feed, count: int) -> float:
    """Images/s of decoding and resizing alone."""
    begun = time.monotonic()
    done = sum(len(pixels) for pixels in feed.run(count))
    return done / (time.monotonic() - begun)


def both_rate(predictor: BatchPredictor, feed: Feed, count: int) -> float:
    """Images/s from the files to the probabilities."""
    begun, scored = time.monotonic(), 0
    for _, outcome in predictor.stream_batches((pixels, np.arange(len(pixels))) for pixels in feed.run(count)):
        scored += len(_checked(outcome))
    assert scored == count, (scored, count)
    return count / (time.monotonic() - begun)


def _checked(outcome: np.ndarray | ModelError) -> np.ndarray:
    if isinstance(outcome, ModelError):
        raise outcome
    assert np.isfinite(outcome).all()
    return outcome


def measure(
    flags: Flags, checkpoint: Checkpoint, settings: DeviceSettings, paths: list[str], gpu: GpuJpegDecoder | None
) -> list[Rates]:
    """All rounds; one round of each first, to warm up."""
    predictor = load_predictor(checkpoint, settings)
    size = flags.decoders or max(1, len(os.sched_getaffinity(0)) - 1)
    pool = DecoderPool(
        paths, checkpoint.transform, size=size, batch_size=settings.batch_size, num_batches=6, leave_jpegs=gpu is not None
    )
    feed = GpuFeed(pool, gpu) if gpu else PoolFeed(pool)
    try:
        model_rate(predictor, 4 * settings.batch_size)
        both_rate(predictor, feed, min(flags.pictures, 4 * settings.batch_size))
        rounds = []
        for _ in range(flags.repeats):
            model, decode = model_rate(predictor, flags.pictures), decode_rate(feed, flags.pictures)
            with Utilisation(is_cuda=settings.is_cuda) as used:
                both = both_rate(predictor, feed, flags.pictures)
            rounds.append(Rates(model=model, decode=decode, both=both, utilisation=used.mean))
            print(f"model {model:.0f}, decode {decode:.0f}, both {both:.0f} images/s", file=sys.stderr)
    finally:
        pool.close()
    return rounds


def table(flags: Flags, settings: DeviceSettings, rounds: list[Rates], gaps: tuple[float, int] | None) -> str:
    """The results as Markdown."""
    share = [rates.both / min(rates.model, rates.decode) for rates in rounds]
    bound = statistics.median([rates.model / rates.decode for rates in rounds])
    used = [rates.utilisation for rates in rounds if rates.utilisation is not None]
    size = flags.decoders or max(1, len(os.sched_getaffinity(0)) - 1)
    layout = "channels last" if settings.channels_last else "contiguous"
    lines = [
        f"# Scoring on {_device_name(settings)}",
        "",
        *(["**This ran on a CPU to try the code: no figure below is a GPU's.**", ""] if not settings.is_cuda else []),
        f"{machine()}.",
        f"{flags.model}, random weights, {settings.precision}, batch {settings.batch_size}, {layout};",
        f"JPEGs of 1 megapixel; {size} {'reading' if gaps else 'decoding'} processes, decoding {flags.decode};",
        f"{flags.pictures} pictures a round, {flags.repeats} rounds; median (range).",
        "",
        "| | images/s |",
        "| --- | --- |",
        f"| model alone | {summary([rates.model for rates in rounds])} |",
        f"| decoding alone | {summary([rates.decode for rates in rounds])} |",
        f"| end to end | {summary([rates.both for rates in rounds])} |",
        f"| end to end ÷ the smaller of the two | {summary(share)} |",
        f"| GPU utilisation, % | {summary(used) if used else 'not to be had'} |",
        "",
        f"The bound is {'the model' if bound < 1 else 'decoding'}: the model alone is {bound:.2f} × decoding alone.",
    ]
    if gaps:
        lines += [
            "",
            f"The GPU's pixels, resized, against the CPU's: mean difference {gaps[0]:.3f} grey levels, at most {gaps[1]}.",
        ]
    return "\n".join(lines) + "\n"


def _device_name(settings: DeviceSettings) -> str:
    import torch

    return torch.cuda.get_device_name() if settings.is_cuda else "no GPU"


def main(flags: Flags) -> int:
    """Measure and print; 2 where there is no GPU."""
    try:
        settings = settings_of(flags)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as work:
        save_classifier(build_backbone(flags.model, pretrained=False), f"{work}/model")
        checkpoint, paths, gpu, gaps = inspect_checkpoint(f"{work}/model"), write_pictures(work), None, None
        if flags.decode == "gpu":
            gpu = GpuJpegDecoder(checkpoint.transform, decode=None if settings.is_cuda else stand_in)
            gaps = gap(paths, checkpoint.transform, gpu)
        rounds = measure(flags, checkpoint, settings, paths, gpu)
    text = table(flags, settings, rounds, gaps)
    if flags.out:
        with open(flags.out, "w", encoding="utf-8") as file:
            file.write(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Flags)))
