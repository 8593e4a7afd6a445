"""`ray job submit --working-dir . -- python -m jobs.score …` against a head that wants a token."""

import contextlib
import csv
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from tests import pictures
from tests.checkpoints import save_swin
from tests.cluster.conftest import ROOT, write_token

MAX_UPLOAD_BYTES = 5 * 2**20

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_swin(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "pictures"
    pictures.folder(folder, 24, seed=8)
    return folder


def last_json(text):
    return json.loads(next(line for line in reversed(text.splitlines()) if line.startswith("{")))


def test_a_submitted_job_scores_on_the_cluster_and_publishes(head, model, images, tmp_path):
    out = tmp_path / "out"
    done = head.submit("python", "-m", "jobs.score", "--images", images, "--model", model, "--out", out)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    assert "succeeded" in said
    assert "ray: the Ray cluster at" in said, "it must not have started a Ray of its own"
    summary = last_json(done.stdout)
    assert (summary["status"], summary["scored"], summary["failed"]) == ("complete", 24, 0)
    with open(out / "predictions.csv", encoding="utf-8", newline="") as file:
        names = [line["filename"] for line in csv.DictReader(file)]
    assert names == sorted(f"./pictures/{name}" for name in os.listdir(images))
    assert pq.read_table(out / "predictions.parquet").num_rows == 24
    record = json.loads((out / "run.json").read_bytes())
    assert (record["status"], record["engine"]) == ("complete", "ray")


def test_a_submitted_reprocess_scores_several_collections_one_after_another(head, model, images, tmp_path):
    few = tmp_path / "few"
    pictures.folder(few, 3, seed=9)
    table = '[[collection]]\nname = "{name}"\nimages = "{images}"\nmodel = "{model}"\nout = "{name}"\nscorers = 1\n'
    config = tmp_path / "collections.toml"
    config.write_text("".join(table.format(name=name, images=few, model=model) for name in ("one", "two")))
    done = head.submit("python", "-m", "jobs.reprocess", "--config", config, "--slot", "s1")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    assert last_json(done.stdout)["changes"]["new"] == 6
    for name in ("one", "two"):
        assert (tmp_path / name / "changes.csv").read_text().count(",new,") == 3
    assert said.count("ray: the Ray cluster at") == 2


def test_the_exit_code_of_a_failed_job_stands_in_its_message(head, model, tmp_path):
    """`ray job submit` itself ends with 1 whatever the code was."""
    done = head.submit(
        "python", "-m", "jobs.score", "--images", tmp_path / "nowhere", "--model", model, "--out", tmp_path / "out"
    )
    said = done.stdout + done.stderr
    assert done.returncode == 1, said[-3000:]
    assert "exit code 2" in said
    assert "does not exist" in said


@pytest.mark.parametrize(("token", "status"), [("none", "401"), ("wrong", "403")])
def test_without_the_right_token_a_submission_is_refused(head, tmp_path, token, status):
    path = write_token(str(tmp_path / "token")) if token == "wrong" else ""
    marker = tmp_path / "it-ran"
    done = head.submit("touch", marker, token_path=path, timeout_s=60)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert status in said or "authentication" in said.lower(), said[-2000:]
    time.sleep(1)
    assert not marker.exists()


def test_a_job_that_names_the_cluster_without_its_token_is_wrong_use(head, model, images, tmp_path):
    command = [sys.executable, "-m", "jobs.score", "--images", str(images), "--model", model, "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--ray-address", head.gcs], cwd=ROOT, env=head.environment(token_path=""),
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr[-3000:]
    assert "token" in done.stderr.lower()


def test_the_dashboard_is_on_loopback_and_the_ports_that_are_not_want_the_token(head):
    """docs/operations.md has the whole table; what changes here with a version of Ray must change there."""
    listening = {}
    for process in psutil.Process(head.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            for found in process.net_connections(kind="inet"):
                if found.status == psutil.CONN_LISTEN:
                    listening.setdefault(found.laddr.port, set()).add(found.laddr.ip)
    by_name = {name: listening.get(port, set()) for name, port in head.ports.items()}
    print(by_name)
    assert by_name["dashboard-port"] == {"127.0.0.1"}
    for name in ("port", "node-manager-port", "object-manager-port"):
        assert by_name[name] & {"::", "0.0.0.0"}
    for url in (
        head.address + "/api/jobs/",
        f"http://127.0.0.1:{head.ports['dashboard-agent-listen-port']}/api/job_agent/jobs/",
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(url, timeout=10)
        assert refused.value.code == 401


def test_the_upload_carries_the_code_and_nothing_big():
    """Read with Ray's own packaging, with the excludes that `ray job submit` adds."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    files = []
    excludes = [_get_excludes(Path(ROOT), get_runtime_env_default_excludes())]
    _dir_travel(Path(ROOT), excludes, files.append, include_gitignore=False)  # as without git: .rayignore alone must do
    names = {str(file.relative_to(ROOT)) for file in files if file.is_file()}
    size = sum((file.stat().st_size for file in files if file.is_file()), start=0)
    print(f"{len(names)} files, {size:,} bytes")
    assert {"jobs/score.py", "jobs/reprocess.py", "detector/scoring/score.py", "pyproject.toml"} <= names
    assert not [name for name in names if name.startswith((".venv", ".git/", "tests", "demo"))]
    assert size < MAX_UPLOAD_BYTES
