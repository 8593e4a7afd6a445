"""What is touched of Ray's inside in the process that is connected to it: what need not start, and how to leave.

Everything here is looked for before it is used: what is not found as it was in Ray 2.60 is left as Ray has it.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import psutil

_abandoned: list[bool] = []


@contextlib.contextmanager
def without_log_monitor() -> Iterator[None]:
    """Start no process that forwards the workers' output to the driver, which does not ask for it (``log_to_driver``).

    It takes 0.8 to 1.1 % of a core all the time (measured), and ray.init has no option against it. Where Ray's inside is not
    as it was in 2.60, it runs.
    """
    try:
        from ray._private.node import Node

        start = Node.start_log_monitor
    except (ImportError, AttributeError):
        yield
        return
    Node.start_log_monitor = lambda *_args, **_options: None
    try:
        yield
    finally:
        Node.start_log_monitor = start


def is_private() -> bool:
    """Whether Ray is connected and is this process's own; where Ray's inside is not as it was in 2.60, False."""
    return bool(getattr(_node_of_ours(), "head", False))


def _node_of_ours() -> Any:
    """Ray's record of the processes that it has started for this one; None where there is none, or no such record."""
    try:
        from ray._private import worker
    except ImportError:
        return None
    return getattr(worker, "_global_node", None)


def abandon() -> None:
    """Leave Ray as it is, for :func:`leave_if_abandoned` to end the process.

    A stopped job's threads still wait inside Ray, and Ray ends the whole process, with 1 and without a word, if one of them
    calls it after ray.shutdown or after the raylet is gone (``QuickExit`` in its C++ side). Where a private Ray's processes
    would not end with this one, it is shut down all the same.
    """
    import ray

    if is_private() and not getattr(_node_of_ours(), "kernel_fate_share", False):
        ray.shutdown()
        return
    _abandoned.append(True)


def leave_if_abandoned(code: int) -> None:
    """End the process at once where a Ray was abandoned; everything that it had to write must be written.

    A private Ray's workers and agents, which are not our own children, are killed; its head and raylet, which are, the kernel
    ends with us.
    """
    if not _abandoned:
        return
    if is_private():
        children = psutil.Process().children()
        for process in (each for child in children for each in child.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                process.kill()
    os._exit(code)


def _workers_of_ours() -> list[psutil.Process]:
    """The processes below a private Ray's raylet, which is what starts them; none where Ray's record is another."""
    if not is_private():
        return []
    try:
        raylet = _node_of_ours().all_processes["raylet"][0].process.pid
        return psutil.Process(raylet).children(recursive=True)
    except (AttributeError, LookupError, TypeError, psutil.Error):
        return []


def shut_down(handler: Any) -> None:
    """Disconnect, and end a private Ray's processes.

    Ray's C++ side gives SIGTERM back to the system when it goes, which would end the process while it waits for the others.

    Its workers are killed if they are still there then: the controller of a training that had ended well now and then waits for
    ever in its own end (two of ten, Ray 2.60), 0.8 GB of it.

    A SIGTERM that came meanwhile is passed on to ``handler``, which stands again afterwards.

    Raises:
        StopRequested: by the job's own handler.
    """
    import ray

    came: list[int] = []
    node = _node_of_ours()
    end = getattr(node, "kill_all_processes", None)

    def note(number: int, _frame: Any) -> None:
        came.append(number)

    def noting_end(*args: Any, **options: Any) -> None:
        signal.signal(signal.SIGTERM, note)
        end(*args, **options)  # type: ignore[misc]

    if threading.current_thread() is not threading.main_thread():
        ray.shutdown()
        return
    signal.signal(signal.SIGTERM, note)
    if end is not None:
        node.kill_all_processes = noting_end
    workers = _workers_of_ours()
    try:
        ray.shutdown()
    finally:
        signal.signal(signal.SIGTERM, handler)
        for process in workers:
            with contextlib.suppress(psutil.Error):
                process.kill()
    if came and callable(handler):
        handler(came[0], None)
    elif came:
        signal.raise_signal(came[0])
