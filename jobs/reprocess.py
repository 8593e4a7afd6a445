"""Keep collections up to date: ``python -m jobs.reprocess --config collections.toml [--slot 2026-01-31]``."""

import sys
from dataclasses import dataclass
from typing import Any

from detector.cli import run_job


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Score what is new, changed, failed with a passing error or judged by another model; list it in changes.csv.

    Each [[collection]] of the file has name, images, model, out, and any other flag of jobs.score as a key (- or _).
    Relative paths are relative to the file. What was published before is compared with what is published now.
    """

    config: str
    """TOML file with one [[collection]] table for each output folder."""
    slot: str | None = None
    """Name of a scheduled slot, such as a date. A slot that has been completed does nothing; without it every call runs."""


def main(flags: Flags) -> dict[str, Any]:
    """Run all collections; the summary."""
    from detector.reprocessing.reprocess import reprocess

    return reprocess(flags.config, slot=flags.slot)


if __name__ == "__main__":
    sys.exit(run_job("reprocess", Flags, main))
