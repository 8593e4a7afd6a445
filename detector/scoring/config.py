"""What a scoring job can be told: the flags of jobs.score, and the keys of a collection in jobs.reprocess."""

import math
from dataclasses import dataclass
from typing import Literal

from detector.errors import UsageError
from detector.models.devices import openvino_version


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Score folders of pictures: predictions.parquet, predictions.csv (score,label,filename; 0 = AI, 1 = Real)."""

    images: tuple[str, ...]
    """Folders (read recursively), globs, files, or manifests (.csv, .parquet, .txt); NAME=PATH names a folder."""
    model: str
    """A checkpoint folder, or a hub id such as owner/name."""
    out: str
    """Output folder. The same command again resumes, or picks up what is new."""
    engine: Literal["ray", "local"] = "ray"
    """ray: Ray Data actors, on this machine or a cluster. local: one process per core, without Ray."""
    scorers: int | None = None
    """How many processes score. Default: one per CPU, or one per GPU."""
    gpus_per_scorer: float | None = None
    """GPUs that each scorer takes, may be a fraction. Default: 1 where the cluster has GPUs; 0 scores on CPUs."""
    batch_size: int | None = None
    """Pictures in one model batch; part of the model fingerprint. Default: 16 on a CPU, 128 on a GPU."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the device multiplies it in hardware; part of the model fingerprint."""
    backend: Literal["torch", "openvino"] = "torch"
    """What runs the model; part of the model fingerprint. openvino: faster on CPUs, needs the extra openvino."""
    decode: Literal["full", "scaled", "gpu"] = "full"
    """scaled: large JPEGs at 1/2 to 1/8 of their size, faster and a little different; for checkpoints trained with it.
    gpu: JPEGs on the NVIDIA GPU that scores, a little different, and not protected from files made to do harm."""
    ai_class: str | None = None
    """The checkpoint's class that stands for AI, where its class names do not say."""
    convert_weights: str | None = None
    """Folder for a safetensors copy of a checkpoint that has only pytorch_model.bin; the copy is what scores."""
    include: tuple[str, ...] = ()
    """Only files whose name or relative path matches one of these globs."""
    exclude: tuple[str, ...] = ()
    """Not the files that match one of these globs; they are counted in skipped.csv."""
    max_error_rate: float = 1.0
    """Exit with 3 when a larger share of the pictures than this failed (0 to 1)."""
    limit: int | None = None
    """Only the first N pictures, in the order of their names."""
    timeout_s: float = 10.0
    """Seconds after which decoding one picture is given up."""
    memory_mb: int = 1024
    """Memory in MiB that decoding one picture may take."""
    dry_run: bool = False
    """List, subtract what is done, print the plan; load no model and write nothing."""
    rescore: bool = False
    """Score everything again, also what is done."""
    ray_address: str | None = None
    """A Ray cluster: HOST:6379, or auto. Default: RAY_ADDRESS, else a private local Ray."""

    @property
    def wants_gpus(self) -> bool:
        """Whether GPUs are used where there are any."""
        return self.gpus_per_scorer != 0 and self.backend != "openvino"

    def check(self) -> None:
        """Refuse values that no run could use.

        Raises:
            UsageError: with the flag and what it must be.
        """
        for flag, value in (("--scorers", self.scorers), ("--limit", self.limit), ("--batch-size", self.batch_size)):
            if value is not None and value < 1:
                raise UsageError(f"{flag} must be at least 1")
        for flag, number in (("--timeout-s", self.timeout_s), ("--gpus-per-scorer", self.gpus_per_scorer or 0)):
            if not math.isfinite(number):
                raise UsageError(f"{flag} must be a finite number")
        if not 0 <= self.max_error_rate <= 1:
            raise UsageError("--max-error-rate must be between 0 and 1")
        if self.gpus_per_scorer is not None and self.gpus_per_scorer < 0:
            raise UsageError("--gpus-per-scorer must not be negative")
        if self.backend == "openvino" and self.gpus_per_scorer:
            raise UsageError("--gpus-per-scorer asks for GPUs, and --backend openvino scores on CPUs: leave one of them out")
        if self.backend == "openvino":
            openvino_version()
        if self.timeout_s <= 0 or self.memory_mb < 64:
            raise UsageError("--timeout-s must be positive and --memory-mb at least 64")
