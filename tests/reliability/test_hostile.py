"""Hostile files among honest ones, through the whole job: one row each, no scoring process lost, no neighbour's score moved."""

import json
import os
import shutil
import tarfile
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from detector.images.names import display_name
from detector.scoring.rows import ERROR_CODES, PASSING_ERRORS
from tests import pictures
from tests.images.hostile import encode, picture, write_hostile
from tests.reliability.watching import Watched
from tests.scoring.test_local import ROOT, read, start, wait_for_parts

BAD_IMAGES = os.path.join(os.path.dirname(ROOT), "shared", "data", "bad-images.tar.gz")
NUM_SCORERS = 2
RAY = pytest.param("ray", marks=pytest.mark.ray)
PUBLISHED = ("predictions.csv", "errors.csv", "skipped.csv")


def rows_of(out):
    return {row["filename"]: row for row in pq.read_table(os.path.join(out, "predictions.parquet")).to_pylist()}


def add_neighbours(folder, honest):
    """Beside every entry of ``folder`` an honest picture that follows it in the listing; another folder has these alone."""
    number = 0
    for base, _, names in list(os.walk(os.fsencode(folder))):
        there = os.path.join(os.fsencode(honest), os.path.relpath(base, os.fsencode(folder)))
        os.makedirs(there, exist_ok=True)
        for name in [name for name in names if not name.startswith(b".")] or [b"x"]:
            for where in (base, there):
                with open(os.path.join(where, name[:240] + b"~.png"), "wb") as file:
                    file.write(encode(picture(seed=1000 + number), "PNG"))
            number += 1
    return number


def check_neighbours(out, alone, count):
    """The honest pictures' scores are the same bits as in a folder that has only them."""
    expected, found = rows_of(alone), rows_of(out)
    assert len(expected) == count
    values = np.array([row["p_ai"] for row in expected.values()], dtype=np.float32)
    assert values.std() > 0.01, "a constant score would satisfy this check"
    for name, row in expected.items():
        assert row["error"] is None
        assert np.float32(found[name]["p_ai"]).tobytes() == np.float32(row["p_ai"]).tobytes(), name


def run(folder, model, out, engine):
    """Score ``folder``; the summary, once it is certain that no scoring process was lost."""
    watched = Watched("--images", folder, "--model", model, "--out", out, "--scorers", NUM_SCORERS, engine=engine)
    assert watched.returncode == 0, watched.stderr
    assert "ended with" not in watched.stderr
    assert "Traceback" not in watched.stderr
    assert 0 < len(watched.scorers) <= NUM_SCORERS, "a scoring process died and was replaced"
    summary = json.loads(watched.stdout.splitlines()[-1])
    assert summary["scored"] + summary["failed"] + summary["skipped"] == summary["listed"]
    print(f"{engine}: {summary['listed']} entries in {watched.seconds:.1f} s, {summary['errors']}")
    return summary, watched


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, model, score):
    """(folder, its hostile entries, the number of honest neighbours, the output of the neighbours alone)."""
    top = tmp_path_factory.mktemp("hostile")
    folder, honest = top / "mixed", top / "honest" / "mixed"
    folder.mkdir()
    entries = write_hostile(folder)
    count = add_neighbours(folder, honest)
    score("--images", honest, "--model", model, "--out", top / "alone", "--engine", "local")
    return folder, entries, count, top / "alone"


@pytest.fixture(scope="module")
def outputs():
    """Where the engines' outputs of this module lie, to compare them."""
    return {}


@pytest.mark.parametrize("engine", ["local", RAY])
def test_every_hostile_file_is_one_row_and_harms_no_neighbour(hostile, model, tmp_path_factory, outputs, engine):
    folder, entries, count, alone = hostile
    out = tmp_path_factory.mktemp(engine) / "out"
    summary, _ = run(folder, model, out, engine)
    rows, skipped = rows_of(out), pq_csv(out / "skipped.csv")
    for entry in entries:
        name = "./mixed/" + display_name(os.path.basename(entry.path))
        if not os.path.lexists(entry.path) or entry.path.endswith(b"directory.jpg"):
            assert name not in rows, "listed now, so neither gone nor a folder"
        elif entry.regular:
            assert rows[name]["error"] in entry.outcomes, (name, rows[name]["message"])
        else:
            assert name not in rows
            assert skipped.pop(name) in {"fifo", "socket", "link", "loop"}, name
    assert not skipped
    regular = sum(len(names) for _, _, names in os.walk(folder)) - 4
    assert len(rows) == summary["scored"] + summary["failed"] == regular
    assert rows["./mixed/directory.jpg/x~.png"]["error"] is None, "a folder is walked into, whatever it is called"
    check_neighbours(out, alone, count)
    same_as_the_others(outputs, "generated", out)


def pq_csv(path):
    """filename → reason of skipped.csv."""
    from pyarrow import csv

    table = csv.read_csv(path, parse_options=csv.ParseOptions(newlines_in_values=True))
    return dict(zip(table["filename"].to_pylist(), table["reason"].to_pylist(), strict=True))


def same_as_the_others(outputs, key, out):
    """Whichever engine came first, the second has written the same bytes."""
    first = outputs.setdefault(key, out)
    for name in PUBLISHED:
        assert read(out, name) == read(first, name), name


@pytest.fixture(scope="module")
def collected(tmp_path_factory, model, score):
    """The collected bad files, as they come; and with honest neighbours."""
    if not os.path.exists(BAD_IMAGES):
        pytest.skip("../shared/data/bad-images.tar.gz is not there")
    top = tmp_path_factory.mktemp("collected")
    with tarfile.open(BAD_IMAGES) as archive:
        archive.extractall(top / "bare", filter="data")
    shutil.copytree(top / "bare" / "files", top / "mixed" / "files", symlinks=True)
    count = add_neighbours(top / "mixed" / "files", top / "honest" / "files")
    score("--images", top / "honest" / "files", "--model", model, "--out", top / "alone", "--engine", "local")
    return top, count


@pytest.mark.soak
@pytest.mark.parametrize("engine", ["local", RAY])
def test_the_collected_bad_files(collected, model, tmp_path_factory, outputs, engine):
    """304 files that others found or made: a row each, a hidden one an entry of skipped.csv, within 90 s."""
    top, count = collected
    out = tmp_path_factory.mktemp(engine)
    summary, watched = run(top / "bare" / "files", model, out / "bare", engine)
    names = [name for _, _, found in os.walk(top / "bare" / "files") for name in found]
    assert summary["listed"] == len(names) == 304
    assert watched.seconds < 90
    hidden = sum(name.startswith(".") for name in names)
    assert summary["skipped"] == hidden == read(out / "bare", "skipped.csv").count(b",hidden\n")
    rows = rows_of(out / "bare")
    assert len(rows) == 304 - hidden
    assert {row["error"] for row in rows.values()} <= {None, *ERROR_CODES}
    same_as_the_others(outputs, "bare", out / "bare")
    run(top / "mixed" / "files", model, out / "mixed", engine)
    check_neighbours(out / "mixed", top / "alone", count)
    among = rows_of(out / "mixed")
    assert {name: (row["p_ai"], row["error"]) for name, row in rows.items()} == {
        name: (among[name]["p_ai"], among[name]["error"]) for name in rows
    }, "nor do the honest files move them"


def test_files_that_turn_into_something_else_while_the_run_goes_on(model, tmp_path):
    """Listed as pictures; when their turn comes: gone, a FIFO, a link to /dev/zero, a folder, empty, sparse and huge."""
    folder, out = tmp_path / "pics", tmp_path / "out"
    names = pictures.folder(folder, 640, seed=6, kinds=("png",))
    process = start("--images", folder, "--model", model, "--out", out, "--engine", "local", "--scorers", 1)
    victims = [os.path.join(folder, name) for name in names[-6:]]
    expected = ("vanished", "unreadable", "unreadable", "unreadable", "empty", "too_large")

    def meddle():
        wait_for_parts(out, 1, process)
        for path in victims:
            os.unlink(path)
        os.mkfifo(victims[1])
        os.symlink("/dev/zero", victims[2])
        os.mkdir(victims[3])
        for path, size in ((victims[4], 0), (victims[5], 60 * 10**9)):
            with open(path, "wb"):
                os.truncate(path, size)

    thread = threading.Thread(target=meddle)
    thread.start()
    _, stderr = process.communicate(timeout=200)
    thread.join()
    assert process.returncode == 0, stderr
    rows = rows_of(out)
    assert len(rows) == 640
    errors = {name: row["error"] for name, row in rows.items() if row["error"]}
    assert errors == {f"./pics/{os.path.basename(path)}": error for path, error in zip(victims, expected, strict=True)}


def test_errors_that_may_pass_are_tried_again_and_others_are_not(model, score, tmp_path):
    folder, out = tmp_path / "pics", tmp_path / "out"
    kept = [*pictures.folder(folder, 10, seed=7, kinds=("jpg",)), "empty.jpg", "text.jpg", "cut.png"]
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("no picture")
    (folder / "cut.png").write_bytes(encode(picture(400, 300), "PNG")[:2000])
    Image.new("RGBA", (7000, 5000)).save(folder / "big.png")
    manifest = folder / "list.csv"
    manifest.write_text("filename\n" + "".join(f"{name}\n" for name in [*kept, "big.png", "late.png"]))
    flags = ("--images", manifest, "--model", model, "--out", out, "--engine", "local", "--scorers", 1)
    little = ("--memory-mb", 64)
    summary, _ = score(*flags, *little)
    assert summary["errors"] == {"empty": 1, "not_an_image": 1, "out_of_memory": 1, "truncated": 1, "vanished": 1}
    assert {"out_of_memory", "vanished"} <= set(PASSING_ERRORS)
    before = rows_of(out)
    summary, _ = score(*flags, *little)
    assert summary["reused"] == len(kept), "the permanent errors count as done, the two that may pass do not"
    after = rows_of(out)
    again = {name for name, row in after.items() if row["scored_at"] != before[name]["scored_at"]}
    assert again == {"./pics/big.png", "./pics/late.png"}
    pictures.save(folder / "late.png", np.random.default_rng(8), "png")
    summary, _ = score(*flags)
    assert summary["reused"] == len(kept)
    assert summary["errors"] == {"empty": 1, "not_an_image": 1, "truncated": 1}, "what passed is scored"
