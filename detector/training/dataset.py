"""A prepared data folder as a table of labelled pictures, and the part of it that is held out for validation.

Works on a bare ``SPLIT/{AI,Real}`` tree too; the manifest adds each picture's source. Knows neither torch nor Ray.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from detector.errors import UsageError
from detector.images.names import display_name
from detector.labels import LABEL_NAMES, Label
from detector.progress import log
from detector.storage import is_uri

MANIFEST = "manifest.parquet"
SAMPLES_SCHEMA = pa.schema([("filename", pa.string()), ("path", pa.binary()), ("label", pa.int8()), ("source", pa.string())])


@dataclass(frozen=True, kw_only=True)
class Holdout:
    """One split, divided. Both tables have :data:`SAMPLES_SCHEMA`, sorted by filename."""

    train: pa.Table
    validation: pa.Table


def read_split(data: str, split: str) -> pa.Table:
    """List ``DATA/SPLIT/{AI,Real}`` as a table of :data:`SAMPLES_SCHEMA`, sorted by filename (``SPLIT/CLASS/name``).

    Raises:
        UsageError: no such folder or split, or a class without pictures.
    """
    if is_uri(data):
        raise UsageError(f"--data {data}: training reads a mounted folder; copy the data there or mount the bucket")
    root = os.path.abspath(data)
    if not os.path.isdir(root):
        raise UsageError(f"--data {data}: there is no such folder; jobs.prepare makes one")
    folder = os.path.join(root, split)
    if not os.path.isdir(folder):
        raise UsageError(f"{data} has no split {split!r}: it has {', '.join(_splits(root)) or 'none'}")
    rows = [(name, path, int(label)) for label in Label for name, path in _pictures(root, split, label)]
    counts = {LABEL_NAMES[label]: sum(row[2] == label for row in rows) for label in Label}
    for name, count in counts.items():
        if not count:
            raise UsageError(f"{folder}/{name} has no pictures: both classes, AI and Real, are needed")
    rows.sort(key=lambda row: row[0].encode())
    names = [row[0] for row in rows]
    sources = _sources(root)
    return pa.table(
        [names, [row[1] for row in rows], [row[2] for row in rows], [sources.get(name, split) for name in names]],
        schema=SAMPLES_SCHEMA,
    )


def in_manifest(data: str, samples: pa.Table) -> np.ndarray:
    """Which samples stand in the folder's manifest, and so are known to decode: bool [N]."""
    known = _sources(os.path.abspath(data))
    return np.array([name in known for name in samples["filename"].to_pylist()], dtype=bool)


def hold_out(samples: pa.Table, *, fraction: float, seed: int) -> Holdout:
    """Draw ``fraction`` of every class for validation, its sources in proportion. The same seed draws the same pictures.

    Raises:
        UsageError: a class has fewer than two pictures.
    """
    labels = samples["label"].to_numpy()
    chosen = np.zeros(len(samples), dtype=bool)
    for label in Label:
        of_class = np.flatnonzero(labels == label)
        if len(of_class) < 2:
            raise UsageError(
                f"class {LABEL_NAMES[label]} has {len(of_class)} readable picture(s): "
                "at least two are needed, one to train on and one to validate with"
            )
        count = min(max(1, round(fraction * len(of_class))), len(of_class) - 1)
        rng = np.random.default_rng([seed, int(label)])
        sources = samples["source"].take(pa.array(of_class)).to_numpy(zero_copy_only=False)
        for members, size in _shares(of_class, sources, count):
            chosen[rng.permutation(members)[:size]] = True
    return Holdout(train=samples.filter(pa.array(~chosen)), validation=samples.filter(pa.array(chosen)))


def class_counts(samples: pa.Table) -> dict[str, int]:
    """Number of pictures of each class, by its name."""
    labels = samples["label"].to_numpy()
    return {LABEL_NAMES[label]: int((labels == label).sum()) for label in Label}


def balance_lines(samples: pa.Table) -> list[str]:
    """One line per source and one for all: how many pictures of each class."""
    sources = sorted(set(samples["source"].to_pylist()))
    counts = [class_counts(samples.filter(pc.equal(samples["source"], source))) for source in sources]
    lines = [f"source {source}: {balance_text(count)}" for source, count in zip(sources, counts, strict=True)]
    return [*lines, f"all: {balance_text(class_counts(samples))}"]


def balance_text(counts: dict[str, int]) -> str:
    """``AI 700 (10.4 %), Real 6,000 (89.6 %)``"""
    total = max(sum(counts.values()), 1)
    return ", ".join(f"{name} {count:,} ({100 * count / total:.1f} %)" for name, count in counts.items())


def _shares(members: np.ndarray, sources: np.ndarray, count: int) -> Iterator[tuple[np.ndarray, int]]:
    """Divide ``count`` over the sources in proportion to their sizes, by the largest remainders."""
    names, sizes = np.unique(sources, return_counts=True)
    exact = count * sizes / len(members)
    shares = np.floor(exact).astype(int)
    by_remainder = np.argsort(-(exact - shares), kind="stable")
    shares[by_remainder[: count - shares.sum()]] += 1
    for name, share in zip(names, shares, strict=True):
        yield members[sources == name], int(share)


def _splits(root: str) -> list[str]:
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))


def _pictures(root: str, split: str, label: Label) -> Iterator[tuple[str, bytes]]:
    """Every file of one class as (display name relative to the data folder, absolute path), hidden ones left out."""
    top = os.fsencode(os.path.join(root, split, LABEL_NAMES[label]))
    for folder, folders, files in os.walk(top):
        folders[:] = [name for name in folders if not name.startswith(b".")]
        for file in files:
            path = os.path.join(folder, file)
            if not file.startswith(b".") and os.path.isfile(path):
                yield display_name(os.path.relpath(path, os.fsencode(root))), path


def _sources(root: str) -> dict[str, str]:
    """Source by filename, from the manifest; nothing where there is none."""
    path = os.path.join(root, MANIFEST)
    if not os.path.exists(path):
        return {}
    try:
        table = pq.read_table(path, columns=["filename", "source"])
    except (OSError, pa.ArrowException) as error:
        log(f"{path} is left aside: {str(error).splitlines()[0]}")
        return {}
    return dict(zip(table["filename"].to_pylist(), table["source"].to_pylist(), strict=True))
