"""Building a data folder, one source at a time: ``DATA/SPLIT/{AI,Real}`` and ``DATA/manifest.parquet``.

Nothing under the data folder is touched before everything has been checked, so a refusal leaves it as it was; the manifest is
written last, so what a killed run left lies there without a row and is taken over by the next.
"""

import contextlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from detector.errors import UsageError
from detector.images.decoding import Decoder
from detector.images.names import display_name, raw_name
from detector.images.pixels import DecodeLimits
from detector.labels import LABEL_NAMES, Label, parse_label
from detector.progress import Progress, log
from detector.storage import Store, open_store
from detector.training.balance import BALANCE_FILE, append_csv, balance, draw_balance, report_lines
from detector.training.candidates import Candidate, Candidates, from_csv, from_dataset, from_folders
from detector.training.dataset import MANIFEST
from detector.training.leakage import SIGNATURES_SCHEMA, find_pairs, signature
from detector.training.placing import choose_name, place
from detector.training.prepare_config import Link, PrepareConfig

MANIFEST_SCHEMA = pa.schema([
    ("filename", pa.string()), ("split", pa.string()), ("label", pa.int8()), ("source", pa.string()), ("sha256", pa.string()),
    ("width", pa.int32()), ("height", pa.int32()), ("format", pa.string()),
])  # fmt: skip
SIGNATURES_FILE, LEFT_OUT_FILE, LEAKS_FILE = ".signatures.parquet", "left_out.csv", "leakage.csv"
TRAIN_SPLIT = "train"


@dataclass(kw_only=True)
class Checked:
    """Candidates that decode, as rows of the manifest without their final names, and what was left out."""

    candidates: list[Candidate] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    signatures: list[bytes] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def prepare(config: PrepareConfig) -> dict[str, Any]:
    """Add one source to a data folder.

    Returns:
        The job's summary: ``added``, counts by reason of what was left out, ``leaks``, and the class balance.

    Raises:
        UsageError: wrong flags or files, nothing to add, or leakage between ``train`` and another split.
    """
    config.check()
    with _staging() as staging:
        found = _find(config, staging)
        manifest, known = read_manifest(config.out), _read_signatures(config.out)
        checked = _check(config, found, manifest)
        leaks = _leaks(config, checked, manifest, known)
        _refuse_leaks(config, leaks)
        if not checked.rows and not len(manifest):
            reasons = ", ".join(f"{count} × {reason}" for reason, count in _counts(checked).items()) or "no pictures"
            raise UsageError(f"nothing to prepare from source {config.source!r}: {reasons}")
        store = open_store(config.out)
        manifest = _commit(config, store, checked, manifest)
    _write_signatures(store, known, checked)
    _report(config, store, checked, leaks, manifest)
    return _summary(checked, leaks, manifest)


def read_manifest(data: str) -> pa.Table:
    """The manifest of a data folder, empty where there is none.

    Raises:
        UsageError: it is damaged or lacks a column.
    """
    path = os.path.join(data, MANIFEST)
    if not os.path.exists(path):
        return MANIFEST_SCHEMA.empty_table()
    try:
        return pq.read_table(path).select(MANIFEST_SCHEMA.names).cast(MANIFEST_SCHEMA)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise UsageError(
            f"{path} cannot be read ({str(error).splitlines()[0]}): restore it, or prepare into a new folder"
        ) from None


@contextlib.contextmanager
def _staging() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="preparing-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _find(config: PrepareConfig, staging: str) -> Candidates:
    if config.dataset is not None:
        return from_dataset(config.dataset, split=config.dataset_split, label_column=config.label_column, staging=staging)
    if config.label is not None:
        return from_folders(config.images, parse_label(config.label))
    return from_csv(config.labels, config.images, filename_column=config.filename_column, label_column=config.label_column)


def _check(config: PrepareConfig, found: Candidates, manifest: pa.Table) -> Checked:
    """Decode every candidate; leave out what does not decode, what is there already, and bytes under both labels."""
    checked = Checked(left_out=list(found.left_out))
    there = {(row["split"], row["sha256"]): row["label"] for row in manifest.select(["split", "sha256", "label"]).to_pylist()}
    with Decoder(DecodeLimits()) as decoder, Progress(total=len(found.found), label="prepare") as progress:
        for candidate, decoded in zip(found.found, decoder.decode(item.path for item in found.found), strict=True):
            progress.advance(1)
            if decoded.error is not None or decoded.pixels is None:
                checked.left_out.append((candidate.shown, f"undecodable ({decoded.error})"))
                continue
            label = there.setdefault((config.split, str(decoded.sha256)), -1)
            if label >= 0:
                same = label == candidate.label
                checked.left_out.append((candidate.shown, "already there" if same else "conflicting labels"))
                continue
            checked.candidates.append(candidate)
            checked.signatures.append(signature(decoded.pixels))
            checked.rows.append({
                "split": config.split, "label": int(candidate.label), "source": config.source, "sha256": decoded.sha256,
                "width": decoded.width, "height": decoded.height, "format": decoded.format,
            })  # fmt: skip
    _drop_repeats(checked)
    return checked


def _drop_repeats(checked: Checked) -> None:
    """Within one run: of equal bytes under one label keep the first, under both labels keep none."""
    labels: dict[str, set[int]] = {}
    for row in checked.rows:
        labels.setdefault(row["sha256"], set()).add(row["label"])
    seen: set[str] = set()
    keep = []
    for index, row in enumerate(checked.rows):
        if len(labels[row["sha256"]]) > 1:
            checked.left_out.append((checked.candidates[index].shown, "conflicting labels"))
        elif row["sha256"] in seen:
            checked.left_out.append((checked.candidates[index].shown, "duplicate"))
        else:
            seen.add(row["sha256"])
            keep.append(index)
    checked.candidates = [checked.candidates[i] for i in keep]
    checked.signatures = [checked.signatures[i] for i in keep]
    checked.rows = [checked.rows[i] for i in keep]


@dataclass(frozen=True, kw_only=True)
class Leak:
    """One new picture that is, or nearly is, in another split too."""

    new: str
    split: str
    other: str
    other_split: str
    same_bytes: bool


def _leaks(config: PrepareConfig, checked: Checked, manifest: pa.Table, known: dict[str, bytes]) -> list[Leak]:
    """Compare the new pictures with those of every other split."""
    others = [row for row in manifest.to_pylist() if row["split"] != config.split]
    signatures = [known.get(row["sha256"]) or _signature_of(config.out, row["filename"]) for row in others]
    readable = [index for index, value in enumerate(signatures) if value is not None]
    first = pa.table([[row["sha256"] for row in checked.rows], checked.signatures], schema=SIGNATURES_SCHEMA)
    second = pa.table([[others[i]["sha256"] for i in readable], [signatures[i] for i in readable]], schema=SIGNATURES_SCHEMA)
    known.update({others[i]["sha256"]: signatures[i] for i in readable})
    return [
        Leak(new=checked.candidates[pair.first].shown, split=config.split, other=others[readable[pair.second]]["filename"],
             other_split=others[readable[pair.second]]["split"], same_bytes=pair.same_bytes)
        for pair in find_pairs(first, second)
    ]  # fmt: skip


def _signature_of(data: str, filename: str) -> bytes | None:
    """The signature of a picture that is there already, where it was not kept."""
    with Decoder(DecodeLimits()) as decoder:
        for decoded in decoder.decode([os.path.join(os.fsencode(os.path.abspath(data)), raw_name(filename))]):
            return None if decoded.pixels is None else signature(decoded.pixels)
    return None


def _refuse_leaks(config: PrepareConfig, leaks: list[Leak]) -> None:
    serious = [leak for leak in leaks if TRAIN_SPLIT in {leak.split, leak.other_split}]
    for leak in leaks[:10]:
        log(f"leakage: {leak.new} (split {leak.split}) {'is' if leak.same_bytes else 'is nearly'} {leak.other}")
    if serious and not config.allow_leakage:
        same = sum(leak.same_bytes for leak in serious)
        first = serious[0]
        raise UsageError(
            f"leakage: {len({leak.new for leak in serious})} new pictures are in {TRAIN_SPLIT!r} and in another split "
            f"({same} the same, {len(serious) - same} nearly the same), first {first.new} and {first.other}: "
            "take them out, or accept them with --allow-leakage"
        )


def _commit(config: PrepareConfig, store: Store, checked: Checked, manifest: pa.Table) -> pa.Table:
    """Put the pictures into place and the rows into the manifest."""
    root = os.fsencode(store.root)
    taken = {os.path.join(root, raw_name(name)) for name in manifest["filename"].to_pylist()}
    for label in Label:
        os.makedirs(os.path.join(store.root, config.split, LABEL_NAMES[label]), exist_ok=True)
    rows = []
    for candidate, row in zip(checked.candidates, checked.rows, strict=True):
        folder = os.path.join(root, os.fsencode(config.split), LABEL_NAMES[candidate.label].encode())
        name = choose_name(folder, candidate.name, source=config.source, sha256=row["sha256"], taken=taken)
        place(candidate.path, os.path.join(folder, name), _link_kind(config))
        rows.append({"filename": display_name(os.path.relpath(os.path.join(folder, name), root)), **row})
    table = pa.concat_tables([manifest, pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)])
    names = [name.encode() for name in table["filename"].to_pylist()]
    table = table.take(pa.array(sorted(range(len(names)), key=names.__getitem__), pa.int64()))
    _write_table(store, MANIFEST, table)
    return table


def _link_kind(config: PrepareConfig) -> Link:
    """A data set's staged files go away after the run: they cannot be links to them."""
    return "copy" if config.dataset is not None and config.link == "symbolic" else config.link


def _write_table(store: Store, name: str, table: pa.Table) -> None:
    store.write(name, lambda file: pq.write_table(table, file))


def _read_signatures(data: str) -> dict[str, bytes]:
    try:
        table = pq.read_table(os.path.join(data, SIGNATURES_FILE)).cast(SIGNATURES_SCHEMA)
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return {}  # they can be made again
    return dict(zip(table["sha256"].to_pylist(), table["signature"].to_pylist(), strict=True))


def _write_signatures(store: Store, known: dict[str, bytes], checked: Checked) -> None:
    known.update(zip((row["sha256"] for row in checked.rows), checked.signatures, strict=True))
    _write_table(store, SIGNATURES_FILE, pa.table([list(known), list(known.values())], schema=SIGNATURES_SCHEMA))


def _counts(checked: Checked) -> dict[str, int]:
    return dict(sorted(Counter(reason.split(" (")[0] for _, reason in checked.left_out).items()))


def _report(config: PrepareConfig, store: Store, checked: Checked, leaks: list[Leak], manifest: pa.Table) -> None:
    """Print and draw the balance; list what was left out and what leaks."""
    for reason, count in _counts(checked).items():
        log(f"left out: {count:,} × {reason} ({LEFT_OUT_FILE})")
    for line in report_lines(balance(manifest)):
        log(line)
    draw_balance(balance(manifest), store)
    whole = {"split": config.split, "source": config.source}
    append_csv(store, LEFT_OUT_FILE, [{**whole, "filename": name, "reason": reason} for name, reason in checked.left_out])
    append_csv(store, LEAKS_FILE, [vars(leak) for leak in leaks])


def _summary(checked: Checked, leaks: list[Leak], manifest: pa.Table) -> dict[str, Any]:
    return {
        "added": len(checked.rows), "left_out": _counts(checked), "leaks": len({leak.new for leak in leaks}),
        "leaks_same_bytes": sum(leak.same_bytes for leak in leaks), "images": len(manifest),
        "balance": balance(manifest).totals(),
        "figure": BALANCE_FILE,
    }  # fmt: skip
