"""compare(): exactly one row for each filename that became different, and the right kind for it."""

import csv
import io
import time

import numpy as np
import pyarrow as pa
import pytest

from detector.reprocessing.changes import CHANGES, KINDS, STATE_SCHEMA, compare, count_changes, read_state, write_changes
from detector.storage import open_store


def row(name, label=0, *, score=0.9, sha="a", size=10, model="m1"):
    score = None if label is None else score
    return {"filename": name, "label": label, "score": score, "sha256": sha, "bytes": size, "model": model}


def state(*rows):
    return pa.Table.from_pylist(list(rows), schema=STATE_SCHEMA)


def kinds(old, new):
    return {entry["filename"]: entry["change"] for entry in compare(state(*old), state(*new)).to_pylist()}


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        (None, row("x"), "new"),
        (None, row("x", None), "new"),
        (row("x"), None, "removed"),
        (row("x", None), None, "removed"),
        (row("x"), row("x", 1, sha="b"), "changed"),
        (row("x"), row("x", 1, sha="b", model="m2"), "changed"),  # other bytes win over the other model
        (row("x", None), row("x", sha="b"), "changed"),  # and over having failed before
        (row("x"), row("x", None, sha="b"), "changed"),  # and over failing now
        (row("x"), row("x", None, sha=None, size=11), "changed"),  # unreadable now, but its size says enough
        (row("x"), row("x", None, sha=None), "failed"),
        (row("x"), row("x", None, model="m2"), "failed"),
        (row("x", None, sha=None), row("x"), "recovered"),
        (row("x", None), row("x", model="m2"), "recovered"),
        (row("x"), row("x", 1, model="m2"), "flipped"),
        (row("x"), row("x", 0, score=0.6, model="m2"), "rescored"),
        (row("x"), row("x"), None),
        (row("x", None), row("x", None), None),
        (row("x", None), row("x", None, model="m2"), None),
        (row("x", None, sha=None, size=None), row("x", None, sha=None, size=None), None),
    ],
)
def test_each_filename_has_the_first_kind_that_fits(old, new, kind):
    stays = row("stays")
    found = kinds([stays, *([old] if old else [])], [stays, *([new] if new else [])])
    assert found == ({"x": kind} if kind else {})


def test_old_and_new_values_stand_in_their_columns():
    old = state(row("gone", 1, score=0.75, model="m1"), row("same"), row("turned", 0, score=0.5, model="m1"))
    new = state(row("came", None, model="m2"), row("same"), row("turned", 1, score=0.625, model="m2"))
    assert compare(old, new).to_pylist() == [
        {"filename": "came", "change": "new", "old_label": None, "new_label": None, "old_score": None, "new_score": None,
         "old_model": None, "new_model": "m2"},
        {"filename": "gone", "change": "removed", "old_label": 1, "new_label": None, "old_score": 0.75, "new_score": None,
         "old_model": "m1", "new_model": None},
        {"filename": "turned", "change": "flipped", "old_label": 0, "new_label": 1, "old_score": 0.5, "new_score": 0.625,
         "old_model": "m1", "new_model": "m2"},
    ]  # fmt: skip


def test_from_nothing_and_to_nothing():
    empty, one = state(), state(row("x"))
    assert compare(empty, empty).num_rows == 0
    assert count_changes(compare(empty, one)) == {**dict.fromkeys(KINDS, 0), "new": 1}
    assert count_changes(compare(one, empty)) == {**dict.fromkeys(KINDS, 0), "removed": 1}


def test_the_file_is_plain_csv_that_survives_strange_names(tmp_path):
    store = open_store(str(tmp_path))
    names = ["./a/comma,.png", './a/quote".png', "./a/line\nfeed.png", "./a/return\r.png", "./a/é%FF.png", "./a/plain.png"]
    write_changes(store, compare(state(), state(*(row(name, 1, score=0.5) for name in names))))
    text = (tmp_path / CHANGES).read_bytes().decode()
    assert text.splitlines()[0] == "filename,change,old_label,new_label,old_score,new_score,old_model,new_model"
    assert "./a/plain.png,new,,1,,0.500000,,m1\n" in text
    read = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [line["filename"] for line in read] == sorted(names, key=str.encode)
    write_changes(store, compare(state(), state()))
    assert (tmp_path / CHANGES).read_text() == "filename,change,old_label,new_label,old_score,new_score,old_model,new_model\n"


def test_a_broken_published_file_counts_as_absent(tmp_path, capsys):
    (tmp_path / "predictions.parquet").write_bytes(b"PAR1 and then nothing of use")
    assert read_state(open_store(str(tmp_path)), "predictions.parquet").num_rows == 0
    assert "cannot be read" in capsys.readouterr().err


def test_fifty_thousand_rows_agree_with_a_plain_loop_and_take_less_than_a_second(tmp_path):
    seed = 20
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    old, new = (draw(rng, 50_000, model) for model in ("m1", "m2"))
    start = time.perf_counter()
    changes = compare(old, new)
    write_changes(open_store(str(tmp_path)), changes)
    seconds = time.perf_counter() - start
    print(f"{changes.num_rows:,} changes of 50,000 rows in {seconds:.3f} s")
    found = dict(zip(changes["filename"].to_pylist(), changes["change"].to_pylist(), strict=True))
    assert len(found) == changes.num_rows
    assert found == plain_loop(old, new)
    assert set(found.values()) == set(KINDS)
    assert seconds < 1.5  # 0.3 s on an idle core


def draw(rng, count, model):
    """A random state: names of which both sides share about two thirds, failures, three contents."""
    chosen = np.sort(rng.choice(75_000, count, replace=False))
    label = rng.integers(0, 2, count)
    failed = rng.random(count) < 0.1
    models = np.where(rng.random(count) < 0.5, "m0", model)
    sha = rng.choice(["a", "b"], count, p=[0.9, 0.1])
    return pa.table({
        "filename": [f"./a/{number:06d}.jpg" for number in chosen],
        "label": pa.array(label, pa.int8(), mask=failed),
        "score": pa.array(rng.random(count), pa.float32(), mask=failed),
        "sha256": pa.array(sha, pa.string(), mask=rng.random(count) < 0.05),
        "bytes": pa.array(np.full(count, 10), pa.int64()),
        "model": pa.array(models, pa.string()),
    }).cast(STATE_SCHEMA)  # fmt: skip


def plain_loop(old, new):
    """The same rules, one row at a time."""
    before, after = ({entry["filename"]: entry for entry in table.to_pylist()} for table in (old, new))
    found = {}
    for name in before.keys() | after.keys():
        a, b = before.get(name), after.get(name)
        if a is None or b is None:
            found[name] = "new" if a is None else "removed"
        elif a["sha256"] and b["sha256"] and a["sha256"] != b["sha256"]:
            found[name] = "changed"
        elif (a["label"] is None) != (b["label"] is None):
            found[name] = "failed" if b["label"] is None else "recovered"
        elif a["label"] is not None and a["model"] != b["model"]:
            found[name] = "rescored" if a["label"] == b["label"] else "flipped"
    return found
