"""What a finished training leaves behind: the checkpoint, its model card, the history, the curves, the run record."""

import csv
import io
import json
import math
import os
import shutil
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, BinaryIO

from detector import runs
from detector.progress import log
from detector.storage import Store
from detector.training.card import model_card
from detector.training.dataset import class_counts
from detector.training.plan import RUN_FILE, Plan, write_json

if TYPE_CHECKING:
    import ray.train

HISTORY_FILE, CURVES_FILE, CARD_FILE, DROPPED_FILE = "history.csv", "learning_curves.png", "README.md", "dropped.csv"
HISTORY_COLUMNS = (
    "epoch", "step", "attempt", "train_loss", "validation_loss", "accuracy", "f1", "precision", "recall", "balanced_accuracy",
    "roc_auc", "predicted_ai", "collapsed", "learning_rate", "train_seconds", "train_cpu_seconds", "images_per_second",
    "selection", "best",
)  # fmt: skip
# Of the Trainer's folder, what belongs to a checkpoint that is handed on; optimizer and generators stay behind.
_MODEL_FILES = ("config.json", "preprocessor_config.json")
_WEIGHTS = (".safetensors", ".safetensors.index.json")


def export(plan: Plan, result: "ray.train.Result", *, precision: str, workers: int, started: datetime) -> dict[str, Any]:
    """Write the best evaluation's checkpoint and everything about the run to the output folder; ``run.json`` last.

    Returns:
        The job's summary.
    """
    store = plan.store
    store.remove(RUN_FILE)
    history = _history(result)
    best = max(history, key=lambda row: row["selection"])
    _copy_checkpoint(result, best, store)
    summary = _summary(plan, history, best, precision=precision, workers=workers)
    _write_text(store, HISTORY_FILE, history_csv(history, best))
    _write_text(store, CARD_FILE, model_card(plan, summary, best))
    store.write(CURVES_FILE, lambda file: draw_curves(history, best, file))
    if plan.dropped:
        _write_text(store, DROPPED_FILE, _csv(("filename", "reason"), plan.dropped))
    elif store.exists(DROPPED_FILE):
        store.remove(DROPPED_FILE)
    record = runs.run_record(
        job="train", run=plan.run, status="complete", started=started, summary=summary, identity=plan.identity, history=history
    )
    write_json(store, RUN_FILE, _plain(record))
    if summary["collapsed"]:
        log(
            "train: COLLAPSED: the saved model gives the same answer for every picture; "
            "try a lower --learning-rate, more data or --class-balance"
        )
    return summary


def history_csv(history: Sequence[dict[str, Any]], best: dict[str, Any]) -> str:
    """One row per evaluation, in order; an undefined value is empty; ``best`` marks the one that was saved."""
    rows = [[_cell({**row, "best": row["step"] == best["step"]}[name]) for name in HISTORY_COLUMNS] for row in history]
    return _csv(HISTORY_COLUMNS, rows)


def draw_curves(history: Sequence[dict[str, Any]], best: dict[str, Any], file: BinaryIO) -> None:
    """Draw loss and quality over the epochs as a PNG, the saved evaluation marked."""
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, quality = figure.subplots(1, 2)
    for name in ("train_loss", "validation_loss"):
        losses.plot(epochs, [row[name] for row in history], marker="o", markersize=3, label=name.replace("_", " "))
    for name, label in (("accuracy", "accuracy"), ("f1", "F1 of AI")):
        quality.plot(epochs, [row[name] for row in history], marker="o", markersize=3, label=label)
    quality.set_ylim(0, 1.02)
    for axes, title in ((losses, "cross entropy"), (quality, "on the validation pictures")):
        axes.axvline(best["epoch"], color="0.7", linewidth=1, linestyle="--", label="saved")
        axes.set(xlabel="epoch", title=title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False)
    figure.savefig(file, format="png", dpi=120)


def _history(result: "ray.train.Result") -> list[dict[str, Any]]:
    """All evaluations of the run, restarts included, from the latest checkpoint."""
    assert result.checkpoint is not None, "every epoch ends with a reported checkpoint"
    with result.checkpoint.as_directory() as folder, open(os.path.join(folder, "history.json"), encoding="utf-8") as file:
        rows: list[dict[str, Any]] = json.load(file)
        return rows


def _copy_checkpoint(result: "ray.train.Result", best: dict[str, Any], store: Store) -> None:
    found = [checkpoint for checkpoint, metrics in result.best_checkpoints or [] if metrics["step"] == best["step"]]
    assert found, "Ray Train keeps the checkpoint of the best selection score"
    with found[0].as_directory() as folder:
        trained = os.path.join(folder, "trainer")
        for name in sorted(os.listdir(trained)):
            if name in _MODEL_FILES or name.endswith(_WEIGHTS):
                _copy(os.path.join(trained, name), store, name)


def _copy(path: str, store: Store, name: str) -> None:
    with open(path, "rb") as source:
        store.write(name, lambda file: shutil.copyfileobj(source, file, 8 << 20))


def _summary(
    plan: Plan, history: Sequence[dict[str, Any]], best: dict[str, Any], *, precision: str, workers: int
) -> dict[str, Any]:
    seconds = sum(row["train_seconds"] for row in history)
    seen = len(plan.holdout.train) * len(history)
    return _plain({
        "best_metric": best[plan.config.metric], "metric": plan.config.metric, "best_epoch": best["epoch"],
        "epochs": len(history), "images_per_second": round(seen / max(seconds, 1e-9), 2),
        "accuracy": best["accuracy"], "f1": best["f1"], "collapsed": best["collapsed"],
        "train_images": len(plan.holdout.train), "validation_images": len(plan.holdout.validation),
        "dropped": len(plan.dropped), "classes": class_counts(plan.holdout.train),
        "parameters": best.get("parameters"), "workers": workers, "precision": precision,
        "attempts": history[-1]["attempt"],
    })  # fmt: skip


def _plain(value: Any) -> Any:
    """The value with None for every number that is not finite: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return format(value, ".9g") if math.isfinite(value) else ""
    return str(value)


def _csv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _write_text(store: Store, name: str, text: str) -> None:
    store.write(name, lambda file: file.write(text.encode("utf-8", "backslashreplace")))
