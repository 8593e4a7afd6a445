"""A trained backbone's answers for the test split: scoring's own stages, run by Ray actors where the training ran."""

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.util import ActorPool

from detector.cluster import Cluster, interruptibly
from detector.errors import JobError
from detector.images.pixels import DECODERS, DecodeLimits
from detector.models.checkpoint import Checkpoint
from detector.models.devices import DeviceSettings, gpu_kind, local_device_kind, resolve_settings
from detector.models.predictor import load_predictor
from detector.progress import Progress
from detector.scoring.rows import MODEL_FAILED, PARTS_SCHEMA
from detector.scoring.stages import ScorePlan, decode_blocks, score_block
from detector.storage import Store

_BATCHES_PER_BLOCK = 2


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What came of scoring one split.

    Attributes:
        table: one row per picture, with PARTS_SCHEMA, in the order of the split.
        images_per_second: of all scoring processes together, while they worked.
        num_processes: how many there were.
        settings: device, batch size and precision.
    """

    table: pa.Table
    images_per_second: float
    num_processes: int
    settings: DeviceSettings


class _Scorer:
    """One scoring process. The clock runs while it decodes and scores, not while it starts."""

    def __init__(self, plan: ScorePlan, first: pa.Table) -> None:
        self._plan = plan
        self._predictor, self._decoder = load_predictor(plan.checkpoint, plan.settings), plan.decoder()
        self._predictor.predict(1)
        self._score(first)

    def ready(self) -> bool:
        """Answers as soon as the model is loaded."""
        return True

    def score(self, files: pa.Table) -> tuple[int, float, pa.Table]:
        """(process, seconds, rows) of one block."""
        start = time.perf_counter()
        table = self._score(files)
        return os.getpid(), time.perf_counter() - start, table

    def _score(self, files: pa.Table) -> pa.Table:
        rows = self._plan.settings.batch_size
        decoded = decode_blocks(self._decoder, self._plan.checkpoint.transform, files, rows=rows)
        return pa.concat_tables([score_block(self._predictor, block, plan=self._plan) for block in decoded])


def score_settings(cluster: Cluster, *, gpus_per_worker: float | None, precision: str) -> DeviceSettings:
    """Device, batch size and precision, from the table that jobs.score uses.

    Raises:
        UsageError: a precision that the device does not have.
    """
    on_gpu = cluster.gpus > 0 and gpus_per_worker != 0
    kind = gpu_kind(cluster.gpu_name) if on_gpu else local_device_kind(gpus=False)
    return resolve_settings(kind=kind, batch_size=None, precision=precision)


def score_split(
    samples: pa.Table, *, checkpoint: Checkpoint, settings: DeviceSettings, cluster: Cluster, store: Store, run: str
) -> Scored:
    """Score a split's pictures (:data:`detector.training.dataset.SAMPLES_SCHEMA`) with every CPU or GPU of the cluster.

    Raises:
        JobError: the model could not score a batch.
    """
    files, size = _files(samples), settings.batch_size
    whole = max(1, int(cluster.gpus if settings.is_cuda else cluster.cpus))
    count = min(whole, math.ceil(files.num_rows / size))
    decode = checkpoint.decode_modes[0]  # what it was trained with
    fingerprint = checkpoint.fingerprint(
        precision=settings.precision, batch_size=size, device=settings.kind, decoder=DECODERS[decode], backend="torch"
    )
    plan = ScorePlan(
        store=store, run=run, fingerprint=fingerprint, checkpoint=checkpoint, settings=settings, limits=DecodeLimits(),
        decode=decode,
    )  # fmt: skip
    actor = ray.remote(num_cpus=min(1.0, cluster.cpus / whole), num_gpus=float(settings.is_cuda))(_Scorer)
    actors = [actor.remote(plan, files.slice(0, 1)) for _ in range(count)]
    blocks = [files.slice(start, size * _BATCHES_PER_BLOCK) for start in range(0, files.num_rows, size * _BATCHES_PER_BLOCK)]
    try:
        table, rate = interruptibly(lambda: _collect(actors, blocks, total=files.num_rows))
    finally:
        for handle in actors:
            ray.kill(handle)
    _refuse_failed(table)
    return Scored(table=table, images_per_second=rate, num_processes=count, settings=settings)


def write_predictions(scored: Scored, store: Store, name: str) -> None:
    """Keep the answers as a ``predictions.parquet`` that jobs.evaluate reads."""
    store.write(name, lambda sink: pq.write_table(scored.table, sink, compression="zstd"))


def _collect(actors: Sequence[Any], blocks: Sequence[pa.Table], *, total: int) -> tuple[pa.Table, float]:
    """All rows in order, and the sum of the processes' own rates."""
    tables, rows, seconds = [], dict[int, int](), dict[int, float]()
    ray.get([actor.ready.remote() for actor in actors])  # before the bar: its rate leaves the start out
    with Progress(total=total, label="score the test split") as progress:
        for process, spent, table in ActorPool(actors).map(lambda actor, block: actor.score.remote(block), blocks):
            tables.append(table.select(PARTS_SCHEMA.names).cast(PARTS_SCHEMA))
            rows[process] = rows.get(process, 0) + table.num_rows
            seconds[process] = seconds.get(process, 0.0) + spent
            progress.advance(table.num_rows)
    return pa.concat_tables(tables), sum(rows[process] / seconds[process] for process in rows)


def _files(samples: pa.Table) -> pa.Table:
    """The split as a listing. Links are followed: a symbolic tree is a data folder like any other here."""
    paths = [os.path.realpath(path) for path in samples["path"].to_pylist()]
    status = [os.stat(path) for path in paths]
    return pa.table({
        "filename": [f"./{name}" for name in samples["filename"].to_pylist()],
        "path": pa.array(paths, pa.binary()),
        "bytes": pa.array([found.st_size for found in status], pa.int64()),
        "modified": pa.array([found.st_mtime_ns for found in status], pa.int64()).cast(pa.timestamp("ns", "UTC")),
    })  # fmt: skip


def _refuse_failed(table: pa.Table) -> None:
    """A picture that does not decode is missing for every backbone; one that the model cannot score makes the table unfair."""
    failed = [
        message
        for error, message in zip(table["error"].to_pylist(), table["message"].to_pylist(), strict=True)
        if error == MODEL_FAILED
    ]
    if failed:
        raise JobError(f"{len(failed):,} test pictures could not be scored: {failed[0]}")
