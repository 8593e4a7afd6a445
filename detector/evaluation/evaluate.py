"""The evaluation from end to end: read, compare, write; what jobs.evaluate and the demo call."""

from dataclasses import dataclass
from typing import Any

from detector.errors import UsageError

MAX_RESAMPLES = 100_000


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Compare predictions with the truth: metrics.json, figures and a report for a person."""

    predictions: str
    """Folder with predictions.parquet or predictions.csv (jobs.score's --out), or one such file; a path or a URI."""
    truth: str | None = None
    """CSV with filename,label (0 = AI, 1 = Real, or names; also source, generator), or a folder DATA/SPLIT with AI/ and
    Real/. Without it: report.html alone, no metrics."""
    out: str
    """Folder or URI to write metrics.json, figures/ and report.html to."""
    num_resamples: int = 1000
    """Bootstrap resamples behind each 95% interval."""
    seed: int = 0
    """Seed of the bootstrap and of the container probe: the same seed, the same figures."""


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Judge predictions; the summary has ``f1``, ``f1_interval`` (each None where not defined) and the counts.

    Raises:
        UsageError: inputs that are missing, unreadable, ambiguous or have no picture in common; an output that cannot
            be written.
        OSError: the output became unwritable while it was written.
    """
    from detector.evaluation.judge import judge
    from detector.evaluation.predictions import read_predictions
    from detector.evaluation.report import write_evaluation, write_overview
    from detector.evaluation.truth import read_truth
    from detector.progress import log
    from detector.storage import open_store

    if not 1 <= config.num_resamples <= MAX_RESAMPLES or config.seed < 0:
        raise UsageError(f"--num-resamples must be between 1 and {MAX_RESAMPLES}, and --seed not negative")
    predictions = read_predictions(config.predictions)
    log(f"read {len(predictions.table):,} predictions from {predictions.path}")
    if config.truth is None:
        write_overview(open_store(config.out), predictions)
        log("no --truth: wrote report.html, no metrics")
        counts = {"num_images": len(predictions.scored), "num_failed": len(predictions.failed)}
        return {"f1": None, "f1_interval": None, **counts}
    truth = read_truth(config.truth)
    log(f"read the truth of {len(truth.table):,} pictures from {truth.path}")
    store = open_store(config.out)
    judgement = judge(predictions, truth, seed=config.seed, num_resamples=config.num_resamples)
    write_evaluation(store, judgement, predictions, truth)
    log(f"judged {len(judgement.table):,} pictures; wrote metrics.json, figures and report.html")
    found = judgement.metrics
    counts = {name: found[name] for name in ("num_images", "num_failed", "num_without_truth", "num_without_prediction")}
    return {"f1": found["f1"], "f1_interval": found["intervals"]["f1"], **counts}
