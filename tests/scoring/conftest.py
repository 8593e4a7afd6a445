"""One tiny checkpoint and one folder of pictures of many kinds for all scoring tests."""

import json
import os
import subprocess
import sys

import pytest

from tests import pictures
from tests.checkpoints import save_swin


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return save_swin(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """72 pictures of twelve kinds, some in a subfolder, and three files that are no pictures."""
    path = tmp_path_factory.mktemp("corpus") / "pictures"
    pictures.folder(path, 60, seed=1)
    pictures.folder(path, 12, seed=2, sub="more")
    (path / "empty.jpg").write_bytes(b"")
    (path / "text.png").write_text("this is no picture")
    (path / "cut.jpg").write_bytes((path / "0000-jpg").read_bytes()[:200])
    return str(path)


def run_score(*flags, check=0, **env):
    """Run jobs.score as a user does; (summary, the finished process)."""
    command = [sys.executable, "-m", "jobs.score", *map(str, flags)]
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=root, env={**os.environ, **env}, timeout=280
    )
    assert check is None or done.returncode == check, f"exit {done.returncode}\n{done.stderr[-3000:]}"
    lines = done.stdout.strip().splitlines()
    return (json.loads(lines[-1]) if lines else {}), done


@pytest.fixture(scope="session")
def score():
    return run_score


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, folder, model):
    """The predictions of one quiet run with the local engine: what every other run must equal."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    summary, _ = run_score("--images", folder, "--model", model, "--out", out, "--engine", "local")
    return str(out), summary
