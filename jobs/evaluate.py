"""Predictions + truth → metrics.json, figures, report.html.

python -m jobs.evaluate --predictions OUT --truth truth.csv --out EVALUATION
python -m jobs.evaluate --predictions OUT --truth DATA/test --out EVALUATION
python -m jobs.evaluate --predictions OUT --out EVALUATION      # no truth yet: report.html alone
"""

import sys
from typing import Any

from detector.cli import run_job
from detector.evaluation.evaluate import EvaluateConfig


def main(flags: EvaluateConfig) -> dict[str, Any]:
    """Judge the predictions; see :func:`detector.evaluation.evaluate.evaluate`."""
    from detector.evaluation.evaluate import evaluate

    return evaluate(flags)


if __name__ == "__main__":
    sys.exit(run_job("evaluate", EvaluateConfig, main))
