"""The ledger: what was committed for the same file and may not change is done; everything else is pending."""

import numpy as np
import pyarrow as pa
import pytest

from detector.images.listing import FILES_SCHEMA
from detector.scoring import ledger
from detector.scoring.rows import PARTS_SCHEMA
from detector.storage import open_store


def files(*rows):
    names, sizes, times = zip(*rows, strict=True)
    return pa.table(
        {"filename": names, "path": [n.encode() for n in names], "bytes": sizes, "modified": pa.array(times, pa.int64())},
        schema=FILES_SCHEMA,
    )


def parts(*rows, run="r1"):
    columns = {name: pa.nulls(len(rows), PARTS_SCHEMA.field(name).type) for name in PARTS_SCHEMA.names}
    columns["filename"] = pa.array([r[0] for r in rows])
    columns["bytes"] = pa.array([r[1] for r in rows], pa.int64())
    columns["modified"] = pa.array([r[2] for r in rows], pa.int64()).cast(PARTS_SCHEMA.field("modified").type)
    columns["error"] = pa.array([r[3] for r in rows], pa.string())
    columns["scored_at"] = pa.array([r[4] for r in rows], pa.int64()).cast(PARTS_SCHEMA.field("scored_at").type)
    columns["run"] = pa.repeat(run, len(rows))
    columns["model"] = pa.repeat("m", len(rows))
    return pa.table(columns, schema=PARTS_SCHEMA)


def test_done_is_same_name_size_and_time_without_a_passing_error():
    listed = files(("./a/1", 10, 100), ("./a/2", 10, 100), ("./a/3", 10, 100), ("./a/4", 10, 100), ("./a/5", 10, 100))
    committed = parts(
        ("./a/1", 10, 100, None, 1), ("./a/2", 11, 100, None, 1), ("./a/3", 10, 101, None, 1),
        ("./a/4", 10, 100, "corrupt", 1), ("./a/5", 10, 100, "timeout", 1),
    )  # fmt: skip
    assert ledger.pending_rows(listed, committed).tolist() == [1, 2, 4]


def test_the_newest_of_several_rows_answers():
    listed = files(("./a/1", 10, 100), ("./a/2", 10, 100))
    committed = parts(
        ("./a/1", 10, 100, None, 5), ("./a/1", 10, 100, "timeout", 9), ("./a/2", 10, 100, None, 7), ("./a/1", 10, 100, None, 2)
    )
    assert ledger.match(listed, committed).tolist() == [1, 2]
    assert ledger.pending_rows(listed, committed).tolist() == [0]


def test_a_file_that_changed_while_being_read_is_answered_by_this_run_only():
    listed, committed = files(("./a/1", 10, 100)), parts(("./a/1", 12, 105, None, 1), run="now")
    assert ledger.match(listed, committed).tolist() == [-1]
    assert ledger.match(listed, committed, run="now").tolist() == [0]


def test_a_missing_file_never_counts_as_done():
    listed = files(("./a/1", None, None))
    assert ledger.pending_rows(listed, parts(("./a/1", None, None, "vanished", 1))).tolist() == [0]


def test_names_that_are_not_listed_are_ignored():
    assert ledger.match(files(("./a/1", 1, 1)), parts(("./b/1", 1, 1, None, 1))).tolist() == [-1]
    assert ledger.match(files(("./a/1", 1, 1)).slice(0, 0), parts(("./a/1", 1, 1, None, 1))).tolist() == []


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_matching_equals_the_plain_loop(seed):
    print("seed", seed)
    rng = np.random.default_rng(seed)
    listed = files(*[(f"./a/{i}", int(rng.integers(2)), int(rng.integers(2))) for i in range(50)])
    rows = [(f"./a/{rng.integers(70)}", int(rng.integers(2)), int(rng.integers(2)), None, int(t)) for t in rng.permutation(300)]
    expected = []
    for name, size, modified in zip(
        *(listed[c].cast(t).to_pylist() for c, t in (("filename", "string"), ("bytes", "int64"), ("modified", "int64"))),
        strict=True,
    ):
        found = [(row[4], i) for i, row in enumerate(rows) if row[:3] == (name, size, modified)]
        expected.append(max(found)[1] if found else -1)
    assert ledger.match(listed, parts(*rows)).tolist() == expected


def test_a_damaged_part_counts_as_absent(tmp_path):
    store = open_store(str(tmp_path / "out"))
    store.write(
        "parts/m/good.parquet",
        lambda sink: __import__("pyarrow.parquet").parquet.write_table(parts(("./a/1", 1, 1, None, 1)), sink),
    )
    store.write("parts/m/torn.parquet", lambda sink: sink.write(b"PAR1 but nothing more"))
    assert ledger.read_parts(store, "m").num_rows == 1
    assert ledger.read_parts(store, "other").num_rows == 0
