"""What the pictures really are, and which prediction belongs to which of them.

Truth is a CSV (``filename,label``, and ``source`` and ``generator`` where known) or a split folder ``DATA/SPLIT`` with
the pictures under ``AI/`` and ``Real/``; ``DATA/manifest.parquet``, where there is one, adds the sources.
"""

import hashlib
import os
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from detector.errors import UsageError
from detector.evaluation.inputs import Place, read_csv
from detector.labels import LABEL_NAMES, parse_label, side_of

TEXT_COLUMNS = ("source", "generator", "format")
NUMBER_COLUMNS = ("width", "height")


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Truth, one row per picture.

    ``table`` has ``filename`` (str), ``label`` (int: 0 AI, 1 Real), ``source``, ``generator``, ``format`` (str, empty
    where unknown), ``width``, ``height`` (float64, NaN where unknown). ``sha256`` is that of the CSV or manifest.
    """

    table: pd.DataFrame
    path: str
    sha256: str | None
    is_split: bool


def read_truth(path: str) -> Truth:
    """Read a truth CSV or a data split folder.

    Raises:
        UsageError: nothing there, columns missing, a label that is none, a folder without AI and Real.
    """
    place = Place.of(path)
    if place.is_file():
        return _read_truth_csv(place)
    if not place.is_folder():
        raise UsageError(f"--truth {place.shown}: no such file or folder; name a CSV (filename,label) or a DATA/SPLIT folder")
    return _read_split(path, place)


def _read_truth_csv(place: Place) -> Truth:
    if not place.path.lower().endswith(".csv"):
        raise UsageError(f"--truth {place.shown}: a .csv file (filename,label) or a folder with AI/ and Real/ is needed")
    data = place.read()
    header, rows = read_csv(data, f"--truth {place.shown}", ("filename", "label"))
    table = pd.DataFrame(rows, columns=header, dtype=object)
    known = {}
    for value in table["label"].unique():
        try:
            known[value] = int(parse_label(value))
        except UsageError as error:
            record = int(np.flatnonzero((table["label"] == value).to_numpy())[0]) + 2
            raise UsageError(f"--truth {place.shown}, record {record}: {error}") from None
    table["label"] = table["label"].map(known).astype(np.int64)
    return Truth(table=_complete(table), path=place.shown, sha256=hashlib.sha256(data).hexdigest(), is_split=False)


def _complete(table: pd.DataFrame) -> pd.DataFrame:
    for name in TEXT_COLUMNS:
        text = table[name].astype(object).where(table[name].notna(), "") if name in table else ""
        table[name] = text.astype(str).str.strip() if isinstance(text, pd.Series) else text
    for name in NUMBER_COLUMNS:
        table[name] = pd.to_numeric(table[name], errors="coerce").astype(np.float64) if name in table else np.nan
    return table[["filename", "label", *TEXT_COLUMNS, *NUMBER_COLUMNS]].reset_index(drop=True)


def _read_split(path: str, place: Place) -> Truth:
    from detector.images.listing import list_images

    rows = []
    for name in list_images([path]).files["filename"].to_pylist():
        parts = name.removeprefix("./").split("/")  # split, class folder, …, file
        side = side_of(parts[1]) if len(parts) > 2 else None
        if side is not None:
            rows.append((name, int(side), "/".join(parts[1:])))
    if not rows:
        raise UsageError(
            f"--truth {place.shown}: no pictures under AI/ or Real/ in this folder (links are not followed); "
            "name a DATA/SPLIT folder as jobs.prepare makes it, or a CSV (filename,label)"
        )
    table = pd.DataFrame(rows, columns=["filename", "label", "inside"])
    manifest, digest = _read_manifest(place.parent.child("manifest.parquet"))
    table = pd.concat([table, pd.DataFrame(_manifest_rows(table, manifest, place.name), index=table.index)], axis=1)
    if "source" not in table:
        table["source"] = place.name
    return Truth(table=_complete(table), path=place.shown, sha256=digest, is_split=True)


def _read_manifest(place: Place) -> tuple[list[dict[str, Any]], str | None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not place.is_file():
        return [], None
    data = place.read()
    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{place.shown} is not a readable Parquet file: {str(error).splitlines()[0]}") from None
    wanted = [name for name in ("filename", "split", *TEXT_COLUMNS, *NUMBER_COLUMNS) if name in table.column_names]
    return table.select(wanted).to_pylist(), hashlib.sha256(data).hexdigest()


def _manifest_rows(table: pd.DataFrame, manifest: list[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    """The manifest's row of each picture ({} where it has none), whether it names files from DATA or from the split."""
    if not manifest:
        return [{} for _ in range(len(table))]
    index = {}
    for row in manifest:
        if row.pop("split", split) == split:
            index[str(row.pop("filename", "")).removeprefix("./")] = row
    keys = zip(table["filename"].str.removeprefix("./"), table["inside"], table["inside"].map(os.path.basename), strict=True)
    return [next((index[key] for key in options if key in index), {}) for options in keys]


def match(predictions: pd.DataFrame, truth: Truth) -> tuple[NDArray[np.int64], int]:
    """For each row of ``predictions`` its row of ``truth.table`` or -1, int [N]; and how many truth rows fit none.

    Two names match when they are equal, or equal once ``./<folder>/`` is taken off one of them; for a split folder,
    whose own name is a matter of where it lies, also when it is taken off both.

    Raises:
        UsageError: a truth name fits two predictions, or two truth rows contradict each other.
    """
    index = _PredictionNames(predictions["filename"].tolist())
    labels = truth.table["label"].to_numpy()
    chosen = np.full(len(predictions), -1, dtype=np.int64)
    num_unmatched = 0
    for row, name in enumerate(truth.table["filename"]):
        position = index.find(str(name), is_split=truth.is_split)
        if position is None:
            num_unmatched += 1
            continue
        earlier = chosen[position]
        if earlier >= 0 and labels[earlier] != labels[row]:
            raise UsageError(
                f"--truth {truth.path} says both {LABEL_NAMES[labels[earlier]]} and {LABEL_NAMES[labels[row]]} "
                f"of {index.names[position]!r}: keep one of the two rows"
            )
        if earlier < 0:
            chosen[position] = row
    return chosen, num_unmatched


def _without_folder(name: str) -> str | None:
    """The name after its leading ``./<folder>/``, or None where it has no such beginning."""
    return name.split("/", 2)[2] if name.startswith("./") and name.count("/") >= 2 else None


class _PredictionNames:
    def __init__(self, names: list[str]) -> None:
        self.names = names
        self._full = {name.removeprefix("./"): row for row, name in enumerate(names)}
        self._inside: dict[str, list[int]] = defaultdict(list)
        for row, name in enumerate(names):
            inside = _without_folder(name)
            if inside is not None:
                self._inside[inside].append(row)

    def find(self, name: str, *, is_split: bool) -> int | None:
        """The one prediction that a truth name fits, or None."""
        plain = name.removeprefix("./")
        exact = self._full.get(plain)
        if exact is not None and self.names[exact] == name:
            return exact
        fits = {exact} if exact is not None else set()
        fits.update(self._inside.get(plain, ()))
        inside = _without_folder(name)
        if inside is not None:
            bare = self._full.get(inside)
            if bare is not None and (is_split or not self.names[bare].startswith("./")):
                fits.add(bare)
            if is_split and not fits:
                fits.update(self._inside.get(inside, ()))
        return self._only(name, fits)

    def _only(self, name: str, fits: set[int]) -> int | None:
        if len(fits) > 1:
            first, second = sorted(self.names[row] for row in fits)[:2]
            raise UsageError(
                f"the truth's {name!r} fits more than one prediction ({first!r}, {second!r}): "
                "write the names in the truth as they stand in the predictions"
            )
        return fits.pop() if fits else None
