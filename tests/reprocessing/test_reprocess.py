"""jobs.reprocess: what is new, changed, removed, failed or judged by another model, and nothing else."""

import csv
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from detector.cli import run_job
from detector.reprocessing import reprocess as module
from detector.reprocessing.reprocess import reprocess
from detector.scoring import local
from detector.scoring.stages import BlockScorer
from jobs.reprocess import Flags, main
from tests import pictures
from tests.checkpoints import save_swin

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
HEADER = "filename,change,old_label,new_label,old_score,new_score,old_model,new_model\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_swin(tmp_path_factory.mktemp("model"), seed=3)


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """Score with the same stages in this process: its torch is imported once, not anew for each of twenty runs."""

    def score_blocks(plan, blocks, *, num_workers, on_rows):
        scorer = BlockScorer(plan)
        for block in blocks:
            on_rows(scorer(block)["rows"][0].as_py())
        scorer.close()

    monkeypatch.setattr(local, "score_blocks", score_blocks)


@pytest.fixture
def house(tmp_path, model):
    return House(tmp_path, model)


class House:
    """A folder with collections.toml and one collection "art" beside it."""

    def __init__(self, path, model):
        self.path, self.models = path, {"art": model}
        self.images, self.out, self.file = path / "art", path / "out", path / "collections.toml"
        pictures.folder(self.images, 12, seed=5, kinds=("jpg", "png", "bmp"))
        self.write()

    def write(self, *more, **keys):
        """One collection "art" with extra keys, and ``more`` tables as they stand."""
        extra = "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
        first = (
            f'[[collection]]\nname = "art"\nimages = "art"\nout = "out"\nmodel = {json.dumps(self.models["art"])}\n'
            f'engine = "local"\nscorers = 1\n{extra}'
        )
        self.file.write_text("\n".join([first, *more]), encoding="utf-8")

    def run(self, slot=None):
        return reprocess(str(self.file), slot=slot)

    def changes(self):
        with open(self.out / "changes.csv", encoding="utf-8", newline="") as file:
            return {line["filename"]: line for line in csv.DictReader(file)}

    def kinds(self):
        return {name.removeprefix("./art/"): line["change"] for name, line in self.changes().items()}

    def errors(self):
        with open(self.out / "errors.csv", encoding="utf-8", newline="") as file:
            return {line["filename"]: line["error"] for line in csv.DictReader(file)}

    def read(self, name):
        return (self.out / name).read_bytes()

    def records(self):
        records = [json.loads(file.read_bytes()) for file in (self.out / "history").iterdir()]
        return sorted(records, key=lambda record: record["started"])


def replaced(path, seed):
    """Another picture under the same name, of the same size to the byte."""
    size = path.stat().st_size
    with_ = np.random.default_rng(seed).integers(0, 256, size - 54, dtype=np.uint8).tobytes()
    path.write_bytes(path.read_bytes()[:54] + with_)  # a BMP's header is 54 bytes
    assert path.stat().st_size == size


def forbid_scoring(monkeypatch):
    def fail(*_args, **_kwargs):
        raise AssertionError("something was decoded though nothing had changed")

    monkeypatch.setattr(local, "score_blocks", fail)


def test_added_replaced_deleted_and_nothing_else(house, monkeypatch):
    first = house.run()
    assert (first["status"], first["changes"]["new"], first["out"]) == ("complete", 12, str(house.out))
    assert set(house.kinds().values()) == {"new"}
    assert first["collections"][0]["scored"] == 12

    with monkeypatch.context() as quiet:
        forbid_scoring(quiet)
        predictions = house.read("predictions.csv")
        again = house.run()
    assert house.read("changes.csv").decode() == HEADER
    assert not any(again["changes"].values())
    assert again["collections"][0]["reused"] == 12
    assert house.read("predictions.csv") == predictions

    old = (house.images / "0002-bmp").stat().st_mtime_ns
    replaced(house.images / "0002-bmp", seed=1)
    os.utime(house.images / "0002-bmp", ns=(old, old + 1))  # the least difference that there can be
    os.utime(house.images / "0003-jpg")  # only touched: scored again, no change
    (house.images / "0001-png").unlink()
    pictures.save(house.images / "added.png", np.random.default_rng(9), "png")
    (house.images / "text.jpg").write_text("no picture")
    third = house.run()
    assert house.kinds() == {"0001-png": "removed", "0002-bmp": "changed", "added.png": "new", "text.jpg": "new"}
    assert third["changes"] == {**dict.fromkeys(third["changes"], 0), "removed": 1, "changed": 1, "new": 2}
    assert b"0001-png" not in house.read("predictions.csv")
    broken = house.changes()["./art/text.jpg"]
    assert (broken["new_label"], broken["new_score"]) == ("", "")
    assert [record["status"] for record in house.records()] == ["complete"] * 3
    assert len({record["run"] for record in house.records()}) == 3
    assert not (house.out / ".reprocess" / "previous.parquet").exists()


def test_another_model_rescores_everything_and_lists_the_flips(house):
    house.run()
    before = {line["filename"]: line["label"] for line in rows(house)}
    house.models["art"] = save_swin(house.path / "other", seed=4)
    house.write()
    summary = house.run()
    after = {line["filename"]: line["label"] for line in rows(house)}
    flipped = {name for name in before if before[name] != after[name]}
    print(f"{len(flipped)} of {len(before)} flipped")
    assert 0 < len(flipped) < len(before)
    changes = house.changes()
    assert set(changes) == set(before)
    assert {name for name, line in changes.items() if line["change"] == "flipped"} == flipped
    assert {name for name, line in changes.items() if line["change"] == "rescored"} == set(before) - flipped
    for name, line in changes.items():
        assert (line["old_label"], line["new_label"]) == (before[name], after[name])
        assert line["old_model"] != line["new_model"]
    assert (summary["collections"][0]["reused"], summary["changes"]["flipped"]) == (0, len(flipped))


def rows(house):
    with open(house.out / "predictions.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_passing_error_is_tried_again_and_recovers(house):
    """A manifest names a picture that is not there yet: vanished, which may pass. A broken file is not tried again."""
    (house.images / "text.jpg").write_text("no picture")
    manifest = house.images / "list.csv"
    manifest.write_text("filename\n0000-jpg\n0001-png\ntext.jpg\n0002-bmp\n")
    hidden = house.path / "away.bmp"
    (house.images / "0002-bmp").rename(hidden)
    house.write(images="art/list.csv")
    text = house.file.read_text().replace('images = "art"\n', "")
    house.file.write_text(text)
    first = house.run()
    assert first["collections"][0]["failed"] == 2
    hidden.rename(house.images / "0002-bmp")
    second = house.run()
    assert house.kinds() == {"0002-bmp": "recovered"}
    assert second["collections"][0]["reused"] == 3
    line = house.changes()["./art/0002-bmp"]
    assert (line["old_label"], line["old_score"]) == ("", "")
    assert line["new_label"] in {"0", "1"}


def test_a_picture_that_took_too_long_is_tried_again_though_nothing_about_it_changed(house):
    Image.new("RGB", (6000, 6000), (90, 120, 30)).save(house.images / "large.png")
    house.write(**{"timeout-s": 0.05})
    house.run()
    assert house.errors()["./art/large.png"] == "timeout"
    slow = {name.removeprefix("./art/") for name in house.errors()}  # a busy machine may be slow with others too
    house.write(**{"timeout-s": 60})
    house.run()
    assert house.kinds() == dict.fromkeys(slow, "recovered")
    house.run()
    assert house.kinds() == {}


def job(house, *flags, code=""):
    """Run the job as its own process, with some code before it."""
    program = f"import sys\nfrom jobs.reprocess import Flags, main\nfrom detector.cli import run_job\n{code}\n"
    program += "sys.exit(run_job('reprocess', Flags, main))"
    command = [sys.executable, "-c", program, "--config", str(house.file), *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


def test_killed_between_scoring_and_its_report_the_next_run_reports(house):
    kill = "import os\nfrom detector.reprocessing import reprocess as r\nr.write_changes = lambda *_: os.kill(os.getpid(), 9)"
    done = job(house, "--slot", "s1", code=kill)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (house.out / "predictions.csv").exists()
    assert not (house.out / "changes.csv").exists()
    house.run(slot="s1")  # the slot was not completed
    assert set(house.kinds().values()) == {"new"}
    assert len(house.kinds()) == 12

    (house.images / "0001-png").unlink()
    assert job(house, "--slot", "s2", code=kill).returncode == -signal.SIGKILL
    (house.images / "0000-jpg").unlink()
    house.run(slot="s2")
    assert house.kinds() == {"0000-jpg": "removed", "0001-png": "removed"}
    house.run(slot="s3")
    assert house.kinds() == {}


def test_a_completed_slot_does_nothing_and_says_so(house, capsys, monkeypatch):
    house.run(slot="2026-01-31")
    (house.images / "0001-png").unlink()
    forbid_scoring(monkeypatch)
    kept = house.read("changes.csv"), house.read("predictions.csv"), house.records()
    capsys.readouterr()
    code = run_job("reprocess", Flags, main, ["--config", str(house.file), "--slot", "2026-01-31"])
    said = capsys.readouterr()
    summary = json.loads(said.out.splitlines()[-1])
    assert code == 0
    assert summary["status"] == "slot_done"
    assert "slot 2026-01-31 is completed already" in said.err
    assert kept == (house.read("changes.csv"), house.read("predictions.csv"), house.records())
    house.run(slot="2026-01-3")  # another slot, though its name is the beginning of the first one's
    assert house.kinds() == {"0001-png": "removed"}
    house.run()  # without a slot every call runs
    assert len(house.records()) == 3


@pytest.mark.parametrize("slot", ["", "a/b", "../x", ".hidden", "x" * 101, "a b"])
def test_a_slot_that_is_no_file_name_is_wrong_use(house, slot, capsys):
    assert run_job("reprocess", Flags, main, ["--config", str(house.file), "--slot", slot]) == 2
    assert "--slot" in capsys.readouterr().err
    assert not house.out.exists()


def other(name, out, images="art", model="nowhere/at-all/model"):
    return f'[[collection]]\nname = "{name}"\nimages = "{images}"\nout = "{out}"\nmodel = "{model}"\nengine = "local"\n'


def test_a_failing_collection_stops_no_other_and_the_worst_code_counts(house, capsys):
    """The broken one stands first, so that the other one can only be reached past it."""
    house.write()
    art = house.file.read_text()
    house.file.write_text(other("no model", "bad") + other("no folder", "worse", "nowhere") + art)
    code = run_job("reprocess", Flags, main, ["--config", str(house.file)])
    said = capsys.readouterr()
    summary = json.loads(said.out.splitlines()[-1])
    assert (code, summary["status"]) == (2, "wrong_use")
    assert [entry["exit_code"] for entry in summary["collections"]] == [2, 2, 0]
    assert [entry["name"] for entry in summary["collections"]] == ["no model", "no folder", "art"]
    assert summary["out"] is None
    assert summary["seconds"] > 0
    assert "nowhere" in summary["collections"][1]["error"]
    assert len(house.kinds()) == 12
    assert not (house.path / "bad").exists(), "a wrong line leaves nothing behind"


@pytest.mark.parametrize(("codes", "worst"), [((0, 3), 3), ((3, 4, 0), 4), ((4, 2), 2), ((2, 1, 4, 3, 0), 1), ((0, 0), 0)])
def test_the_worst_exit_code_is_failed_then_wrong_use_then_locked_then_too_many_errors(house, monkeypatch, codes, worst):
    house.file.write_text("".join(other(f"c{at}", f"out{at}") for at in range(len(codes))))
    ends = iter(codes)
    monkeypatch.setattr(module, "_guarded", lambda item, _: {"out": item.config.out, "status": "x", "exit_code": next(ends)})
    assert house.run()["exit_code"] == worst


def test_too_many_errors_is_exit_3_with_everything_written(house):
    (house.images / "text.jpg").write_text("no picture")
    house.write(**{"max-error-rate": 0.01})
    summary = house.run(slot="s")
    assert (summary["exit_code"], summary["status"]) == (3, "too_many_errors")
    assert len(house.kinds()) == 13
    assert house.run(slot="s")["status"] == "slot_done"


@pytest.mark.parametrize("lock", [module.LOCK, ".lock"])
def test_an_output_that_another_run_holds_is_exit_4(house, lock):
    house.out.mkdir()
    with FileLock(str(house.out / lock)).acquire(timeout=0):
        summary = house.run()
    assert (summary["exit_code"], summary["status"]) == (4, "locked")
    assert not (house.out / "changes.csv").exists()


def test_a_failed_run_is_in_the_history_and_its_slot_stays_open(house, monkeypatch):
    def break_down(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(module.scoring, "score", break_down)
        assert house.run(slot="s")["exit_code"] == 1
    assert [record["status"] for record in house.records()] == ["failed"]
    assert house.run(slot="s")["changes"]["new"] == 12
    assert [record["status"] for record in house.records()] == ["failed", "complete"]
    assert [record["slot"] for record in house.records()] == ["s", "s"]


def test_a_dry_run_writes_no_changes(house):
    house.run()
    kept = sorted(os.listdir(house.out)), house.read("changes.csv")
    house.write(**{"dry-run": True})
    (house.images / "0001-png").unlink()
    assert house.run()["status"] == "planned"
    assert kept == (sorted(os.listdir(house.out)), house.read("changes.csv"))


def test_the_driver_imports_neither_torch_nor_transformers(house):
    code = (
        "import atexit\n"
        "loaded = lambda: [name for name in ('torch', 'transformers') if name in sys.modules]\n"
        "atexit.register(lambda: print('LOADED', loaded(), file=sys.stderr))"
    )
    done = job(house, code=code)
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["job"] == "reprocess"
