"""The stages as a Ray Data graph: with `lean_data.py`, what knows Ray Data; it reads from top to bottom.

CPU cluster:  listing blocks → [decode · score · commit] in one actor pool   (one operator: the read is fused into it)
GPU cluster:  listing blocks → decode actor pool → [score · commit] on the GPUs; where hosts report the custom resource
              ``decode``, decoding stays on those
"""

import atexit
import json
import logging
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from detector.cluster import Cluster, interruptibly
from detector.errors import JobError, UsageError
from detector.models.openvino_cache import files_to_ship
from detector.scoring.lean_data import make_lean
from detector.scoring.local import SupervisedScorer
from detector.scoring.resources import Resources
from detector.scoring.stages import BlockDecoder, DecodedScorer, ScorePlan
from detector.scoring.worker import from_ipc, to_ipc

_MARK = "stage-error:"
_AGAIN = "what is committed is kept, run the same command again"
_NO_PROGRESS_S = 300  # a hang, or an actor that dies at every try, becomes an error that names the operators
_PIXEL_BLOCK_ROWS = 256  # 150 KB a row: what one decoded block may hold of the object store
_ENCODED_BLOCK_BYTES = 64 * 2**20  # with --decode gpu it holds the files too; a private Ray's object store has 256 MiB


def score_blocks(plan: ScorePlan, blocks: Iterable[pa.Table], *, resources: Resources, on_rows: Callable[[int], None]) -> None:
    """Score and commit every block of the listing; returns when all are committed.

    Raises:
        UsageError: the checkpoint cannot be loaded.
        JobError: the graph failed; committed blocks are kept.
    """
    graph = build(plan, list(blocks), resources=resources)

    def run() -> None:
        for summary in graph.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            on_rows(sum(summary["rows"].to_pylist()))

    try:
        interruptibly(run)
    except Exception as error:
        raise _explained(error) from error


def build(plan: ScorePlan, blocks: list[pa.Table], *, resources: Resources) -> ray.data.Dataset:
    """The graph, not yet running: one summary row per committed block."""
    _configure()
    if plan.decode == "gpu":  # files as they are may be longer than Ray's usual block, and a cut block would be two parts
        ray.data.DataContext.get_current().target_max_block_size = None
    shipped = _Shipped(plan)
    if not resources.split:
        files = _read(blocks, num_cpus=resources.scorer_cpus)
        return _pool(files, _Score, shipped, size=resources.num_scorers, num_cpus=resources.scorer_cpus)
    most = _ENCODED_BLOCK_BYTES if plan.decode == "gpu" else None
    blocks = [piece for block in blocks for piece in _pieces(block, _PIXEL_BLOCK_ROWS, most)]
    where: dict[str, Any] = {"num_cpus": resources.decoder_cpus}
    if resources.decode_hosts:
        where["resources"] = {"decode": 1}
    decoded = _pool(_read(blocks, **where), _Decode, shipped, size=resources.num_decoders, **where)
    options: dict[str, Any] = {"num_cpus": resources.scorer_cpus, "threads": resources.scorer_threads}
    if resources.scorer_gpus:
        options |= {"num_gpus": resources.scorer_gpus, "batch_size": None if most else _PIXEL_BLOCK_ROWS}
    return _pool(decoded, _ScoreDecoded, shipped, size=resources.num_scorers, **options)


def _configure() -> None:
    make_lean()
    context = ray.data.DataContext.get_current()
    context.execution_no_progress_timeout_s = _NO_PROGRESS_S
    context.print_on_execution_start = False
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it would say is raised too, and said once


def _pool(
    data: ray.data.Dataset, stage: type, shipped: "_Shipped", *, size: int, threads: int = 1, **options: Any
) -> ray.data.Dataset:
    several: dict[str, Any] = (
        {"max_concurrent_calls_per_actor": threads, "enable_true_multi_threading": True} if threads > 1 else {}
    )
    compute = ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=threads + 1, **several)
    options.setdefault("batch_size", None)
    return data.map_batches(
        stage, fn_constructor_args=(shipped,), compute=compute, batch_format="pyarrow", zero_copy_batch=True, **options
    )


def _pieces(block: pa.Table, rows: int, most_bytes: int | None) -> Iterator[pa.Table]:
    """Cut a block: at most so many rows, and of several rows at most so many bytes of files."""
    start, total = 0, 0
    for row, size in enumerate(block["bytes"].to_pylist()):
        total += size or 0
        if row > start and (row - start == rows or (most_bytes is not None and total > most_bytes)):
            yield block.slice(start, row - start)
            start, total = row, size or 0
    yield block.slice(start)


def _read(blocks: list[pa.Table], **options: Any) -> ray.data.Dataset:
    """A source with exactly one read task per block; the same resources as its consumer let Ray fuse the two."""
    source = _ListingSource([to_ipc(block) for block in blocks], [block.num_rows for block in blocks])
    return ray.data.read_datasource(source, override_num_blocks=len(blocks), **options)


class _ListingSource(Datasource):
    """Blocks of a listing, carried as Arrow IPC: a pickled slice would carry the whole listing with it."""

    def __init__(self, blocks: list[bytes], rows: list[int]) -> None:
        super().__init__()
        self._blocks, self._rows = blocks, rows

    def get_name(self) -> str:
        return "Listing"

    def estimate_inmemory_data_size(self) -> int:
        return sum(map(len, self._blocks))

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        del parallelism, per_task_row_limit, data_context  # one task per block, whatever Ray suggests
        return [
            ReadTask(_Reader(block), BlockMetadata(num_rows=rows, size_bytes=len(block), exec_stats=None, input_files=None))
            for block, rows in zip(self._blocks, self._rows, strict=True)
        ]


@dataclass(frozen=True)
class _Reader:
    block: bytes

    def __call__(self) -> list[pa.Table]:
        return [from_ipc(self.block)]


class _Shipped:
    """A plan whose checkpoint travels with it, through the object store, to nodes that cannot see its folder."""

    def __init__(self, plan: ScorePlan) -> None:
        files = {}
        if len([node for node in ray.nodes() if node["Alive"]]) > 1:
            for name, path in _files_of(plan).items():
                with open(path, "rb") as file:
                    files[name] = file.read()
        self._plan, self._files = plan, ray.put(files) if files else None

    def unpack(self) -> ScorePlan:
        """The plan on this node; the checkpoint's files are written to a folder of this process."""
        if self._files is None:
            return self._plan
        folder = tempfile.mkdtemp(prefix="checkpoint-")  # never a folder of this node: it may hold other weights
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for name, data in ray.get(self._files).items():
            os.makedirs(os.path.dirname(os.path.join(folder, name)), exist_ok=True)
            with open(os.path.join(folder, name), "wb") as file:
                file.write(data)
        return replace(self._plan, checkpoint=replace(self._plan.checkpoint, path=folder))


def _files_of(plan: ScorePlan) -> dict[str, str]:
    """What a node needs of the checkpoint: name below its folder → path. A converted model replaces the weights."""
    folder, converted = plan.checkpoint.path, plan.settings.backend == "openvino"
    endings = (".json",) if converted else (".json", ".safetensors")
    files = {name: os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith(endings)}
    return files | files_to_ship(plan.checkpoint, plan.settings) if converted else files


class StageError(RuntimeError):
    """What a person can put right, from an actor to the driver. Ray keeps an exception's text only, so the text carries it."""


class _Stage:
    """An actor that builds its stage at its first block: an error in it then arrives as that block's, with its type."""

    stage: Callable[[ScorePlan], Callable[[pa.Table], pa.Table]]

    def __init__(self, shipped: _Shipped) -> None:
        self._shipped = shipped
        self._ready: Callable[[pa.Table], pa.Table] | None = None
        self._lock = threading.Lock()  # several threads may call, and one of them builds

    def __call__(self, block: pa.Table) -> pa.Table:
        try:
            with self._lock:
                if self._ready is None:
                    self._ready = type(self).stage(self._shipped.unpack())
            return self._ready(block)
        except (UsageError, JobError, OSError) as error:
            kind = {UsageError: "usage", JobError: "job"}.get(type(error), "output")
            raise StageError(_MARK + json.dumps({"kind": kind, "message": str(error)})) from error


class _Score(_Stage):
    stage = SupervisedScorer


class _Decode(_Stage):
    stage = BlockDecoder


class _ScoreDecoded(_Stage):
    stage = DecodedScorer


def _explained(error: BaseException) -> Exception:
    """The reason inside Ray's wrapping: the user's own mistake, the output that failed, or what Ray says."""
    found = re.search(re.escape(_MARK) + r"(\{.*\})", str(error))
    if found is None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return JobError(f"score: the Ray graph failed ({type(error).__name__}: {lines[0][:300] if lines else ''}); {_AGAIN}")
    reason = json.loads(found[1])
    if reason["kind"] != "output":
        return {"usage": UsageError, "job": JobError}[reason["kind"]](reason["message"])
    return JobError(f"score: {reason['message']}; {_AGAIN}")


def check_shared(paths: Iterable[str], *, cluster: Cluster, flags: str = "--images and --out") -> None:
    """On several nodes: every node must see the output (a probe file written by one) and the input folders.

    Raises:
        UsageError: a node does not see a path.
    """
    if cluster.num_nodes < 2:
        return
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    @ray.remote(num_cpus=0)
    def missing(wanted: list[str]) -> list[str]:
        return [path for path in wanted if not os.path.exists(path)]

    wanted = list(paths)
    for node in (node for node in ray.nodes() if node["Alive"]):
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        unseen = ray.get(missing.options(scheduling_strategy=strategy).remote(wanted))
        if unseen:
            name = node.get("NodeManagerHostname") or node["NodeID"]
            raise UsageError(f"the node {name} does not see {unseen[0]}: {flags} must be storage that every node sees")
