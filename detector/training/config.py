"""What a training run is asked to do. The defaults are the published recipe of the fine-tuned Swin detector."""

import os
from dataclasses import dataclass
from typing import Literal

from detector.errors import UsageError
from detector.uris import is_uri

Metric = Literal["accuracy", "f1"]
Augmentation = Literal["seed", "robust"]
ClassBalance = Literal["none", "weights", "sampler"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Decode = Literal["full", "scaled"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One fine-tuning, as jobs.train's flags, the demo and the comparison give it."""

    data: str
    """Data folder with SPLIT/AI and SPLIT/Real, as jobs.prepare writes it."""
    model: str
    """Base: a checkpoint's folder, a hub id, or scratch:tiny (random weights)."""
    out: str
    """Folder the fine-tuned checkpoint is written to."""
    train_split: str = "train"
    """Split of the data folder to train on."""
    epochs: int = 3
    """Passes over the training pictures; each ends with an evaluation."""
    learning_rate: float = 5e-5
    """Peak learning rate of AdamW."""
    batch_size: int = 32
    """Pictures per worker and step."""
    gradient_accumulation: int = 4
    """Steps whose gradients make one update of the weights."""
    warmup_ratio: float = 0.1
    """Share of all updates in which the learning rate rises; after it, it falls linearly to 0."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    validation_fraction: float = 0.1
    """Share of the split that is held out, drawn per class and source."""
    metric: Metric = "accuracy"
    """Which evaluation is the best one and is saved (f1: of AI); ties go to the lower validation loss."""
    augment: Augmentation = "seed"
    """seed: random resized crop and flip; robust: also JPEG, blur and resize round trips."""
    crop_min_scale: float = 0.08
    """Smallest share of a picture's area that a random crop keeps."""
    decode: Decode = "full"
    """scaled: large JPEGs are decoded at 1/2 to 1/8 of their size; the checkpoint is then for scoring with --decode scaled."""
    class_balance: ClassBalance = "none"
    """weights: the rarer class counts more in the loss; sampler: it is drawn more often."""
    workers: int = 0
    """Training processes; 0: one per GPU, or two on CPUs."""
    gpus_per_worker: float | None = None
    """GPUs for each worker (default: 1 where the cluster has any, else 0)."""
    precision: Precision = "auto"
    """auto: bf16 on a GPU, fp32 on a CPU."""
    compile: bool = False
    """Compile the model (pays on GPUs in long runs)."""
    loader_workers: int = 0
    """Decoding processes beside each worker (on GPU hosts 8 keep the device busy)."""
    cache_mb: int = 1024
    """Memory in MB in which each worker keeps decoded pictures, so that they are decoded once."""
    max_failures: int = 3
    """How many times dead workers are replaced before the job gives up."""
    seed: int = 0
    """Seed of the held-out share, the new head, the order and the augmentation."""
    ai_class: str | None = None
    """The class of the base checkpoint that means AI, if its names do not say."""
    resume: bool = False
    """Continue this folder's unfinished training from its last finished evaluation."""

    def check(self) -> None:
        """Refuse values that cannot work.

        Raises:
            UsageError: a value out of its range; the message names the flag.
        """
        at_least_one = {
            "epochs": self.epochs,
            "batch-size": self.batch_size,
            "gradient-accumulation": self.gradient_accumulation,
        }
        for flag, value in at_least_one.items():
            if value < 1:
                raise UsageError(f"--{flag} must be at least 1, not {value}")
        not_negative = {
            "workers": self.workers, "loader-workers": self.loader_workers, "cache-mb": self.cache_mb,
            "max-failures": self.max_failures, "weight-decay": self.weight_decay, "gpus-per-worker": self.gpus_per_worker or 0,
            "seed": self.seed,
        }  # fmt: skip
        for flag, number in not_negative.items():
            if number < 0:
                raise UsageError(f"--{flag} must not be negative, not {number}")
        if not 0 < self.learning_rate < 1:
            raise UsageError(f"--learning-rate must be between 0 and 1, not {self.learning_rate}")
        if not 0 <= self.warmup_ratio < 1:
            raise UsageError(f"--warmup-ratio must be from 0 to below 1, not {self.warmup_ratio}")
        if not 0 < self.validation_fraction <= 0.5:
            raise UsageError(f"--validation-fraction must be above 0 and at most 0.5, not {self.validation_fraction}")
        if not 0 < self.crop_min_scale <= 1:
            raise UsageError(f"--crop-min-scale must be above 0 and at most 1, not {self.crop_min_scale}")

    @property
    def out_root(self) -> str:
        """The output folder as workers must name it: they run in another working directory."""
        return self.out if is_uri(self.out) else os.path.abspath(self.out)

    def recipe(self) -> dict[str, object]:
        """Everything that can change the result, to compare a resumed run with the one it continues."""
        left_out = {"out", "resume", "max_failures", "cache_mb", "loader_workers", "data"}
        if self.decode == "full":  # as it was before there was a choice: such a training can still be resumed
            left_out.add("decode")
        return {
            name: value
            for name, value in vars(self).items()
            if name in TrainConfig.__dataclass_fields__ and name not in left_out
        }
