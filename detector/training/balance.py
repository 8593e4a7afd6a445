"""What a data folder holds and what was left out of it: lines, numbers, a figure and lists."""

import contextlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from detector.labels import LABEL_NAMES, Label
from detector.storage import Store
from detector.training.dataset import balance_text

BALANCE_FILE = "balance.svg"  # not a picture that an image folder's reader would take for data
_COLOURS = {Label.AI: "#c8553d", Label.REAL: "#3d7ea6"}


@dataclass(frozen=True, kw_only=True)
class Balance:
    """Counts by (split, source, label)."""

    counts: Counter[tuple[str, str, int]]

    def groups(self) -> list[tuple[str, str]]:
        """All (split, source), sorted."""
        return sorted({(split, source) for split, source, _ in self.counts})

    def of(self, split: str, source: str | None = None) -> dict[str, int]:
        """Class name → number of pictures in a split, of one source or of all."""
        counts = {LABEL_NAMES[label]: 0 for label in Label}
        for (one, other, label), count in self.counts.items():
            if one == split and source in {None, other}:
                counts[LABEL_NAMES[Label(label)]] += count
        return counts

    def totals(self) -> dict[str, dict[str, int]]:
        """Split → class name → number of pictures."""
        return {split: self.of(split) for split in sorted({split for split, _ in self.groups()})}


def balance(manifest: pa.Table) -> Balance:
    """Count a manifest's rows."""
    columns = [manifest[name].to_pylist() for name in ("split", "source", "label")]
    return Balance(counts=Counter(zip(*columns, strict=True)))


def report_lines(found: Balance) -> list[str]:
    """One line per split and source, and one per split."""
    lines = []
    for split, total in found.totals().items():
        for name, source in found.groups():
            if name == split:
                lines.append(f"{split}, source {source}: {balance_text(found.of(split, source))}")
        lines.append(f"{split}: {balance_text(total)}")
    return lines


def append_csv(store: Store, name: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Add rows to a CSV of the data folder, each row once; no file is made for no rows."""
    import pandas as pd

    if not rows:
        return
    frame = pd.DataFrame(rows).astype(str)
    if store.exists(name):
        with contextlib.suppress(ValueError):  # an empty or foreign file gives way
            frame = pd.concat([pd.read_csv(io.BytesIO(store.read(name)), dtype=str, keep_default_na=False), frame])
    text = frame.drop_duplicates().to_csv(index=False, lineterminator="\n").encode("utf-8", "backslashreplace")
    store.write(name, lambda file: file.write(text))


def draw_balance(found: Balance, store: Store) -> None:
    """Draw the shares of both classes, one bar per split and source, as ``balance.svg``."""
    from matplotlib.figure import Figure

    groups = found.groups()
    figure = Figure(figsize=(7, 0.7 + 0.42 * len(groups)), layout="constrained")
    axes = figure.subplots()
    names = [f"{split} / {source}".replace("$", r"\$") for split, source in groups]
    left = [0.0] * len(groups)
    for label in Label:
        counts = [found.of(*group)[LABEL_NAMES[label]] for group in groups]
        totals = [max(sum(found.of(*group).values()), 1) for group in groups]
        widths = [100 * count / total for count, total in zip(counts, totals, strict=True)]
        bars = axes.barh(names, widths, left=left, color=_COLOURS[label], label=LABEL_NAMES[label])
        axes.bar_label(
            bars, [f"{count:,}" if count else "" for count in counts], label_type="center", color="white", fontsize=8
        )
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set(xlim=(0, 100), xlabel="% of the pictures")
    axes.invert_yaxis()
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    store.write(BALANCE_FILE, lambda file: figure.savefig(file, format="svg", metadata={"Date": None}))
