"""Which kind of device scores, and the fixed batch size and precision for it.

Both enter the model fingerprint, because both can change a score (measured: another batch shape moves p by up to 0.01 in
bf16). They therefore come from this table and never from a probe or a timing. Nothing here imports torch: a scoring
job's driver asks without paying for it.
"""

import os
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from detector.errors import UsageError

PRECISIONS = ("fp32", "bf16", "fp16")
BACKENDS = ("torch", "openvino")
# Kind → (batch size, precision). CPU: 4–16 is the best batch (64 reaches 0.77 of 16) and bf16 pays only where the processor
# multiplies it in hardware. GPU: large enough to fill an H100 with Swin-small, small enough for 16 GB cards.
_TABLE = {"cpu": (16, "fp32"), "cpu-bf16": (16, "bf16"), "cuda": (128, "bf16"), "cuda-old": (128, "fp16")}
_BF16_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
# NVIDIA generations before Ampere multiply fp16 but not bf16 in hardware.
_OLD_GPUS = ("T4", "V100", "P100", "P40", "P4", "K80", "RTX 20", "GTX", "TITAN", "QUADRO RTX", "M60")


@dataclass(frozen=True, kw_only=True)
class DeviceSettings:
    """How a checkpoint is run. Every field can change a score and is part of the fingerprint.

    Attributes:
        kind: a key of the table above.
        batch_size: pictures in every model batch.
        precision: one of :data:`PRECISIONS`.
        backend: one of :data:`BACKENDS`.
        channels_last: how torch lays out the model's memory on a GPU. Nothing sets it but a measurement.
    """

    kind: str
    batch_size: int
    precision: str
    backend: str = "torch"
    channels_last: bool = False

    @property
    def is_cuda(self) -> bool:
        """Whether pictures are scored on an NVIDIA GPU."""
        return self.kind.startswith("cuda")

    def facts(self) -> dict[str, Any]:
        """What the fingerprint and the run record say of it; OpenVINO's version is part of what it computes.

        Raises:
            UsageError: the back-end is not installed.
        """
        facts: dict[str, Any] = {
            "precision": self.precision,
            "batch_size": self.batch_size,
            "device": self.kind,
            "backend": self.backend,
        }
        if self.backend == "openvino":
            facts["openvino"] = openvino_version()
        if self.channels_last:  # named only where it is: fingerprints of parts that exist stay as they are
            facts["channels_last"] = True
        return facts


def openvino_version() -> str:
    """The version of the openvino package, without importing it.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return metadata.version("openvino")
    except metadata.PackageNotFoundError:
        raise UsageError("--backend openvino needs the package openvino: run pip install '.[openvino]'") from None


def local_device_kind(*, gpus: bool = True) -> str:
    """The kind of this machine: ``cuda``, ``cuda-old``, ``cpu-bf16`` or ``cpu``; its CPUs' kind where ``gpus`` is false."""
    if gpus and os.environ.get("CUDA_VISIBLE_DEVICES", "any").strip() not in {"", "-1"}:
        names = _gpu_names()
        if names:
            return gpu_kind(names[0])
    return "cpu-bf16" if _cpu_flags() & _BF16_FLAGS else "cpu"


def gpu_kind(name: str) -> str:
    """``cuda`` or ``cuda-old`` from a GPU's product name or Ray's accelerator type."""
    return "cuda-old" if any(old in name.upper() for old in _OLD_GPUS) else "cuda"


def num_local_gpus() -> int:
    """How many NVIDIA GPUs this machine shows to this process."""
    return len(_gpu_names()) if local_device_kind().startswith("cuda") else 0


def resolve_settings(*, kind: str, batch_size: int | None, precision: str, backend: str = "torch") -> DeviceSettings:
    """Fill in ``auto`` from the table.

    Raises:
        UsageError: an unknown precision or back-end, one that the device cannot do, or a batch size below one.
    """
    if backend not in BACKENDS:
        raise UsageError(f"--backend {backend} is unknown: use {' or '.join(BACKENDS)}")
    if backend == "openvino" and kind.startswith("cuda"):
        raise UsageError("--backend openvino scores on CPUs: leave it out to score on the GPUs")
    table_batch, table_precision = _TABLE[kind]
    chosen = table_precision if precision == "auto" else precision
    if chosen not in PRECISIONS:
        raise UsageError(f"--precision {precision} is unknown: use auto, {', '.join(PRECISIONS)}")
    if chosen == "fp16" and kind.startswith("cpu"):
        raise UsageError("--precision fp16 needs a GPU: use auto, fp32 or bf16 on a CPU")
    if batch_size is not None and batch_size < 1:
        raise UsageError("--batch-size must be at least 1")
    return DeviceSettings(kind=kind, batch_size=batch_size or table_batch, precision=chosen, backend=backend)


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            line = next((text for text in lines if text.lower().startswith(("flags", "features"))), "")
    except OSError:
        return set()
    return set(line.partition(":")[2].split())


def _gpu_names() -> list[str]:
    """Product names from the NVIDIA driver's own files: no library has to be loaded."""
    base, names = "/proc/driver/nvidia/gpus", []
    try:
        for gpu in sorted(os.listdir(base)):
            with open(f"{base}/{gpu}/information", encoding="utf-8", errors="replace") as lines:
                names += [line.partition(":")[2].strip() for line in lines if line.startswith("Model")]
    except OSError:
        return []
    return names
