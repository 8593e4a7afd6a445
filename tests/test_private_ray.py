"""How a job leaves Ray: a SIGTERM that comes meanwhile is neither lost nor met by a handler of Ray's."""

import contextlib
import os
import signal
import subprocess
import sys

import psutil
import pytest
import ray

from detector.private_ray import shut_down

BY_DEFAULT = """
import os, signal
import ray
from detector.private_ray import shut_down

ray.shutdown = lambda: os.kill(os.getpid(), signal.SIGTERM)
shut_down(signal.SIG_DFL)
print("still here")
"""

STUCK = """
import atexit, os, time
import ray
from detector.cluster import connect

@ray.remote
class Stuck:
    def pid(self):
        atexit.register(time.sleep, 600)
        return os.getpid()

with connect(None, num_cpus=1):
    stuck = Stuck.remote()
    print(ray.get(stuck.pid.remote()))
    del stuck  # Ray ends an actor that nobody has a handle on, and then waits for it no longer
    time.sleep(3)
"""


@pytest.fixture
def handler():
    """A handler that notes its signals in its attribute; what stood before stands again afterwards."""

    def note(number, _frame):
        note.came.append(number)

    note.came = []
    before = signal.signal(signal.SIGTERM, note)
    yield note
    signal.signal(signal.SIGTERM, before)


def test_a_sigterm_while_ray_shuts_down_reaches_the_jobs_handler_once(handler, monkeypatch):
    monkeypatch.setattr(ray, "shutdown", lambda: os.kill(os.getpid(), signal.SIGTERM))
    shut_down(handler)
    assert handler.came == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is handler


def test_the_jobs_handler_stands_again_where_the_shutdown_fails(handler, monkeypatch):
    def fail():
        raise RuntimeError("no raylet")

    monkeypatch.setattr(ray, "shutdown", fail)
    with pytest.raises(RuntimeError, match="no raylet"):
        shut_down(handler)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_sigterm_while_ray_shuts_down_ends_a_process_without_a_handler():
    done = subprocess.run([sys.executable, "-c", BY_DEFAULT], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGTERM
    assert done.stdout == ""


@pytest.mark.ray
def test_a_worker_that_does_not_end_by_itself_does_not_outlive_its_private_ray():
    done = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    pid = int(done.stdout)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(10)
    assert not psutil.pid_exists(pid)
