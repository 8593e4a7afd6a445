"""Fine-tuning on Ray Train, as its driver sees it: start the workers, watch them, and keep the best evaluation's model."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from detector import runs
from detector.cluster import interruptibly
from detector.errors import JobError, LockedError, StopRequested, UsageError
from detector.models.devices import gpu_kind, local_device_kind, resolve_settings
from detector.progress import log
from detector.storage import filesystem
from detector.training.board import Board
from detector.training.config import TrainConfig
from detector.training.outcome import export
from detector.training.plan import STATE_FILE, WORK_FOLDER, Plan, plan_training, write_json
from detector.training.watching import Watcher

if TYPE_CHECKING:
    import ray.train


# How often Ray's controller collects reports; every evaluation waits for one collection, and every end for another.
_POLL_S = "0.5"
# glibc gives every tensor above 32 MB back to the system as soon as it is freed and asks for it again in the next step: page
# faults that took 34 of 90 CPU-ms a picture in a MobileNetV2 and 16 of 418 in a Swin-tiny. Workers on a CPU keep theirs. One
# arena, since a worker trains in a thread of its own and only the main arena grows past 64 MB. Other C libraries ignore it.
KEEP_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
# Left free for Ray's own tasks: standing workers that hold every CPU can keep a job from ever starting.
_SPARE_CPUS = 0.4


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How many workers there are, and what each reserves."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    precision: str


def finetune(config: TrainConfig) -> dict[str, Any]:
    """Fine-tune a detector and write it to ``config.out``; Ray must be connected (``detector.cluster.connect``).

    Returns:
        The job's summary: ``best_metric``, ``epochs``, ``images_per_second``, counts, whether it collapsed.

    Raises:
        UsageError: whatever the user can put right.
        JobError: the workers failed more often than ``config.max_failures``, or in a way that a restart does not cure.
    """
    return run_training(plan_training(config))


def run_training(plan: Plan) -> dict[str, Any]:
    """Run what :func:`plan_training` planned; see :func:`finetune`."""
    if plan.finished is not None:
        log(f"train: {plan.config.out} holds this training already finished; nothing to do")
        return plan.finished
    started = runs.now_utc()
    with _lock(plan):
        scale = choose_scale(plan)
        state = {"run": plan.run, "identity": plan.identity, "started": started.isoformat()}
        write_json(plan.store, STATE_FILE, state)
        result = _fit(plan, scale)
        summary = export(plan, result, precision=scale.precision, workers=scale.workers, started=started)
        _remove_work(plan)
    return summary


def choose_scale(plan: Plan) -> Scale:
    """Workers and their share of the cluster, with the reason in the log.

    Raises:
        UsageError: more GPUs asked for than the cluster has.
    """
    import ray

    resources = ray.cluster_resources()
    cpus, gpus = float(resources.get("CPU", 1)), float(resources.get("GPU", 0))
    config = plan.config
    per_worker = config.gpus_per_worker if config.gpus_per_worker is not None else float(gpus > 0)
    workers = config.workers or (max(1, int(gpus / per_worker)) if per_worker else min(2, max(1, int(cpus))))
    if per_worker * workers > gpus:
        raise UsageError(
            f"{workers} workers × {per_worker:g} GPUs are more than the {gpus:g} GPUs of the cluster: "
            "lower --workers or --gpus-per-worker"
        )
    wanted = 1.0 + config.loader_workers
    share = max(0.01, min(wanted, int(100 * (cpus - _SPARE_CPUS) / workers) / 100))
    kind = gpu_kind(_gpu_name(resources)) if per_worker else local_device_kind()
    precision = resolve_settings(kind=kind, batch_size=config.batch_size, precision=_precision(config, kind)).precision
    together = config.batch_size * config.gradient_accumulation * workers
    log(
        f"train: {workers} workers × {config.batch_size} pictures × {config.gradient_accumulation} steps = {together} pictures "
        f"per update, {precision}, {share:g} CPUs and {per_worker:g} GPUs each"
    )
    return Scale(workers=workers, cpus_per_worker=share, gpus_per_worker=per_worker, precision=precision)


def _precision(config: TrainConfig, kind: str) -> str:
    """On a CPU ``auto`` trains in fp32, so that the same seed gives the same metrics on every kind of CPU."""
    return "fp32" if config.precision == "auto" and kind.startswith("cpu") else config.precision


def _gpu_name(resources: dict[str, float]) -> str:
    return next((name.partition(":")[2] for name in sorted(resources) if name.startswith("accelerator_type:")), "")


def _fit(plan: Plan, scale: Scale) -> "ray.train.Result":
    """Run the workers to the end.

    Raises:
        JobError: they failed for good.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _POLL_S)
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    from ray.train import TrainingFailedError

    board = Board(run=plan.run)
    board.clear()
    trainer = _torch_trainer(plan, scale, board)
    total = plan.config.epochs * len(plan.holdout.train)
    try:
        with Watcher(board, total=total, store=plan.store):
            result = interruptibly(trainer.fit)
        _refuse_hopeless(board)
        return result
    except TrainingFailedError as error:
        _refuse_hopeless(board)
        raise JobError(f"training failed: {_reason(error)}; finished evaluations are kept, --resume continues") from error
    except StopRequested:
        log("train: stopping; finished evaluations are kept, --resume continues after the last one")
        raise
    finally:
        with contextlib.suppress(Exception):  # where Ray is gone, that is not what the user is to read
            board.clear()


def _refuse_hopeless(board: Board) -> None:
    """Fail where a worker said that no further attempt is of use.

    Raises:
        JobError: it did; the message is its own.
    """
    if (reason := board.fatal()) is not None:
        raise JobError(f"training failed: {reason}")  # with other flags --resume would be refused, so it is not offered


def _torch_trainer(plan: Plan, scale: Scale, board: Board) -> Any:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from detector.training.lean import LeanTrainer
    from detector.training.task import Task

    use_gpu = scale.gpus_per_worker > 0
    resources = {"CPU": scale.cpus_per_worker, **({"GPU": scale.gpus_per_worker} if use_gpu else {})}
    task = Task(
        config=plan.config, base=plan.base, holdout=plan.holdout, precision=scale.precision, use_gpu=use_gpu, board=board
    )

    def worker() -> None:
        """One training process; its return value would travel to the driver, and there is none."""
        from detector.training.worker import train_worker  # here: the driver need not load transformers

        train_worker(task)

    return LeanTrainer(
        worker,
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=scale.workers, use_gpu=use_gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name=plan.run,  # the same name continues a run, so every intended training has its own
            **_ray_storage(plan),
            failure_config=FailureConfig(max_failures=plan.config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1, checkpoint_score_attribute="selection"),
            worker_runtime_env={} if use_gpu else {"env_vars": KEEP_MEMORY},
        ),
    )


def _ray_storage(plan: Plan) -> dict[str, Any]:
    """Where Ray Train keeps checkpoints of a run: inside the output folder, which every node sees."""
    if plan.store.is_local:
        return {"storage_path": os.path.join(plan.store.root, WORK_FOLDER)}
    found, base = filesystem(plan.store.root)
    return {"storage_path": f"{base}/{WORK_FOLDER}", "storage_filesystem": found}


def _reason(error: BaseException) -> str:
    """The last line of the first worker's message that says something."""
    failures = getattr(error, "worker_failures", None) or {}
    first = next(iter(failures.values()), error)
    lines = [line.strip() for line in str(first).strip().splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:500]


@contextlib.contextmanager
def _lock(plan: Plan) -> Iterator[None]:
    """Hold the output folder while training.

    Raises:
        LockedError: another run holds it.
    """
    if not plan.store.is_local:
        yield
        return
    import filelock

    lock = filelock.FileLock(os.path.join(plan.store.root, ".lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise LockedError(f"another run holds {plan.config.out}: wait for it, or choose another --out") from None
    try:
        yield
    finally:
        lock.release()


def _remove_work(plan: Plan) -> None:
    """Delete the state that only an unfinished run needs: optimizer, random generators, checkpoints."""
    plan.store.remove(STATE_FILE)
    if plan.store.is_local:
        shutil.rmtree(os.path.join(plan.store.root, WORK_FOLDER), ignore_errors=True)
        return
    found, base = filesystem(plan.store.root)
    with contextlib.suppress(OSError):
        found.delete_dir(f"{base}/{WORK_FOLDER}")
