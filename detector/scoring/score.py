"""One scoring run from listing to published files, with either engine: list, subtract the ledger, score, publish.

The driver that runs this imports neither torch nor transformers.
"""

import json
import os
import time
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from detector import runs
from detector.cli import EXIT_TOO_MANY_ERRORS
from detector.cluster import Cluster, connect, wanted_address
from detector.errors import UsageError
from detector.images.listing import Listing, list_images, raw_name
from detector.images.pixels import DECODERS, DecodeLimits
from detector.models.checkpoint import Checkpoint, inspect_checkpoint
from detector.models.devices import DeviceSettings, gpu_kind, local_device_kind, resolve_settings
from detector.models.openvino_cache import ensure_converted
from detector.progress import Progress, log
from detector.scoring import ledger, publish
from detector.scoring.config import ScoreConfig
from detector.scoring.output import held_output
from detector.scoring.resources import plan_resources
from detector.scoring.stages import ScorePlan
from detector.storage import Store
from detector.uris import is_uri, shown

_MAX_BLOCK_ROWS, _MIN_BLOCK_ROWS, _BLOCKS_WANTED = 4096, 32, 128


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What is fixed once the command line has been read."""

    config: ScoreConfig
    run: str
    started: datetime
    store: Store
    checkpoint: Checkpoint
    listing: Listing


def score(config: ScoreConfig) -> dict[str, Any]:
    """Score what ``config`` names and publish; the summary of the run.

    Raises:
        UsageError: wrong use, before anything is scored.
        LockedError: another run holds the output.
        JobError: the run failed; what is committed is kept.
    """
    config.check()
    started = runs.now_utc()
    with held_output(config.out, writes=not config.dry_run) as store:
        listing = list_images(
            config.images, include=config.include, exclude=config.exclude, limit=config.limit, output=config.out
        )
        checkpoint = inspect_checkpoint(_model_folder(config), ai_class=config.ai_class)
        checkpoint.require_decode_mode(config.decode)
        _say_listed(listing)
        run = _Run(config=config, run=runs.new_run_id(), started=started, store=store, checkpoint=checkpoint, listing=listing)
        address = wanted_address(config.ray_address) if config.engine == "ray" else None
        if address is None:
            return _score(run, None)
        with connect(address) as cluster:
            _check_cluster(run, cluster)
            return _score(run, cluster)


def _model_folder(config: ScoreConfig) -> str:
    if config.convert_weights is None:
        return config.model
    from detector.models.convert import convert_weights, is_converted

    if config.dry_run and not is_converted(config.convert_weights):
        raise UsageError("--dry-run writes nothing, and --convert-weights would: leave one of them out")
    return convert_weights(config.model, config.convert_weights)


def block_rows(num_rows: int, batch_size: int) -> int:
    """Rows in one block: whole batches, at most 4,096, and about 128 blocks so that a kill loses little."""
    wanted = min(max(num_rows / _BLOCKS_WANTED, _MIN_BLOCK_ROWS), _MAX_BLOCK_ROWS)
    return max(1, round(wanted / batch_size)) * batch_size if batch_size <= _MAX_BLOCK_ROWS else batch_size


def _score(run: _Run, cluster: Cluster | None) -> dict[str, Any]:
    settings = _settings(run.config, cluster)
    fingerprint = run.checkpoint.fingerprint(decoder=_decoder_name(run.config), **settings.facts())
    done = ledger.read_parts(run.store, fingerprint, columns=ledger.LEDGER_COLUMNS)
    files = run.listing.files
    pending = np.arange(files.num_rows) if run.config.rescore else ledger.pending_rows(files, done)
    log(f"model {fingerprint} ({settings.precision}, batch {settings.batch_size}, {settings.kind}): "
        f"{files.num_rows - len(pending):,} done, {len(pending):,} to score")  # fmt: skip
    if run.config.dry_run:
        return _dry_run(run, fingerprint, pending)
    run.store.clean_temporary(f"parts/{fingerprint}")
    seconds = _run_engine(run, cluster, settings, fingerprint, files.take(pa.array(pending)))
    return _finish(run, settings, fingerprint, num_new=len(pending), seconds=seconds)


def _settings(config: ScoreConfig, cluster: Cluster | None) -> DeviceSettings:
    on_gpu = config.wants_gpus
    if cluster is not None:
        kind = gpu_kind(cluster.gpu_name) if cluster.gpus and on_gpu else _cpu_kind()
    else:
        kind = local_device_kind() if on_gpu else _cpu_kind()
    found = resolve_settings(kind=kind, batch_size=config.batch_size, precision=config.precision, backend=config.backend)
    if config.decode == "gpu" and not found.is_cuda:
        raise UsageError("--decode gpu needs an NVIDIA GPU to score on: leave it out to decode on the CPUs")
    return found


def _decoder_name(config: ScoreConfig) -> str:
    """What the fingerprint says of decoding; nvJPEG comes with torchvision, and its pixels may change with it."""
    more = f" (torchvision {metadata.version('torchvision')})" if config.decode == "gpu" else ""
    return DECODERS[config.decode] + more


def _cpu_kind() -> str:
    return local_device_kind(gpus=False)


def _run_engine(run: _Run, cluster: Cluster | None, settings: DeviceSettings, fingerprint: str, files: pa.Table) -> float:
    """Score the pending files; the seconds that it took."""
    if not files.num_rows:
        return 0.0
    config = run.config
    if settings.backend == "openvino":
        ensure_converted(run.checkpoint, settings)
    start = time.monotonic()
    limits = DecodeLimits(timeout_s=config.timeout_s, memory_bytes=config.memory_mb * 2**20)
    plan = ScorePlan(
        store=run.store, run=run.run, fingerprint=fingerprint, checkpoint=run.checkpoint, settings=settings, limits=limits,
        decode=config.decode,
    )  # fmt: skip
    rows = block_rows(files.num_rows, settings.batch_size)
    blocks = [files.slice(at, rows) for at in range(0, files.num_rows, rows)]
    with Progress(total=files.num_rows, label="score") as progress:
        if config.engine == "local":
            from detector.scoring import local

            local.score_blocks(plan, blocks, num_workers=config.scorers, on_rows=progress.advance)
        elif cluster is not None:
            _score_on(cluster, plan, blocks, config, progress)
        else:
            with connect(None) as private:
                _score_on(private, plan, blocks, config, progress)
    return time.monotonic() - start


def _score_on(cluster: Cluster, plan: ScorePlan, blocks: list[pa.Table], config: ScoreConfig, progress: Progress) -> None:
    from detector.scoring import pipeline

    resources = plan_resources(
        cluster,
        num_scorers=config.scorers,
        gpus_per_scorer=config.gpus_per_scorer if config.wants_gpus else 0.0,
        num_blocks=len(blocks),
    )
    pipeline.score_blocks(plan, blocks, resources=resources, on_rows=progress.advance)


def _check_cluster(run: _Run, cluster: Cluster) -> None:
    from detector.scoring import pipeline

    roots = [os.fsdecode(raw_name(path)) for _name, path in run.listing.roots if not is_uri(path)]
    if not run.store.is_local:
        pipeline.check_shared(roots, cluster=cluster)
        return
    probe = f".probe-{run.run}"
    run.store.write(probe, lambda sink: sink.write(b"probe"))
    try:
        pipeline.check_shared([os.path.join(run.store.root, probe), *roots], cluster=cluster)
    finally:
        run.store.remove(probe)


def _finish(run: _Run, settings: DeviceSettings, fingerprint: str, *, num_new: int, seconds: float) -> dict[str, Any]:
    """Publish what is committed, and say what came of it."""
    config = run.config
    results = publish.results_of(run.listing, ledger.read_parts(run.store, fingerprint), run=run.run)
    summary = _summary(run, results, num_new=num_new, seconds=seconds) | {"model": fingerprint, "run": run.run}
    record = runs.run_record(
        job="score",
        run=run.run,
        status="complete",
        started=run.started,
        summary=summary,
        model=_model_facts(run, settings, fingerprint),
        engine=config.engine,
        roots=[[name, shown(path)] for name, path in run.listing.roots],
        score_seconds=round(seconds, 3),
        earlier_images_per_second=_earlier_rate(run.store),
        skipped=_histogram(run.listing.skipped["reason"]),
    )
    publish.publish(run.store, run.listing, results, record)
    if summary["failed"] > config.max_error_rate * results.num_rows:
        log(f"{summary['failed']:,} pictures failed: more than --max-error-rate {config.max_error_rate:g}; see errors.csv")
        return {**summary, "status": "too_many_errors", "exit_code": EXIT_TOO_MANY_ERRORS}
    return summary


def _summary(run: _Run, results: pa.Table, *, num_new: int, seconds: float) -> dict[str, Any]:
    rows, skipped = results.num_rows, run.listing.skipped.num_rows
    failed = rows - results["error"].null_count
    return {
        "listed": rows + skipped,
        "scored": rows - failed,
        "failed": failed,
        "skipped": skipped,
        "reused": rows - num_new,
        "images_per_second": round(num_new / seconds, 2) if seconds else 0.0,
        "errors": _histogram(results["error"].drop_null()),
    }


def _model_facts(run: _Run, settings: DeviceSettings, fingerprint: str) -> dict[str, Any]:
    """Everything that the fingerprint is made of, in words."""
    return {
        "name": run.checkpoint.name,
        "fingerprint": fingerprint,
        "identity": run.checkpoint.identity,
        **settings.facts(),
        "decoder": _decoder_name(run.config),
        "transform": run.checkpoint.transform.to_dict(),
        "ai_index": run.checkpoint.label_map.ai_index,
    }


def _dry_run(run: _Run, fingerprint: str, pending: np.ndarray) -> dict[str, Any]:
    """The plan: what would be scored, and how long an earlier run's rate makes that."""
    files, rate = run.listing.files, _earlier_rate(run.store)
    num_bytes = int(pc.sum(files["bytes"].take(pa.array(pending))).as_py() or 0)
    time_left = (
        f"about {len(pending) / rate:.0f} s at an earlier run's {rate:.1f} images/s" if rate else "no earlier run gives a rate"
    )
    log(f"dry run: {len(pending):,} pictures, {num_bytes:,} bytes to score; {time_left}")
    return {
        "status": "planned",
        "listed": files.num_rows + run.listing.skipped.num_rows,
        "pending": len(pending),
        "pending_bytes": num_bytes,
        "skipped": run.listing.skipped.num_rows,
        "reused": files.num_rows - len(pending),
        "estimated_seconds": round(len(pending) / rate, 1) if rate else None,
        "model": fingerprint,
    }


def _earlier_rate(store: Store) -> float:
    """Pictures a second of the last run that scored any, or 0.0."""
    try:
        record = json.loads(store.read(publish.RUN))
        return float(record["summary"]["images_per_second"] or record["earlier_images_per_second"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def _histogram(column: pa.ChunkedArray) -> dict[str, int]:
    counts = pc.value_counts(column).to_pylist()
    return {entry["values"]: entry["counts"] for entry in sorted(counts, key=lambda e: (-e["counts"], e["values"]))}


def _say_listed(listing: Listing) -> None:
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in _histogram(listing.skipped["reason"]).items())
    log(f"listed {listing.files.num_rows:,} files" + (f"; skipped {skipped}" if skipped else ""))
