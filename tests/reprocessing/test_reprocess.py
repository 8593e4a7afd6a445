"""jobs.reprocess: what is new, changed, removed, failed or judged by another model, and nothing else."""

import os
import signal

import numpy as np
from PIL import Image

from tests import pictures
from tests.checkpoints import save_swin
from tests.reprocessing.house import HEADER, forbid_scoring, job, replaced, rows


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
