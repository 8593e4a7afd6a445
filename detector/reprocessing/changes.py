"""What became different between two published predictions.parquet: one row for each filename that did.

The first kind that fits a filename is its kind:

===========  ==================================================================================================
removed      published before, not listed any more
new          not published before; its label is empty if it failed
changed      other bytes, whatever else is different too (the model, a failure before or now)
failed       the same bytes had a score before and have none now
recovered    the same bytes failed before and have a score now
flipped      another model gives the same bytes another label
rescored     another model gives the same bytes the same label
===========  ==================================================================================================

A picture that failed before and fails again, and one that was only touched or scored again by the same model, is no
change. "Model" is the fingerprint: another precision, batch size or device kind is another model.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from detector.progress import log
from detector.scoring.publish import quoted, write_csv
from detector.scoring.rows import one_chunk
from detector.storage import Store

CHANGES = "changes.csv"
KINDS = ("new", "changed", "removed", "failed", "recovered", "flipped", "rescored")

STATE_SCHEMA = pa.schema([
    pa.field("filename", pa.string()),
    pa.field("label", pa.int8()),
    pa.field("score", pa.float32()),
    pa.field("sha256", pa.string()),
    pa.field("bytes", pa.int64()),
    pa.field("model", pa.string()),
])  # fmt: skip
CHANGES_SCHEMA = pa.schema([
    pa.field("filename", pa.string()),
    pa.field("change", pa.string()),
    pa.field("old_label", pa.int8()),
    pa.field("new_label", pa.int8()),
    pa.field("old_score", pa.float32()),
    pa.field("new_score", pa.float32()),
    pa.field("old_model", pa.string()),
    pa.field("new_model", pa.string()),
])  # fmt: skip
_ROWS_AT_ONCE = 65_536


def read_state(store: Store, name: str) -> pa.Table:
    """The columns of a published file that a comparison needs (STATE_SCHEMA); no rows if there is no such file.

    A file that cannot be read counts as absent, with a log line: the run publishes a good one from the committed parts.
    """
    if not store.exists(name):
        return STATE_SCHEMA.empty_table()
    try:
        with store.open(name) as file:
            return pq.read_table(file, columns=STATE_SCHEMA.names).select(STATE_SCHEMA.names).cast(STATE_SCHEMA)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        log(f"{name} cannot be read, so every picture counts as new ({error})")
        return STATE_SCHEMA.empty_table()


def compare(old: pa.Table, new: pa.Table) -> pa.Table:
    """All changes from ``old`` to ``new``, sorted by the UTF-8 bytes of the filename.

    Args:
        old: STATE_SCHEMA, filenames unique; what was published before.
        new: likewise; what is published now.

    Returns:
        CHANGES_SCHEMA, at most one row for each filename.
    """
    where = pc.index_in(one_chunk(old["filename"]), value_set=one_chunk(new["filename"]))
    came = pc.is_null(pc.index_in(one_chunk(new["filename"]), value_set=one_chunk(old["filename"])))
    both_old, both_new = old.filter(pc.is_valid(where)), new.take(where.drop_null())
    kinds = _kinds(both_old, both_new)
    different = pa.array(kinds != "")
    tables = [
        _changes("removed", old.filter(pc.is_null(where)), None),
        _changes("new", None, new.filter(came)),
        _changes(pa.array(kinds, pa.string()).filter(different), both_old.filter(different), both_new.filter(different)),
    ]
    return pa.concat_tables(tables).sort_by("filename")


def _kinds(old: pa.Table, new: pa.Table) -> np.ndarray:
    """The kind of change of each pair of rows, '' for none; object [number of rows]."""
    had, has = old["label"].is_valid().to_numpy(), new["label"].is_valid().to_numpy()
    judged_again = had & has & pc.not_equal(old["model"], new["model"]).to_numpy()
    same_label = pc.equal(old["label"], new["label"]).fill_null(False).to_numpy()
    conditions = [_other_bytes(old, new), had & ~has, ~had & has, judged_again & ~same_label, judged_again]
    return np.select(conditions, ["changed", "failed", "recovered", "flipped", "rescored"], default="").astype(object)


def _other_bytes(old: pa.Table, new: pa.Table) -> np.ndarray:
    """By SHA-256; by size where one side has none, since a file that could not be read has no hash."""
    by_hash = pc.not_equal(old["sha256"], new["sha256"])
    by_size = pc.not_equal(old["bytes"], new["bytes"])
    return pc.fill_null(pc.coalesce(by_hash, by_size), False).to_numpy()


def _changes(kind: str | pa.Array, old: pa.Table | None, new: pa.Table | None) -> pa.Table:
    rows = old if old is not None else new
    assert rows is not None
    count = rows.num_rows
    columns = {"filename": rows["filename"], "change": pa.repeat(kind, count) if isinstance(kind, str) else kind}
    for name in ("label", "score", "model"):
        for side, table in (("old", old), ("new", new)):
            missing = pa.nulls(count, STATE_SCHEMA.field(name).type)
            columns[f"{side}_{name}"] = missing if table is None else table[name]
    return pa.table({name: columns[name] for name in CHANGES_SCHEMA.names}).cast(CHANGES_SCHEMA)


def count_changes(changes: pa.Table) -> dict[str, int]:
    """How many rows of each kind; every kind is there, most of them 0."""
    found = {entry["values"]: entry["counts"] for entry in pc.value_counts(changes["change"]).to_pylist()}
    return {kind: found.get(kind, 0) for kind in KINDS}


def write_changes(store: Store, changes: pa.Table) -> None:
    """Replace changes.csv, atomically: RFC 4180, empty fields for what there is not, scores with 6 decimals.

    Raises:
        OSError: the output cannot be written.
    """
    write_csv(store, CHANGES, ",".join(CHANGES_SCHEMA.names), _lines(changes))


def _lines(changes: pa.Table) -> Iterator[list[str]]:
    for batch in changes.to_batches(max_chunksize=_ROWS_AT_ONCE):
        columns = [_fields(column, name) for column, name in zip(batch.columns, CHANGES_SCHEMA.names, strict=True)]
        yield [",".join(fields) + "\n" for fields in zip(*columns, strict=True)]


def _fields(column: pa.Array, name: str) -> list[str]:
    values = column.to_pylist()
    if name == "filename":
        return [quoted(value) for value in values]
    if pa.types.is_floating(column.type):
        return ["" if value is None else f"{value:.6f}" for value in values]
    return ["" if value is None else str(value) for value in values]
