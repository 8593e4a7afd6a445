"""What a detector said: ``predictions.parquet`` or ``predictions.csv`` of any run, as one checked table."""

import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd

from detector.errors import UsageError
from detector.evaluation.inputs import Place, find_file, iterate_columns, read_csv, require_columns
from detector.labels import Label, parse_label

FILE_NAMES = ("predictions.parquet", "predictions.csv")
NUMBER_COLUMNS = ("bytes", "width", "height")
TEXT_COLUMNS = ("error", "message", "format", "model")
NOT_STATED = "not stated"


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Predictions, one row per picture.

    ``table`` has ``filename`` (str, unique), ``label`` (int: 0 AI, 1 Real, -1 failed), ``p_ai`` (float64 in [0, 1], NaN
    failed), ``error``, ``message``, ``format``, ``model`` (str, empty where unknown), ``bytes``, ``width``, ``height``
    (float64, NaN where unknown). ``num_contradictions`` counts rows whose label is not the likelier one by ``p_ai``.
    """

    table: pd.DataFrame
    path: str
    sha256: str
    num_contradictions: int

    @property
    def scored(self) -> pd.DataFrame:
        """The rows that have a score."""
        return self.table[self.table["label"] >= 0]

    @property
    def failed(self) -> pd.DataFrame:
        """The rows that have none."""
        return self.table[self.table["label"] < 0]


def read_predictions(path: str) -> Predictions:
    """Read a predictions file, or the one in a folder (the Parquet before the CSV).

    Raises:
        UsageError: nothing there, not readable, columns missing, values that are no predictions.
    """
    found = find_file(path, FILE_NAMES, flag="--predictions", advice="run jobs.score first, or name its --out folder")
    data = found.read()
    if found.path.lower().endswith(".csv"):
        table = _with_failed(_from_csv(data, found.shown), found)
    else:
        table = _from_parquet(data, found.shown)
    _check(table, found.shown)
    scored = table[table["label"] >= 0]
    contradicts = (scored["p_ai"] - 0.5) * (scored["label"] - 0.5) > 1e-6
    return Predictions(
        table=table,
        path=found.shown,
        sha256=hashlib.sha256(data).hexdigest(),
        num_contradictions=int(contradicts.sum()),
    )


def _from_csv(data: bytes, path: str) -> pd.DataFrame:
    columns = dict(iterate_columns(*read_csv(data, path, ("score", "label", "filename"))))
    label = _labels(pd.Series(columns["label"], dtype=object), path)
    try:
        score = np.array(columns["score"], dtype=np.float64)
    except ValueError as error:
        raise UsageError(f"{path}: column score holds something that is no number ({error})") from None
    return _complete(pd.DataFrame({
        "filename": pd.Series(columns["filename"], dtype=object),
        "label": label,
        "p_ai": np.where(label == Label.AI, score, 1 - score),
    }))  # fmt: skip


def _with_failed(table: pd.DataFrame, found: Place) -> pd.DataFrame:
    """Add the rows of the ``errors.csv`` beside a ``predictions.csv``, which itself holds only what was scored."""
    beside = found.parent.child("errors.csv")
    if found.name != "predictions.csv" or not beside.is_file():
        return table
    header, rows = read_csv(beside.read(), beside.shown, ("filename", "error"))
    if not rows:
        return table
    failed = pd.DataFrame(rows, columns=header, dtype=object)
    return pd.concat([table, _complete(failed.assign(label=-1, p_ai=np.nan))], ignore_index=True)


def _from_parquet(data: bytes, path: str) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = {"filename", "label", "score", "p_ai", *TEXT_COLUMNS, *NUMBER_COLUMNS}
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        names = file.schema_arrow.names
        require_columns(names, path, ("filename", "label", "score" if "p_ai" not in names else "p_ai"))
        table = file.read(columns=[name for name in names if name in wanted]).to_pandas()
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from None
    label = _labels(table["label"], path)
    if "p_ai" not in table:
        table["p_ai"] = table["score"].where(label == Label.AI, 1 - table["score"])
    return _complete(table.assign(label=label))


def _labels(values: pd.Series, path: str) -> pd.Series:
    """A label column as 0, 1, or -1 where it is null."""
    try:
        known = {value: int(parse_label(value)) for value in values.dropna().unique()}
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return values.map(known).fillna(-1).astype(np.int64)


def _complete(table: pd.DataFrame) -> pd.DataFrame:
    """Give every column that may be missing its empty value, and all of them their types."""
    for name in TEXT_COLUMNS:
        table[name] = table[name].astype(object).where(table[name].notna(), "").astype(str) if name in table else ""
    for name in NUMBER_COLUMNS:
        table[name] = pd.to_numeric(table[name], errors="coerce").astype(np.float64) if name in table else np.nan
    table["p_ai"] = table["p_ai"].astype(np.float64).where(table["label"] >= 0)
    columns = ["filename", "label", "p_ai", *TEXT_COLUMNS, *NUMBER_COLUMNS]
    return table[columns].reset_index(drop=True)


def _check(table: pd.DataFrame, path: str) -> None:
    if not table["filename"].map(lambda name: isinstance(name, str)).all():
        raise UsageError(f"{path} has a row without a filename, or one that is no text")
    doubled = table.loc[table["filename"].duplicated(), "filename"]
    if len(doubled):
        raise UsageError(f"{path} lists {doubled.iloc[0]!r} more than once: one row per picture is needed")
    wrong = table[(table["label"] >= 0) & ~table["p_ai"].between(0, 1)]
    if len(wrong):
        first = wrong.iloc[0]
        raise UsageError(f"{path}: the probability of {first['filename']!r} is {first['p_ai']}, not between 0 and 1")
