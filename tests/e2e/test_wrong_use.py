"""Wrong use is one clear line and exit 2; nothing is written and nothing is lost."""

import json
import os
import subprocess
import sys
import time

import pytest

from tests import pictures
from tests.checkpoints import save_swin
from tests.scoring.conftest import run_score

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
JOBS = ("prepare", "train", "compare", "score", "evaluate", "reprocess", "demo")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder of pictures and a checkpoint that would work."""
    base = tmp_path_factory.mktemp("good")
    pictures.folder(base / "pics", 4, seed=1)
    return {"--images": str(base / "pics"), "--model": save_swin(base / "model"), "--out": str(base / "out")}


def changed(folder, tmp_path, **changes):
    copy = tmp_path / "changed"
    copy.mkdir()
    for name in os.listdir(folder):
        (copy / name).write_bytes((open(os.path.join(folder, name), "rb")).read())
    config = json.loads((copy / "config.json").read_text()) | changes
    (copy / "config.json").write_text(json.dumps(config))
    return str(copy)


def cases(good, tmp_path):
    """What is changed in a good command line → what the message must say."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("a file")
    (tmp_path / "hollow").mkdir()
    three = {"0": "AI", "1": "Real", "2": "both"}
    return {
        "missing folder": ({"--images": str(tmp_path / "nowhere")}, "nowhere"),
        "folder without files": ({"--images": str(tmp_path / "empty")}, "empty"),
        "missing checkpoint": ({"--model": str(tmp_path / "no-model")}, "no-model"),
        "hollow checkpoint": ({"--model": str(tmp_path / "hollow")}, "config.json"),
        "hub id without a network": ({"--model": "nobody/no-such-model"}, "nobody/no-such-model"),
        "no two-class classifier": ({"--model": changed(good["--model"], tmp_path, id2label=three)}, "two-class"),
        "output in a file's place": ({"--out": str(tmp_path / "file" / "out")}, "file"),
        "bad number": ({"--limit": "many"}, "--limit"),
        "limit below one": ({"--limit": "0"}, "--limit"),
        "rate above one": ({"--max-error-rate": "7"}, "--max-error-rate"),
        "unknown flag": ({"--colour": "red"}, "--colour"),
        "unknown precision": ({"--precision": "fp8"}, "--precision"),
        "fp16 on a CPU": ({"--precision": "fp16", "--gpus-per-scorer": "0"}, "fp16"),
        "time limit that is no number": ({"--timeout-s": "nan"}, "--timeout-s"),
        "cluster that is not there": ({"--ray-address": "127.0.0.1:1"}, "127.0.0.1:1"),
        "class that is not there": ({"--ai-class": "nobody"}, "--ai-class"),
    }


def test_every_wrong_use_of_score(good, tmp_path):
    for name, (change, says) in cases(good, tmp_path).items():
        flags = [part for pair in ({**good, **change}).items() for part in pair]
        begun = time.monotonic()
        summary, done = run_score(*flags, check=None, HF_HUB_OFFLINE="1")
        assert done.returncode == 2, (name, done.returncode, done.stderr)
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, (name, done.stderr)
        assert says in lines[0], (name, lines[0])
        assert "Traceback" not in done.stderr, name
        assert summary.get("status", "wrong_use") == "wrong_use"
        assert time.monotonic() - begun < 30, name
        assert not os.path.exists(good["--out"]), (name, "a wrong command left an output behind")


def test_a_flag_given_twice_is_refused_and_not_half_used(good):
    """The parser would keep the last one only: the first folder's pictures would be lost without a word."""
    flags = [part for pair in good.items() for part in pair]
    summary, done = run_score(*flags, "--images", good["--images"], check=2)
    assert "--images is given twice" in done.stderr
    assert summary["status"] == "wrong_use"


def test_credentials_never_reach_the_outputs():
    """A URI may carry keys: they are masked wherever a path or a command line is shown."""
    from detector.uris import shown

    for text in ("s3://KEY:SECRET@bucket/x?token=SECRET", "--out=s3://KEY:SECRET@b/x", "name=s3://KEY:SECRET@b/x y"):
        assert "SECRET" not in shown(text)
        assert "s3://b" in shown(text)
    assert shown("--limit") == "--limit"


@pytest.mark.parametrize("job", JOBS)
def test_help_comes_at_once_and_without_heavy_imports(job):
    """`--help` answers in under a second on an idle machine because nothing heavy is imported; imports are what is asserted."""
    code = (
        "import sys, runpy; sys.argv = ['jobs', '--help']\n"
        f"try: runpy.run_module('jobs.{job}', run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "heavy = {'torch', 'ray', 'transformers', 'datasets', 'pandas', 'sklearn', 'pyarrow', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--out" in done.stdout or "--config" in done.stdout


def test_importing_the_package_is_light():
    code = "import sys, detector; sys.exit(len({'torch', 'ray', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_scoring_driver_never_imports_torch(good, tmp_path):
    code = (
        "import sys; from detector.scoring.config import ScoreConfig; from detector.scoring.score import score\n"
        "if __name__ == '__main__':\n"
        f"    score(ScoreConfig(images=({good['--images']!r},), model={good['--model']!r}, out={str(tmp_path / 'out')!r}, engine='local'))\n"
        "    sys.exit(len({'torch', 'transformers'} & set(sys.modules)))"
    )
    script = tmp_path / "driver.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    assert done.returncode == 0, done.stderr
