"""Add a source of labelled pictures to a data folder.

python -m jobs.prepare --label AI --images DIR --split train --source NAME --out DATA
"""

import sys
from typing import Any

from detector.cli import run_job
from detector.training.prepare_config import PrepareConfig


def main(flags: PrepareConfig) -> dict[str, Any]:
    """Add one source; see :func:`detector.training.preparation.prepare`."""
    from detector.training.preparation import prepare

    return prepare(flags)


if __name__ == "__main__":
    sys.exit(run_job("prepare", PrepareConfig, main))
