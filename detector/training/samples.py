"""Labelled pictures as torch sees them: datasets of uint8 tensors, the order they are drawn in, and batches.

A training sample depends only on (seed, epoch, picture), never on the process that reads it: two workers with half the batch
each see what one worker sees, and a restarted run sees what the undisturbed run would have seen.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import Dataset, Sampler

from detector.errors import JobError
from detector.images.augmentation import TrainingAugmentation
from detector.images.names import display_name
from detector.images.pixels import DecodeError, DecodeLimits, decode_bytes
from detector.images.transforms import EvaluationTransform
from detector.labels import Label


@dataclass
class PictureCache:
    """Decoded pictures kept in memory, up to a budget; the rest is decoded again each time.

    ``at_least``: see :func:`detector.images.pixels.decode_bytes`.
    """

    budget_bytes: int
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    at_least: tuple[int, int] | None = None
    _kept: dict[bytes, np.ndarray] = field(default_factory=dict)

    def pixels(self, path: bytes) -> np.ndarray:
        """Decode a picture, or hand out the kept one: uint8 [H, W, 3].

        Raises:
            JobError: the file no longer decodes.
        """
        if (kept := self._kept.get(path)) is not None:
            return kept
        try:
            with open(path, "rb") as file:
                picture = decode_bytes(file.read(), self.limits, self.at_least)
        except (OSError, DecodeError) as error:
            raise JobError(
                f"{display_name(path)} cannot be read any more ({error}): prepare the data again, which leaves such files out"
            ) from error
        if picture.pixels.nbytes <= self.budget_bytes:
            self.budget_bytes -= picture.pixels.nbytes
            self._kept[path] = picture.pixels
        return picture.pixels


class TrainingPictures(Dataset[dict[str, Any]]):
    """Augmented training inputs, indexed by (epoch, index): ``pixel_values`` torch.uint8 [3, h, w], ``labels`` int."""

    def __init__(self, samples: pa.Table, *, augmentation: TrainingAugmentation, cache: PictureCache, seed: int) -> None:
        self._paths, self.labels = _columns(samples)
        self._augmentation, self._cache, self._seed = augmentation, cache, seed

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        rng = np.random.default_rng([self._seed, epoch, index])
        pixels = self._cache.pixels(self._paths[index])
        return {"pixel_values": self._augmentation(pixels, rng), "labels": int(self.labels[index])}


class ValidationPictures(Dataset[dict[str, Any]]):
    """Inputs of the one evaluation transform: ``pixel_values`` torch.uint8 [3, h, w], ``labels`` int.

    Resized pictures are kept in memory, up to a budget. ``at_least``: see :func:`detector.images.pixels.decode_bytes`.
    """

    def __init__(
        self,
        samples: pa.Table,
        *,
        transform: EvaluationTransform,
        budget_bytes: int = 0,
        at_least: tuple[int, int] | None = None,
    ) -> None:
        self._paths, self.labels = _columns(samples)
        self._transform = transform
        self._cache = PictureCache(budget_bytes=0, at_least=at_least)
        self._inputs: dict[int, torch.Tensor] = {}
        self._num_kept = budget_bytes // (3 * transform.input_size[0] * transform.input_size[1])

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        inputs = self._inputs.get(index)
        if inputs is None:
            inputs = self._transform.resize(self._cache.pixels(self._paths[index])).contiguous()
            if len(self._inputs) < self._num_kept:
                self._inputs[index] = inputs
        return {"pixel_values": inputs, "labels": int(self.labels[index])}


class EpochSampler(Sampler[tuple[int, int]]):
    """The order of one epoch, the same in every process: (epoch, index) pairs from (seed, epoch).

    With ``balanced`` the pictures are drawn with replacement so that both classes come up equally often.
    """

    def __init__(self, labels: np.ndarray, *, seed: int, balanced: bool = False) -> None:
        self._labels, self._seed, self._balanced, self._epoch = labels, seed, balanced, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._labels)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng([self._seed, self._epoch])
        count = len(self._labels)
        order = rng.choice(count, size=count, p=self._probabilities()) if self._balanced else rng.permutation(count)
        return iter([(self._epoch, int(index)) for index in order])

    def _probabilities(self) -> np.ndarray:
        weights = np.asarray(class_weights(self._labels))[self._labels]
        return weights / weights.sum()


def class_weights(labels: np.ndarray) -> list[float]:
    """Weights of AI and Real that make both count the same in sum, with mean 1 over the pictures."""
    counts = np.array([max(int((labels == label).sum()), 1) for label in Label])
    return [float(weight) for weight in len(labels) / (len(Label) * counts)]


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack samples: ``pixel_values`` torch.uint8 [N, 3, h, w], ``labels`` int64 [N]. Normalised later, on the device."""
    return {
        "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
        "labels": torch.tensor([sample["labels"] for sample in samples]),
    }


def _columns(samples: pa.Table) -> tuple[list[bytes], np.ndarray]:
    return [os.fsencode(path) for path in samples["path"].to_pylist()], samples["label"].to_numpy().astype(np.int64)
