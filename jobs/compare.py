"""Compare backbones: python -m jobs.compare --data DATA --test-split NAME --backbones all --out DIR [--from-scratch]"""

import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import tyro

from detector.cli import run_job
from detector.training.comparison_config import CompareConfig


@dataclass(frozen=True, kw_only=True)
class CompareFlags(CompareConfig):
    """Fine-tune several backbones with one recipe and rank them on one test split: comparison.csv, comparison.png.

    The same command continues a killed comparison. Every model is kept under OUT/backbones.
    """

    data: str
    """Data folder with SPLIT/AI and SPLIT/Real, as jobs.prepare writes it."""
    out: str
    """Folder for the table, the figure and the models; one recipe and one set of pictures each."""
    ray_address: str | None = None
    """Ray cluster to train on (default: RAY_ADDRESS, else a private local Ray)."""
    model: tyro.conf.Suppress[tyro.conf.Fixed[str]] = ""
    ai_class: tyro.conf.Suppress[tyro.conf.Fixed[str | None]] = None
    resume: tyro.conf.Suppress[tyro.conf.Fixed[bool]] = False


def main(flags: CompareFlags) -> dict[str, Any]:
    """Check everything that can be checked, then train and judge one backbone after another."""
    from detector.cluster import connect
    from detector.training.comparison import compare

    return compare(flags, partial(connect, flags.ray_address))


if __name__ == "__main__":
    sys.exit(run_job("compare", CompareFlags, main))
