"""The command as a user types it."""

import json
import os
import subprocess
import sys
import time

import pytest

from detector.cli import run_job
from detector.evaluation.evaluate import EvaluateConfig
from jobs.evaluate import main
from tests.evaluation.conftest import row


@pytest.fixture
def command(capsys, tmp_path):
    """Run the job in this process: (exit code, summary, stderr)."""

    def run(*arguments, out=tmp_path / "out"):
        code = run_job("evaluate", EvaluateConfig, main, [*arguments, "--out", str(out), "--num-resamples", "50"])
        told = capsys.readouterr()
        return code, json.loads(told.out.splitlines()[-1]), told.err

    return run


def test_files_and_summary(command, corpus, tmp_path):
    code, summary, _ = command("--predictions", corpus[0], "--truth", corpus[1])
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert code == 0
    assert {"job", "status", "out", "seconds", "f1", "f1_interval"} <= set(summary)
    assert (summary["f1"], summary["f1_interval"]) == (found["f1"], found["intervals"]["f1"])
    assert sorted(os.listdir(tmp_path / "out")) == ["figures", "metrics.json", "report.html"]
    assert len(os.listdir(tmp_path / "out" / "figures")) == 5


def test_without_truth_there_is_a_report_and_no_metrics_even_of_an_earlier_run(command, corpus, tmp_path):
    command("--predictions", corpus[0], "--truth", corpus[1])
    code, summary, _ = command("--predictions", corpus[0])
    assert (code, summary["f1"], summary["num_images"]) == (0, None, 120)
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert not os.listdir(tmp_path / "out" / "figures")
    assert (tmp_path / "out" / "report.html").exists()


def test_same_command_same_metrics(command, corpus, tmp_path):
    for name in ("first", "second"):
        command("--predictions", corpus[0], "--truth", corpus[1], out=tmp_path / name)
    assert (tmp_path / "first" / "metrics.json").read_bytes() == (tmp_path / "second" / "metrics.json").read_bytes()


def test_wrong_use_is_one_line_and_exit_2(command, corpus, save, tmp_path):
    (tmp_path / "file").write_text("")
    wrong = [
        (["--predictions", str(tmp_path / "nowhere")], {}),
        (["--predictions", str(tmp_path)], {}),
        (["--predictions", corpus[0], "--truth", str(tmp_path / "nowhere.csv")], {}),
        (["--predictions", save([row("./x/y.jpg", 0.9)], "other"), "--truth", corpus[1]], {}),
        (["--predictions", corpus[0], "--truth", corpus[1], "--seed", "-1"], {}),
        (["--predictions", corpus[0]], {"out": tmp_path / "file" / "out"}),
    ]
    for arguments, more in wrong:
        code, summary, told = command(*arguments, **more)
        errors = [line for line in told.splitlines() if line.startswith("error: ")]
        assert (code, summary["status"], len(errors)) == (2, "wrong_use", 1), arguments
        assert "Traceback" not in told


def test_help_answers_at_once():
    start = time.monotonic()
    code = (
        "import sys, jobs.evaluate as e; print(sorted({'sklearn', 'pandas', 'matplotlib', 'torch', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    done = subprocess.run([sys.executable, "-m", "jobs.evaluate", "--help"], capture_output=True, text=True, check=True)
    assert "--predictions" in done.stdout
    assert time.monotonic() - start < 10  # generous on a loaded machine; what counts is that nothing heavy is imported
