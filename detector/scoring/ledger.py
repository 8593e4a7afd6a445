"""Committed parts → what is done, what is pending. There is no other resume state.

A file is done for a model when a part holds a row of the same name, size and modification time that is a score or an error
that cannot pass.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from detector.progress import log
from detector.scoring.rows import PARTS_SCHEMA, PASSING_ERRORS, one_chunk
from detector.storage import Store

LEDGER_COLUMNS = ("filename", "bytes", "modified", "error", "run", "scored_at")


def read_parts(store: Store, fingerprint: str, *, columns: tuple[str, ...] | None = None) -> pa.Table:
    """All rows that were committed for a model, in no meaningful order; a part that cannot be read counts as absent."""
    schema = PARTS_SCHEMA if columns is None else pa.schema([PARTS_SCHEMA.field(name) for name in columns])
    tables = [schema.empty_table()]
    folder = f"parts/{fingerprint}"
    for name in store.names(folder):
        if not name.endswith(".parquet"):
            continue
        try:
            with store.open(f"{folder}/{name}") as file:
                tables.append(pq.read_table(file, columns=schema.names).cast(schema))
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            log(f"{folder}/{name} cannot be read and counts as absent; its pictures are scored again ({error})")
    return pa.concat_tables(tables)


def match(files: pa.Table, parts: pa.Table, *, run: str = "") -> np.ndarray:
    """For every listed file the newest row in ``parts`` that answers it, or −1.

    A row answers a file when name, size and modification time are equal; or when it was made by ``run``, since a file that
    changed between being listed and being read has been scored as it was read.

    Returns:
        int64 [number of files]: indices into ``parts``.
    """
    answer = np.full(files.num_rows, -1, dtype=np.int64)
    if not parts.num_rows or not files.num_rows:
        return answer
    listed = pc.index_in(parts["filename"], value_set=one_chunk(files["filename"]))
    rows = np.flatnonzero(listed.is_valid().to_numpy())
    target = listed.drop_null().to_numpy().astype(np.int64)
    same = np.ones(len(rows), dtype=bool)
    for name in ("bytes", "modified"):
        of_file = files[name].cast(pa.int64()).fill_null(-1).to_numpy()[target]
        same &= parts[name].cast(pa.int64()).fill_null(-1).to_numpy()[rows] == of_file
    if run:
        same |= pc.equal(parts["run"], run).to_numpy()[rows]
    rows, target = rows[same], target[same]
    newest_last = np.lexsort((parts["scored_at"].cast(pa.int64()).to_numpy()[rows], target))
    answer[target[newest_last]] = rows[newest_last]  # the last write to an index wins: the newest row
    return answer


def pending_rows(files: pa.Table, parts: pa.Table) -> np.ndarray:
    """Indices of the listed files that have to be scored: never done, changed, or failed with an error that may pass."""
    answer = match(files, parts)
    passing = pc.is_in(parts["error"], value_set=pa.array(PASSING_ERRORS)).to_numpy()
    done = answer >= 0
    done[done] = ~passing[answer[done]]
    return np.flatnonzero(~done)
