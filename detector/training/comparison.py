"""Several backbones, one recipe, one test split: train each with Ray Train, judge each, rank them.

Every finished backbone has a file of its own that names what it was made of, so a killed comparison continues where it
stopped: finished backbones are read back, and the one that was being trained goes on from its last finished evaluation.
One output folder holds one recipe on one set of pictures; anything else is refused, never mixed.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout

from detector import metrics, runs
from detector.cluster import Cluster
from detector.errors import JobError, LockedError, UsageError
from detector.models.backbones import find_base
from detector.models.checkpoint import inspect_checkpoint
from detector.progress import log
from detector.storage import Store, open_store
from detector.training.collapse import is_constant
from detector.training.comparison_config import Candidate, CompareConfig, choose_candidates
from detector.training.comparison_figure import draw_comparison
from detector.training.comparison_identity import comparison_identity, refuse_other
from detector.training.comparison_results import CSV_FILE, Result, best_of, comparison_csv, ranked, read_result
from detector.training.dataset import hold_out, read_split
from detector.training.plan import RUN_FILE, read_json, write_json

STATE_FILE, RESULT_FILE, FIGURE_FILE, PREDICTIONS_FILE = (
    "comparison.json", "result.json", "comparison.png", "test/predictions.parquet",
)  # fmt: skip
_RATE = "test pictures decoded, resized and scored per second by all scoring processes together, start-up left out"


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    """What is fixed once the command line has been read; ``results`` and ``errors`` fill up."""

    config: CompareConfig
    candidates: tuple[Candidate, ...]
    test: pa.Table
    store: Store
    identity: dict[str, Any]
    run: str
    started: datetime
    results: dict[str, Result] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)

    def identity_of(self, candidate: Candidate) -> str:
        """What a finished result must match to be read back."""
        return runs.digest({**self.identity, "model": candidate.model})

    def rows(self) -> list[Result]:
        """Of every backbone that has been tried, the best first."""
        failures = [Result(model=name, failed=_reason(error)) for name, error in self.errors.items()]
        return ranked([*self.results.values(), *failures])


def compare(config: CompareConfig, connection: Callable[[], AbstractContextManager[Cluster]]) -> dict[str, Any]:
    """Train and judge every backbone that is not finished yet; write the table, the figure and the run record.

    Args:
        config: what to compare.
        connection: connects to Ray; called only when there is something to train.

    Returns:
        The job's summary: ``best_model``, its ``f1``, and how many were compared, reused and failed.

    Raises:
        UsageError: whatever the user can put right; nothing has been trained.
        JobError: no backbone could be trained and judged.
        LockedError: another run holds the output folder.
    """
    config.check()
    candidates = choose_candidates(config.backbones, from_scratch=config.from_scratch)
    train, test = read_split(config.data, config.train_split), read_split(config.data, config.test_split)
    hold_out(train, fraction=config.validation_fraction, seed=config.seed)
    identity = comparison_identity(config, train, test)
    store = open_store(config.root)
    with _held(config):
        work = _Comparison(
            config=config, candidates=candidates, test=test, store=store, identity=identity,
            run=runs.new_run_id(), started=runs.now_utc(),
        )  # fmt: skip
        _read_back(work)
        pending = [candidate for candidate in candidates if candidate.name not in work.results]
        reused = len(candidates) - len(pending)
        pending = _with_base(work, pending)
        _claim(work)
        if pending:
            with connection() as cluster:
                _run_all(work, pending, cluster)
        return _finish(work, reused=reused)


@contextmanager
def _held(config: CompareConfig) -> Iterator[None]:
    try:
        with FileLock(os.path.join(config.root, ".lock")).acquire(timeout=0):
            yield
    except Timeout:
        raise LockedError(f"another run holds {config.out}: wait for it, or give this one another --out") from None


def _read_back(work: _Comparison) -> None:
    """Find what is finished in the folder.

    Raises:
        UsageError: the folder holds another comparison, or something else.
    """
    state = read_json(work.store, STATE_FILE)
    if state is None and work.store.exists(RUN_FILE):
        raise UsageError(f"--out {work.config.out} holds another job's output: give a folder of its own")
    if state is not None:
        refuse_other(work.config.out, state.get("identity", {}), work.identity)
    for candidate in work.candidates:
        value = read_json(work.store, f"{candidate.folder}/{RESULT_FILE}")
        result = read_result(value, identity=work.identity_of(candidate), name=candidate.name)
        if result is not None:
            work.results[candidate.name] = result
            log(f"compare: {candidate.name} is finished already: {_in_words(result)}")


def _claim(work: _Comparison) -> None:
    """Make the folder this comparison's, and take down the success marker of the run before; this one sets its own."""
    write_json(work.store, STATE_FILE, {"identity": work.identity})
    if work.store.exists(RUN_FILE):
        work.store.remove(RUN_FILE)


def _with_base(work: _Comparison, pending: list[Candidate]) -> list[Candidate]:
    """The backbones whose weights are here; those of the others are asked for before hours of training, not after.

    Raises:
        UsageError: there is none, and no finished one either.
    """
    found = []
    for candidate in pending:
        try:
            find_base(candidate.model)
            found.append(candidate)
        except UsageError as error:
            _fail(work, candidate, error)
    if not found and not work.results:
        first = next(iter(work.errors.values()))
        raise UsageError(f"no backbone can be trained: {first}; --from-scratch takes random weights instead")
    return found


def _run_all(work: _Comparison, pending: list[Candidate], cluster: Cluster) -> None:
    """One after another: each has the whole cluster, and their times can be compared."""
    _check_cluster(work, cluster)
    for place, candidate in enumerate(pending, start=1):
        log(f"compare: {candidate.name} ({place} of {len(pending)})")
        try:
            result = _measure(work, candidate, cluster)
        except Exception as error:  # whatever ends one backbone, the others are still worth having
            _fail(work, candidate, error)
        else:
            work.results[candidate.name] = result
            log(f"compare: {candidate.name}: {_in_words(result)}")
        _publish(work)


def _check_cluster(work: _Comparison, cluster: Cluster) -> None:
    if cluster.num_nodes > 1:
        from detector.scoring.pipeline import check_shared

        shared = [os.path.join(work.config.root, STATE_FILE), os.path.abspath(work.config.data)]
        check_shared(shared, cluster=cluster, flags="--data and --out")


def _measure(work: _Comparison, candidate: Candidate, cluster: Cluster) -> Result:
    """Fine-tune one backbone, score the test split with what came out, and keep the result."""
    from detector.training.comparison_scoring import score_settings, score_split, write_predictions
    from detector.training.finetune import finetune

    config = work.config
    trained = finetune(config.training_of(candidate))
    folder = os.path.join(config.root, candidate.folder)
    settings = score_settings(cluster, gpus_per_worker=config.gpus_per_worker, precision=config.precision)
    scored = score_split(
        work.test, checkpoint=inspect_checkpoint(folder), settings=settings, cluster=cluster, store=work.store, run=work.run
    )
    write_predictions(scored, work.store, f"{candidate.folder}/{PREDICTIONS_FILE}")
    found, constant = _judge(work.test, scored.table)
    result = Result(
        model=candidate.name,
        **{name: found[name] for name in ("f1", "precision", "recall", "accuracy")},
        parameters=trained["parameters"],
        train_seconds=_train_seconds(work.store, candidate),
        images_per_second=scored.images_per_second,
        collapsed=constant,
    )
    write_json(work.store, f"{candidate.folder}/{RESULT_FILE}", {
        "identity": work.identity_of(candidate),
        "result": asdict(result),
        "metrics": found,
        "num_test": work.test.num_rows,
        "num_undecodable": scored.table.num_rows - scored.table["error"].null_count,
        "scoring": {"images_per_second": _RATE, "processes": scored.num_processes, **vars(settings)},
        "training": trained,
    })  # fmt: skip
    return result


def _judge(test: pa.Table, answers: pa.Table) -> tuple[dict[str, Any], bool]:
    """Metrics over the pictures that have an answer, and whether all answers are one."""
    good = answers["error"].is_null().to_numpy()
    if not good.all():
        log(f"compare: {int((~good).sum()):,} of {len(good):,} test pictures do not decode and are left out")
    if not good.any():
        raise JobError("no picture of the test split decodes")
    p_ai = np.asarray(answers["p_ai"].to_numpy(), dtype=np.float64)[good]
    return metrics.compute_metrics(test["label"].to_numpy()[good], p_ai), is_constant(p_ai)


def _train_seconds(store: Store, candidate: Candidate) -> float:
    """Over all evaluations, also those before a kill."""
    record = read_json(store, f"{candidate.folder}/{RUN_FILE}") or {}
    return float(sum(row["train_seconds"] for row in record["history"]))


def _fail(work: _Comparison, candidate: Candidate, error: Exception) -> None:
    work.errors[candidate.name] = error
    advice = "" if isinstance(error, UsageError) else "; the same command tries it again"
    log(f"compare: {candidate.name} FAILED: {_reason(error)}{advice}")


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else type(error).__name__  # Ray puts a remote traceback before the message
    known = isinstance(error, (UsageError, JobError, LockedError)) or type(error).__name__ in text
    return (text if known else f"{type(error).__name__}: {text}")[:500]


def _in_words(result: Result) -> str:
    f1 = "not defined" if result.f1 is None else f"{result.f1:.4f}"
    line = f"F1 of AI {f1}, {result.train_seconds:.1f} s of training, {result.images_per_second:.1f} images/s scored"
    return f"{line}; COLLAPSED: the same answer for every test picture" if result.collapsed else line


def _publish(work: _Comparison) -> None:
    """Write the table and the figure of what has been tried so far."""
    rows, published = work.rows(), {candidate.name: candidate.published_f1 for candidate in work.candidates}
    num_random = sum(candidate.is_random for candidate in work.candidates)
    weights = {0: "pretrained", len(work.candidates): "random"}.get(num_random, "pretrained (scratch: random)")
    title = f"{work.test.num_rows:,} pictures of the split {work.config.test_split}, {weights} weights fine-tuned"
    work.store.write(CSV_FILE, lambda file: file.write(comparison_csv(rows).encode()))
    work.store.write(FIGURE_FILE, lambda file: draw_comparison(rows, published, title.replace("$", r"\$"), file))


def _finish(work: _Comparison, *, reused: int) -> dict[str, Any]:
    """Publish, and say what came of it.

    Raises:
        JobError: every backbone failed.
    """
    _publish(work)
    rows, best = work.rows(), best_of(work.rows())
    failed = {row.model: row.failed for row in rows if row.failed is not None}
    if best is None:
        name, reason = next(iter(failed.items()))
        raise JobError(f"all {len(failed)} backbones failed, first {name}: {reason}")
    if best.collapsed:
        log("compare: every backbone COLLAPSED; try more pictures or epochs, or another --learning-rate")
    summary = {
        "best_model": best.model,
        "f1": best.f1,
        "compared": len(work.results),
        "reused": reused,
        "failed": failed,
        "collapsed": [row.model for row in rows if row.collapsed],
    }
    record = runs.run_record(
        job="compare", run=work.run, status="complete", started=work.started, summary=summary, identity=work.identity,
        rows=[asdict(row) for row in rows], published_f1={each.name: each.published_f1 for each in work.candidates},
        images_per_second=_RATE,
    )  # fmt: skip
    write_json(work.store, RUN_FILE, record)
    return summary
