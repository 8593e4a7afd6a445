"""Score folders of pictures: ``python -m jobs.score --images DIR --model CHECKPOINT --out DIR``."""

import sys
from typing import Any

from detector.cli import run_job
from detector.scoring.config import ScoreConfig


def main(flags: ScoreConfig) -> dict[str, Any]:
    """Run one scoring job; the summary."""
    from detector.scoring.score import score

    return score(flags)


if __name__ == "__main__":
    sys.exit(run_job("score", ScoreConfig, main))
