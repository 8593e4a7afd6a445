"""The run record: what was run, with what, on what, and what came of it."""

import hashlib
import json
import os
import platform
import secrets
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import psutil

from detector.uris import shown

PACKAGES = ("ray", "torch", "torchvision", "transformers", "timm", "datasets", "pyarrow", "pandas", "numpy", "pillow",
            "simplejpeg", "imagecodecs", "scikit-learn", "openvino")  # fmt: skip


def now_utc() -> datetime:
    """The present moment, with its time zone."""
    return datetime.now(tz=UTC)


def new_run_id() -> str:
    """A name for one run: sortable by time (UTC, to the millisecond), unique across machines."""
    now = now_utc()
    return f"{now:%Y%m%dT%H%M%S}{now.microsecond // 1000:03d}-{secrets.token_hex(4)}"


def digest(value: object) -> str:
    """SHA-256, in hex, of a JSON-serialisable value in its canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Installed version of every package that can change a result; read from metadata, nothing is imported."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """The machine that the driver runs on."""
    return {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cpus": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "processor": _processor(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        return platform.processor()


def run_record(
    *, job: str, run: str, status: str, started: datetime, summary: Mapping[str, Any], **more: object
) -> dict[str, Any]:
    """The content of ``run.json``: command line, versions, hardware, times, the summary's counts, and ``more``."""
    finished = now_utc()
    return {
        "job": job,
        "run": run,
        "status": status,
        "command": [os.path.basename(sys.executable), *map(shown, sys.orig_argv[1:])],
        "started": started.isoformat(),
        "finished": finished.isoformat(),
        "versions": versions(),
        "hardware": hardware(),
        "summary": dict(summary),
        **more,
    }
