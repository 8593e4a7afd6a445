"""Slots, exit codes, locks and what a run of jobs.reprocess as a whole promises."""

import json
import os

import pytest
from filelock import FileLock

from detector.cli import run_job
from detector.reprocessing import reprocess as module
from jobs.reprocess import Flags, main
from tests.reprocessing.house import forbid_scoring, job, other


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
