"""The whole product on a generated corpus, on a laptop CPU: ``python -m jobs.demo --out DIR``."""

import sys
from typing import Any

from detector.cli import run_job
from detector.demo import DemoConfig


def main(flags: DemoConfig) -> dict[str, Any]:
    """Run the demo; the summary of all its jobs."""
    from detector.demo import demo

    return demo(flags)


if __name__ == "__main__":
    sys.exit(run_job("demo", DemoConfig, main))
