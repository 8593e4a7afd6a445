"""Fine-tune a detector on a prepared data folder: python -m jobs.train --data DATA --model BASE --out DIR"""

import sys
from dataclasses import dataclass
from typing import Any

from detector.cli import run_job
from detector.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class TrainFlags(TrainConfig):
    """Fine-tune a two-class detector (0 = AI, 1 = Real) with Ray Train; the defaults are the published recipe."""

    ray_address: str | None = None
    """Ray cluster to train on (default: RAY_ADDRESS, else a private local Ray)."""


def main(flags: TrainFlags) -> dict[str, Any]:
    """Check everything that can be checked, then start Ray and train."""
    from detector.cluster import connect
    from detector.training.finetune import run_training
    from detector.training.plan import plan_training

    plan = plan_training(flags)
    with connect(flags.ray_address):
        return run_training(plan)


if __name__ == "__main__":
    sys.exit(run_job("train", TrainFlags, main))
