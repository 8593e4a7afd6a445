"""``report.html``: one page for a person, with everything inside it; and the other files of an evaluation.

Every value goes through Jinja's autoescape; file names are strangers' text and also have their control characters and
direction marks made visible. Only the figures, which hold numbers and our own words, are inserted as markup.
"""

import json
import os
from collections.abc import Mapping
from typing import Any, BinaryIO

import pandas as pd

from detector import runs
from detector.evaluation import figures
from detector.evaluation.caveats import caveats_of
from detector.evaluation.judge import Judgement
from detector.evaluation.predictions import Predictions
from detector.evaluation.truth import Truth
from detector.labels import Label
from detector.metrics import num_score_resamples
from detector.storage import Store

MAX_LISTED = 20
MAX_GROUPS = 40
PACKAGES = ("numpy", "pandas", "pyarrow", "scikit-learn", "matplotlib")
FIGURE_NAMES = ("confusion", "scores", "roc", "precision_recall", "calibration")
# Metric, what it is called on the page, what it says.
METRIC_ROWS = (
    ("f1", "F1 of AI", "precision and recall of AI in one figure"),
    ("precision", "Precision", "of the pictures called AI, the share that is AI"),
    ("recall", "Recall", "of the AI pictures, the share that was found"),
    ("tnr", "True negative rate", "of the human-made pictures, the share that was left alone"),
    ("accuracy", "Accuracy", "share of all pictures called rightly"),
    ("balanced_accuracy", "Balanced accuracy", "mean of recall and true negative rate"),
    ("f1_real", "F1 of human-made", "the same with the classes exchanged"),
    ("f1_macro", "Macro F1", "mean of the two F1"),
    ("roc_auc", "ROC area", "chance that an AI picture scores above a human-made one"),
    ("average_precision", "Average precision", "area under precision over recall"),
    ("equal_error_rate", "Equal error rate", "where misses and false alarms are equally frequent; low is good"),
    ("brier", "Brier score", "mean squared error of the probability; low is good"),
    ("expected_calibration_error", "Calibration error", "mean distance of confidence from accuracy; low is good"),
)


def visible(text: object) -> str:
    """Text as it is, but control characters, line ends and direction marks as escapes, so that nothing hides in it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def write_evaluation(store: Store, judgement: Judgement, predictions: Predictions, truth: Truth) -> None:
    """Write ``figures/*.svg``, ``metrics.json`` and ``report.html``, each whole or not at all.

    Figures of an earlier evaluation that this one does not have (a curve needs both classes) are removed.

    Raises:
        OSError: one of them cannot be written.
    """
    drawn = draw_all(judgement)
    page = render_evaluation(judgement, predictions, truth, drawn)
    _remove(store, [f"figures/{name}.svg" for name in FIGURE_NAMES if name not in drawn])
    for name, svg in drawn.items():
        _write(store, f"figures/{name}.svg", svg)
    _write(store, "metrics.json", to_json(judgement.metrics))
    _write(store, "report.html", page)


def write_overview(store: Store, predictions: Predictions) -> None:
    """Write ``report.html`` alone: what was predicted, with no truth to judge it by.

    Metrics and figures of an earlier evaluation in the same place are removed: they would not belong to this page.

    Raises:
        OSError: it cannot be written.
    """
    _remove(store, ["metrics.json", *(f"figures/{name}.svg" for name in FIGURE_NAMES)])
    _write(store, "report.html", render_overview(predictions))


def to_json(metrics: Mapping[str, Any]) -> str:
    """Strict JSON with a final line end.

    Raises:
        ValueError: a NaN or an infinity is among the values.
    """
    return json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _remove(store: Store, names: list[str]) -> None:
    for name in names:
        if store.exists(name):
            store.remove(name)


def _write(store: Store, name: str, text: str) -> None:
    # A lone surrogate cannot stand in UTF-8; names come from Parquet or CSV and hold none, so this is a last resort.
    data = text.encode("utf-8", errors="backslashreplace")

    def put(file: BinaryIO) -> None:
        file.write(data)

    store.write(name, put)


def draw_all(judgement: Judgement) -> dict[str, str]:
    """The figures that this evaluation allows, name → SVG; the curves need both classes."""
    found, table = judgement.metrics, judgement.table
    labels, p_ai = table["truth"].to_numpy(), table["p_ai"].to_numpy()
    drawn = {"confusion": figures.draw_confusion(found["confusion"])}
    if len(table):
        drawn["scores"] = figures.draw_scores(p_ai, labels == Label.AI, ("is AI", "is human-made"))
    if found["roc_auc"] is not None:
        point = (1 - found["tnr"], found["tpr"])
        drawn["roc"] = figures.draw_roc(
            labels, p_ai, area=_measured(found, "roc_auc"), operating_point=point, equal_error=found["equal_error_rate"]
        )
        precise = None if found["precision"] is None else (found["recall"], found["precision"])
        drawn["precision_recall"] = figures.draw_precision_recall(
            labels, p_ai, average=_measured(found, "average_precision"), operating_point=precise
        )
        drawn["calibration"] = figures.draw_calibration(labels, p_ai, error=_measured(found, "expected_calibration_error"))
    return drawn


def _measured(found: Mapping[str, Any], name: str) -> figures.Measured:
    return found[name], found["intervals"].get(name)


FIGURE_TITLES = {
    "confusion": "Right and wrong",
    "scores": "How sure the model is",
    "roc": "Hits against false alarms",
    "precision_recall": "Precision and recall of AI",
    "calibration": "Can the probability be taken at its word?",
}


def render_evaluation(judgement: Judgement, predictions: Predictions, truth: Truth, drawn: Mapping[str, str]) -> str:
    """The page of an evaluation; ``drawn`` as from :func:`draw_all`."""
    found, table = judgement.metrics, judgement.table
    wrong = table[table["truth"] != table["predicted"]]
    return _render(
        predictions,
        title="How well the detector does",
        headline=_metric_row(found, *METRIC_ROWS[0]),
        cells=found["confusion"],
        metrics=[_metric_row(found, *row) for row in METRIC_ROWS],
        caveats=caveats_of(judgement, predictions),
        probe=judgement.probe,
        found=found,
        figures=_figures(drawn),
        groups=_group_tables(found["groups"]),
        num_wrong=len(wrong),
        wrong=_listed(
            wrong.assign(order=(wrong["p_ai"] - 0.5).abs()).sort_values(["order", "filename"], ascending=[False, True])
        ),
        unsure=_least_sure(table),
        truth=truth,
        num_resamples=judgement.num_resamples,
        num_score_resamples=num_score_resamples(len(table), judgement.num_resamples),
        seed=judgement.seed,
    )


def render_overview(predictions: Predictions) -> str:
    """The page of predictions that nobody has judged yet."""
    scored = predictions.scored
    called_ai = (scored["label"] == Label.AI).to_numpy()
    drawn = {}
    if len(scored):
        drawn["scores"] = figures.draw_scores(
            scored["p_ai"].to_numpy(), called_ai, ("called AI", "called human-made"), wide=True
        )
    return _render(
        predictions,
        title="What the detector says",
        counts={"ai": int(called_ai.sum()), "real": int((~called_ai).sum()), "failed": len(predictions.failed)},
        figures=_figures(drawn),
        unsure=_least_sure(scored),
        truth=None,
    )


def _render(predictions: Predictions, **values: Any) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.path.dirname(__file__)), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["visible"] = visible
    common = {
        "predictions": predictions,
        "num_rows": len(predictions.table),
        "errors": _error_table(predictions.failed),
        "models": sorted(set(predictions.table["model"]) - {""}),
        "created": f"{runs.now_utc():%Y-%m-%d %H:%M} UTC",
        "versions": runs.versions(PACKAGES),
    }
    return environment.get_template("report.html").render(**common, **values)


def _figures(drawn: Mapping[str, str]) -> list[dict[str, Any]]:
    import markupsafe

    return [
        {"title": FIGURE_TITLES[name], "svg": markupsafe.Markup(figures.inline(drawn[name], FIGURE_TITLES[name]))}  # noqa: S704
        for name in FIGURE_NAMES
        if name in drawn
    ]


def _metric_row(found: Mapping[str, Any], name: str, label: str, meaning: str) -> dict[str, Any]:
    return {"label": label, "meaning": meaning, "value": found[name], "interval": found["intervals"][name]}


def _group_tables(groups: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each kind of group that has any: its groups, the largest first (sizes in their own order)."""
    tables = []
    for kind, parts in groups.items():
        rows = [{"name": name, "num_ai": _num_ai(part), **part} for name, part in parts.items()]
        if kind != "size":
            rows.sort(key=lambda row: (-row["num_images"], row["name"]))
        if rows:
            tables.append({"kind": kind, "rows": rows[:MAX_GROUPS], "num_more": max(0, len(rows) - MAX_GROUPS)})
    return tables


def _num_ai(part: Mapping[str, Any]) -> int:
    return int(part["confusion"]["tp"] + part["confusion"]["fn"])


def _least_sure(table: pd.DataFrame) -> list[dict[str, Any]]:
    return _listed(_by_distance(table, ascending=True))


def _by_distance(table: pd.DataFrame, *, ascending: bool) -> pd.DataFrame:
    """Sorted by the distance of ``p_ai`` from one half, then by name."""
    return table.assign(distance=(table["p_ai"] - 0.5).abs()).sort_values(["distance", "filename"], ascending=[ascending, True])


def _listed(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The first rows of a table, as the template's lists want them."""
    return [
        {
            "filename": row["filename"],
            "p_ai": float(row["p_ai"]),
            "is_ai": None if row.get("truth") is None else row["truth"] == Label.AI,
        }
        for row in table.head(MAX_LISTED).to_dict("records")
    ]


def _error_table(failed: pd.DataFrame) -> list[dict[str, Any]]:
    """Each kind of error: how many, their share of all errors, and one example."""
    rows = []
    for code, part in failed.groupby(failed["error"].replace("", "not stated")):
        first = part.iloc[0]
        rows.append({"code": code, "count": len(part), "filename": first["filename"], "message": first["message"]})
    most = max((row["count"] for row in rows), default=1)
    return [{**row, "share": row["count"] / most} for row in sorted(rows, key=lambda row: (-row["count"], row["code"]))]
