"""How a job connects to Ray: a private local one that ends with the job, or a cluster, with its token.

A job joins a cluster only when it is told to, by ``--ray-address`` or RAY_ADDRESS (which ``ray job submit`` sets); never
because one happens to run on the machine, as a bare ``ray.init()`` would.
"""

import contextlib
import logging
import os
import secrets
import signal
import socket
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from detector.errors import JobError, StopRequested, UsageError
from detector.private_ray import abandon, shut_down, without_log_monitor
from detector.progress import log

Result = TypeVar("Result")

# Services of Ray that a job of ours does not use; together about 2 CPU-seconds a start (measured). event_stats and the
# two below are for what they take all the time: an idle process of Ray costs 0.5 to 1 % of a core, and there are many.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_enable_open_telemetry": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_worker_niceness": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread that outlives ray.shutdown would start another Ray, which may end the process
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # its C++ side writes warnings about every actor pool to stderr
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# On a private Ray there is also nobody who takes nodes away.
_QUIET_ALONE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_num_workers_soft_limit": "0"}
_KNOCK_S = 5.0
_LOCAL_OBJECT_STORE_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a job may use.

    Attributes:
        local: a private Ray on this machine.
        num_nodes: nodes that are alive.
        cpus, gpus: their sums.
        gpu_name: Ray's accelerator type of the first GPU, or ''.
        address: what was connected to.
        decode: sum of the custom resource ``decode`` that hosts report which are meant for decoding; 0 where none does.
    """

    local: bool
    num_nodes: int
    cpus: float
    gpus: float
    gpu_name: str
    address: str
    decode: float = 0.0


def wanted_address(address: str | None) -> str | None:
    """The cluster the user named: the flag first, then RAY_ADDRESS; None means a private local Ray."""
    chosen = address or os.environ.get("RAY_ADDRESS") or None
    return None if chosen == "local" else chosen


@contextlib.contextmanager
def connect(address: str | None = None, *, num_cpus: int | None = None) -> Iterator[Cluster]:
    """Connect to Ray for the length of a job, and disconnect (a private Ray: stop it) at the end.

    Raises:
        UsageError: the named cluster cannot be reached, or refuses the token.
        JobError: a private Ray does not start.
    """
    chosen = wanted_address(address)
    for name, value in (_QUIET if chosen else _QUIET | _QUIET_ALONE).items():
        os.environ.setdefault(name, value)
    handler = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    try:
        with _without_stderr():
            _init(chosen, num_cpus)
        with contextlib.suppress(ValueError):  # not in the main thread: nothing was installed there
            signal.signal(signal.SIGTERM, handler)  # ray.init puts its own there, which would end the job at once
        yield _describe(chosen)
    except (StopRequested, KeyboardInterrupt):
        abandon()
        raise
    except BaseException:
        shut_down(handler)
        raise
    else:
        shut_down(handler)


def _init(address: str | None, num_cpus: int | None) -> None:
    import ray

    options = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    if address is None:
        with contextlib.suppress(OSError):  # no home folder, or not ours to write: Ray then says what it needs
            _keep_token_private()
        try:
            with without_log_monitor():
                ray.init(
                    address="local",
                    num_cpus=num_cpus or usable_cpus(),
                    include_dashboard=False,
                    object_store_memory=_LOCAL_OBJECT_STORE_BYTES,
                    **options,
                )
        except Exception as error:
            raise JobError(f"a local Ray could not be started: {_first_line(error)}") from error
        return
    _knock(address)
    try:
        ray.init(address=address, **options)
    except Exception as error:
        raise UsageError(
            f"the Ray cluster at {address} cannot be used ({_first_line(error)}): check --ray-address, and RAY_AUTH_MODE=token "
            "with RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        ) from error


def _keep_token_private() -> None:
    """See that only its owner can read the token of a private Ray.

    Ray makes the file with mode 0644, and two first runs at once overwrite each other's. So it is made here, whole and
    private from the start; one that Ray has made before is tightened. A token that the user names is left as it is.

    Raises:
        OSError: the home folder cannot be written, or the token is another user's.
    """
    named = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if named or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    folder = os.path.join(os.path.expanduser("~"), ".ray")
    path = os.path.join(folder, "auth_token")
    if not os.path.lexists(path):
        os.makedirs(folder, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".auth_token-") as file:  # mode 0600
            file.write(secrets.token_hex(32))  # as `ray get-auth-token --generate` makes them
            file.flush()
            with contextlib.suppress(FileExistsError):
                os.link(file.name, path)
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(handle)
        if stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IROTH:
            os.fchmod(handle, 0o600)
    finally:
        os.close(handle)


def interruptibly(work: Callable[[], Result]) -> Result:
    """Run ``work`` in a thread and wait for it in plain Python.

    A signal handler's exception that is raised while the main thread waits inside Ray is swallowed there: the job would
    run on to its end after a SIGTERM. (Ray Train also leaves its own SIGINT handler behind when it runs in the main thread.)
    """
    done: Future[Result] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done.result()


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Drop what Ray's C++ side writes to file descriptor 2 while it starts, such as its own log level."""
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def _knock(address: str) -> None:
    """Try the port first: ray.init waits for minutes, without a word, for a cluster that is not there.

    Raises:
        UsageError: nobody answers.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return  # "auto" and the like: Ray knows where to look
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()
    except OSError as error:
        raise UsageError(f"no Ray cluster answers at {address} ({error}): check --ray-address or RAY_ADDRESS") from None


def usable_cpus() -> int:
    """CPUs that this process may run on (a container's or taskset's share, not the machine's)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _describe(address: str | None) -> Cluster:
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    resources = ray.cluster_resources()
    kinds = sorted(name.partition(":")[2] for name in resources if name.startswith("accelerator_type:"))
    cluster = Cluster(
        local=address is None,
        num_nodes=len(nodes),
        cpus=float(resources.get("CPU", 0)),
        gpus=float(resources.get("GPU", 0)),
        gpu_name=kinds[0] if kinds else "",
        address=address or "local",
        decode=float(resources.get("decode", 0)),
    )
    where = "a private local Ray" if cluster.local else f"the Ray cluster at {address}"
    log(f"ray: {where}, {cluster.num_nodes} node(s), {cluster.cpus:g} CPUs, {cluster.gpus:g} GPUs")
    return cluster


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
