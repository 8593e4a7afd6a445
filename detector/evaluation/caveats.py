"""What stands between a good figure and a conclusion, said plainly beside the figures."""

from dataclasses import dataclass
from typing import Any

from detector import metrics
from detector.evaluation.judge import Judgement
from detector.evaluation.predictions import Predictions
from detector.labels import Label

SMALL_CLASS = 100  # pictures of one class below which an interval of a rate is wider than about ±10 points
MIN_GROUP = 20
RARE_SHARE = 0.01


@dataclass(frozen=True, kw_only=True)
class Caveat:
    """One thing that the reader must know; a warning where the figures could mislead."""

    text: str
    is_warning: bool = True


def caveats_of(judgement: Judgement, predictions: Predictions) -> list[Caveat]:
    """The caveats of an evaluation, warnings first."""
    found = [
        *_about_corpus(judgement),
        *_about_size(judgement),
        *_about_model(judgement, predictions),
        *_about_counts(judgement.metrics),
        *_about_groups(judgement.metrics),
        *_about_balance(judgement.metrics),
    ]
    return sorted(found, key=lambda caveat: not caveat.is_warning)


def _about_corpus(judgement: Judgement) -> list[Caveat]:
    table, probe = judgement.table, judgement.probe
    found = []
    if (table["source"] + " " + table["generator"]).str.contains("synthetic", case=False).any():
        found.append(Caveat(text=(
            "The corpus is synthetic: drawn by a program, both classes of it. It shows that the software works; "
            "it says nothing about artworks."
        )))  # fmt: skip
    if probe is not None and probe.is_high:
        found.append(Caveat(text=(
            f"The files give the class away: format, size and bytes per pixel alone, without a look at one pixel, "
            f"separate the classes with a ROC area of {probe.auc:.2f} (0.5 is guessing). A good result on these "
            "pictures may come from how they were saved, not from what they show."
        )))  # fmt: skip
    elif probe is None:
        found.append(Caveat(is_warning=False, text=(
            "Whether the files alone give the class away could not be measured: too few pictures of a class have "
            "format, bytes, width and height in the predictions."
        )))  # fmt: skip
    by_source = table[table["source"] != ""].groupby("source")["truth"].nunique()
    if judgement.metrics["roc_auc"] is not None and len(by_source) > 1 and (by_source == 1).all():
        found.append(Caveat(text=(
            "No source holds both classes: what tells the sources apart tells the classes apart, so this test cannot "
            "separate recognising AI from recognising where a picture comes from."
        )))  # fmt: skip
    return found


def _about_size(judgement: Judgement) -> list[Caveat]:
    cells = judgement.metrics["confusion"]
    sides = (("AI", cells["tp"] + cells["fn"], cells["fn"]), ("human-made", cells["fp"] + cells["tn"], cells["fp"]))
    found = []
    for name, count, wrong in sides:
        if count == 0:
            found.append(Caveat(text=f"The truth holds no {name} picture: what compares the two classes is not defined."))
            continue
        if count < SMALL_CLASS:
            found.append(Caveat(text=f"Only {count} {name} pictures: read the intervals, not the figures."))
        if wrong == 0:
            # Hanley and Lippman-Hand 1983: with no event in n, the rate is below 3/n with 95 % confidence.
            found.append(Caveat(is_warning=False, text=(
                f"None of the {count:,} {name} pictures was called wrongly, so the bootstrap sees no spread; the true "
                f"error rate of this class can still be up to {min(1.0, 3 / count):.1%} (rule of three)."
            )))  # fmt: skip
    return found


def _about_model(judgement: Judgement, predictions: Predictions) -> list[Caveat]:
    found = []
    if len(judgement.table) > 1 and metrics.is_collapsed(judgement.table["predicted"]):
        name = "AI" if judgement.table["predicted"].iloc[0] == Label.AI else "human-made"
        found.append(Caveat(text=f"The model calls every picture {name}: it has collapsed, or its labels are swapped."))
    area = judgement.metrics["roc_auc"]
    if area is not None and area < 0.4:
        found.append(Caveat(text=f"The ranking is upside down (ROC area {area:.2f}): are the truth's labels 0 = AI, 1 = Real?"))
    if predictions.num_contradictions:
        found.append(Caveat(text=(
            f"In {predictions.num_contradictions:,} rows the label is not the likelier one by its own probability; "
            "the counts follow the label, the curves the probability."
        )))  # fmt: skip
    if predictions.table.loc[predictions.table["model"] != "", "model"].nunique() > 1:
        found.append(Caveat(text="The predictions come from more than one model; score the folder again with one."))
    return found


def _about_counts(found: dict[str, Any]) -> list[Caveat]:
    told = (
        (found["num_failed"], "without a score (the table of errors says why)"),
        (found["num_without_truth"], "scored, but not named by the truth"),
        (found["num_without_prediction"], "in the truth, but not in the predictions"),
    )
    parts = [f"{count:,} {what}" for count, what in told if count]
    if not parts:
        return []
    return [Caveat(
        text=f"Pictures that are in no figure: {'; '.join(parts)}.",
        is_warning=_is_many(sum(count for count, _ in told), found),
    )]  # fmt: skip


def _is_many(count: int, found: dict[str, Any]) -> bool:
    return count > 0.05 * max(found["num_images"], 1)


def _about_groups(found: dict[str, Any]) -> list[Caveat]:
    """Groups whose accuracy lies clearly below the whole's: the two intervals do not meet."""
    whole = found["intervals"]["accuracy"]
    weak = [
        f"{kind} {name} ({group['accuracy']:.0%} of {group['num_images']:,} right)"
        for kind, groups in found["groups"].items()
        for name, group in groups.items()
        if group["num_images"] >= MIN_GROUP and whole and group["intervals"]["accuracy"][1] < whole[0]
    ]
    if not weak:
        return []
    more = f" and {len(weak) - 8} more" if len(weak) > 8 else ""
    return [Caveat(text=f"Clearly weaker than the whole: {'; '.join(weak[:8])}{more}.")]


def _about_balance(found: dict[str, Any]) -> list[Caveat]:
    if found["tpr"] is None or found["tnr"] is None or found["f1"] is None:
        return []
    cells = found["confusion"]
    # Without a single false alarm their rate is not 0 but below 3/n: a promise of 100 % would be more than was seen.
    num_real, unseen = cells["fp"] + cells["tn"], cells["fp"] == 0
    alarm_rate = min(1.0, 3 / num_real) if unseen else 1 - found["tnr"]
    hits, alarms = found["tpr"] * RARE_SHARE, alarm_rate * (1 - RARE_SHARE)
    if hits + alarms == 0:
        return []
    share = (cells["tp"] + cells["fn"]) / found["num_images"]
    return [Caveat(is_warning=False, text=(
        f"{share:.0%} of these pictures are AI. F1 and precision hold for that share only: in a collection with "
        f"{RARE_SHARE:.0%} AI, the same detector would be right in {'no less than ' if unseen else ''}"
        f"{hits / (hits + alarms):.0%} of the pictures it calls AI."
    ))]  # fmt: skip
