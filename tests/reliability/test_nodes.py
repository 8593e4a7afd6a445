"""Clusters of several nodes: one is lost while it scores, and one does not see the storage that the others share."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

import pytest

from tests import pictures
from tests.cluster.conftest import BIN, _end, clean_environment, free_ports, head, write_token
from tests.reliability.test_kills import check
from tests.scoring.conftest import run_score
from tests.scoring.test_local import ROOT

__all__ = ["head"]
pytestmark = pytest.mark.ray


@pytest.fixture
def private_ray():
    """Environment of a Ray of its own: a token, and a short folder for its sockets."""
    folder = tempfile.mkdtemp(prefix="n", dir="/tmp")
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": write_token(os.path.join(folder, "token"))}
    yield clean_environment() | token | {"RAY_TMPDIR": folder, "PYTHONPATH": ROOT}
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.soak
def test_the_loss_of_a_node_changes_nothing(model, score, private_ray, tmp_path):
    """Three nodes, one of the two without a driver ends by SIGKILL while it scores: the bytes of an undisturbed run."""
    folder = tmp_path / "many"
    pictures.folder(folder, 1920, seed=11, kinds=("png", "jpg", "webp"))
    summary, _ = score("--images", folder, "--model", model, "--out", tmp_path / "quiet", "--engine", "local")
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "nodes.py")
    command = [sys.executable, script, str(folder), model, str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, env=private_ray, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    facts = json.loads(done.stdout.splitlines()[-1])
    print(facts)
    assert facts["nodes_left"] == 2, "a node was lost"
    assert 0 < facts["parts_before"] < 60, "in the middle of the run"
    assert (facts["scored"], facts["failed"]) == (1920, 0)
    assert "3 node(s)" in done.stderr
    check(tmp_path / "out", (str(tmp_path / "quiet"), summary))


@pytest.fixture
def blind_node(head, tmp_path):
    """A second node that sees an empty disk where the others see ``tmp_path/shared``; that folder."""
    shared = tmp_path / "shared"
    shared.mkdir()
    names = ("node-manager-port", "object-manager-port", "runtime-env-agent-port", "metrics-export-port",
             "dashboard-agent-listen-port", "dashboard-agent-grpc-port")  # fmt: skip
    free = free_ports(len(names) + 20)
    ray = [os.path.join(BIN, "ray"), "start", f"--address={head.gcs}", "--block", "--num-cpus=1", "--num-gpus=0",
           "--object-store-memory=100000000", "--disable-usage-stats",
           *(f"--{name}={port}" for name, port in zip(names, free, strict=False)),
           f"--worker-port-list={','.join(map(str, free[len(names) :]))}"]  # fmt: skip
    hide = ["unshare", "--mount", "--propagation", "private", "sh", "-c", 'mount -t tmpfs tmpfs "$0" && exec "$@"', str(shared)]
    log = tmp_path / "node.log"
    with open(log, "wb") as file:
        process = subprocess.Popen([*hide, *ray], env=head.environment(), stdout=file, stderr=file, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text(errors="replace"):
            if process.poll() is not None and "unshare" in log.read_text(errors="replace"):
                pytest.skip(f"a mount namespace is not allowed here: {log.read_text(errors='replace')[:200]}")
            assert process.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < deadline
            time.sleep(0.3)
        yield shared
    finally:
        _end(process)


def test_a_node_that_does_not_see_the_storage_is_wrong_use(head, blind_node, model, tmp_path):
    """Found out before anything is scored, for the output and for the pictures."""
    seen, unseen = tmp_path / "pics", blind_node / "pics"
    for folder in (seen, unseen):
        pictures.folder(folder, 4, seed=12, kinds=("png",))
    env = {name: value for name, value in head.environment().items() if name.startswith("RAY_")}
    for images, out, word in ((seen, blind_node / "out", "probe"), (unseen, tmp_path / "out", "pics")):
        summary, done = run_score("--images", images, "--model", model, "--out", out, "--ray-address", head.gcs, check=2, **env)
        assert summary["status"] == "wrong_use"
        assert "does not see" in done.stderr.splitlines()[-1]
        assert word in done.stderr.splitlines()[-1]
        assert "score:" not in done.stderr
        assert not out.exists(), "nothing is left behind"
