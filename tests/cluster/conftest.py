"""A real Ray head with a token, as child processes of the tests: free ports, its own folder, ended by its own pids."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass

import psutil
import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.path.dirname(sys.executable)
_NUM_WORKER_PORTS = 60


@dataclass(frozen=True, kw_only=True)
class Head:
    """A running head node, and how to reach it."""

    address: str  # of the dashboard: what `ray job submit --address` takes
    gcs: str  # HOST:PORT: what --ray-address takes
    token_path: str
    ports: dict[str, int]  # by the flag of `ray start` without its dashes
    pid: int

    def environment(self, token_path=None):
        """A user's environment: with the token, another, or ('') none, and then a home folder that has none either."""
        path = self.token_path if token_path is None else token_path
        env = clean_environment()
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": path} if path else {"HOME": os.path.dirname(self.token_path)}
        return env | token

    def submit(self, *entrypoint, token_path=None, timeout_s=180):
        """``ray job submit --working-dir . -- …`` from the project's root, waited for."""
        command = [os.path.join(BIN, "ray"), "job", "submit", "--address", self.address, "--working-dir", ".", "--"]
        return subprocess.run(
            [*command, *map(str, entrypoint)], cwd=ROOT, env=self.environment(token_path), capture_output=True, text=True,
            check=False, timeout=timeout_s,
        )  # fmt: skip


def clean_environment():
    """This process's environment without RAY_*, and the virtual environment's programs first."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return env | {"PATH": BIN + os.pathsep + env.get("PATH", ""), "RAY_USAGE_STATS_ENABLED": "0"}


def write_token(path):
    """A token file as `ray get-auth-token --generate` makes one, readable by its owner alone."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(32))
    return str(path)


def free_ports(count):
    """Ports that are free at this moment, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


_PORTS = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "ray-client-server-port",
          "node-manager-port", "object-manager-port", "runtime-env-agent-port", "metrics-export-port")  # fmt: skip


def _command(folder, ports, worker_ports):
    flags = [f"--{name}={port}" for name, port in ports.items()]
    workers = ",".join(map(str, worker_ports))
    fixed = ["--head", "--block", "--num-cpus=2", "--num-gpus=0", "--object-store-memory=200000000",
             "--dashboard-host=127.0.0.1", "--disable-usage-stats"]  # fmt: skip
    return [os.path.join(BIN, "ray"), "start", *fixed, *flags, f"--worker-port-list={workers}", f"--temp-dir={folder}"]


@pytest.fixture(scope="session")
def head():
    """One head for all tests of this folder."""
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # short: socket paths end at 107 characters
    token_path = write_token(os.path.join(folder, "token"))
    free = free_ports(len(_PORTS) + _NUM_WORKER_PORTS)
    ports = dict(zip(_PORTS, free, strict=False))
    env = clean_environment() | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token_path}
    with open(os.path.join(folder, "head.log"), "wb") as log:
        process = subprocess.Popen(
            _command(folder, ports, free[len(_PORTS) :]),
            env=env,
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        found = Head(
            address=f"http://127.0.0.1:{ports['dashboard-port']}", gcs=f"127.0.0.1:{ports['port']}", token_path=token_path,
            ports=ports, pid=process.pid,
        )  # fmt: skip
        _wait_until_up(found, process, os.path.join(folder, "head.log"))
        yield found
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_up(found, process, log, timeout_s=120):
    with open(found.token_path, encoding="utf-8") as file:
        request = urllib.request.Request(f"{found.address}/api/jobs/", headers={"Authorization": f"Bearer {file.read()}"})
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.3)
    with open(log, encoding="utf-8", errors="replace") as file:
        pytest.fail(f"the head did not come up:\n{file.read()[-3000:]}")


def _end(process):
    """End the head and everything that it started, by pid; `ray stop` would end every Ray of this machine."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.kill()  # SIGTERM would take it 15 s
    for child in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()
    psutil.wait_procs(family, timeout=10)
