"""The model card: what was trained on what, how well it does there, and what that does not say."""

import json
from typing import Any

from detector import runs
from detector.training.dataset import balance_text, class_counts
from detector.training.plan import Plan

_LIMITS = """\
## Limits

- The figures above are of pictures held out from the same sources it was trained on. On other sources, other generators and
  other years expect less; measure it on your own labelled pictures with `python -m jobs.evaluate`.
- Pictures of the two classes often differ in file format, size and compression. A detector can learn that instead of the
  picture; compare its results within one source, and after recompression.
- A probability of one half is no natural border: choose the threshold on your own data if one kind of error costs more.
- It is evidence, not proof: no person should be accused on the strength of a score alone."""


def model_card(plan: Plan, summary: dict[str, Any], best: dict[str, Any]) -> str:
    """The text of the checkpoint's README.md, with the front matter that the model hub reads."""
    parts = (_front(plan, summary), _data(plan), _evaluation(plan, summary, best), _recipe(plan, summary), _LIMITS)
    return "\n\n".join(parts) + "\n"


def _front(plan: Plan, summary: dict[str, Any]) -> str:
    start = "its head kept (a detector already)" if plan.base.is_detector else "a new two-class head"
    weights = "random weights" if plan.base.folder is None else "pretrained weights"
    collapsed = (
        "\n**Collapsed:** it gives the same answer for every validation picture. Do not use it.\n"
        if summary["collapsed"]
        else ""
    )
    job = "python -m jobs.score --images FOLDER --model PATH_OF_THIS_FOLDER --out PREDICTIONS"
    caveat = ""
    if plan.config.decode != "full":
        job += f" --decode {plan.config.decode}"
        caveat = " It was trained on large JPEGs\ndecoded at a smaller scale; the pipeline above decodes in full."
    return f"""---
library_name: transformers
pipeline_tag: image-classification
tags:
- image-classification
- ai-generated-image-detection
---

# Detector of AI-generated artworks

Tells AI-generated pictures (class 0, `AI`) from human-made ones (class 1, `Real`).
{collapsed}
Fine-tuned from {_inline(plan.base.name)} ({weights}, {start}).

```python
from transformers import pipeline
print(pipeline("image-classification", model="PATH_OF_THIS_FOLDER")("picture.jpg"))
```

For folders of pictures: `{job}`.{caveat}"""


def _data(plan: Plan) -> str:
    sources = sorted(set(plan.holdout.train["source"].to_pylist()))
    return f"""## Data

| | pictures |
| --- | --- |
| training | {balance_text(class_counts(plan.holdout.train))} |
| validation, held out by class and source | {balance_text(class_counts(plan.holdout.validation))} |
| left out because they do not decode | {len(plan.dropped):,} |

Sources: {", ".join(_inline(source) for source in sources)}. Split {_inline(plan.config.train_split)}; SHA-256 of the manifest:
`{plan.identity["manifest"] or "none, a bare folder tree"}`."""


def _evaluation(plan: Plan, summary: dict[str, Any], best: dict[str, Any]) -> str:
    measures = {"accuracy": "accuracy", "F1 of AI": "f1", "precision": "precision", "recall": "recall", "ROC area": "roc_auc"}
    quality = ", ".join(f"{name} {_number(best[key])}" for name, key in measures.items())
    return f"""## Evaluation

On the validation pictures, at epoch {best["epoch"]} of {summary["epochs"]}, the best by {plan.config.metric}:
{quality}. All evaluations: `history.csv`, `learning_curves.png`."""


def _recipe(plan: Plan, summary: dict[str, Any]) -> str:
    rows = "\n".join(f"| {name} | {_inline(value)} |" for name, value in plan.config.recipe().items() if name != "model")
    return f"""## Recipe

AdamW, linear decay after the warm-up, gradients clipped at norm 1. {summary["workers"]} workers, {summary["precision"]}.

| | |
| --- | --- |
{rows}

Versions: {", ".join(f"{name} {version}" for name, version in runs.versions().items())}."""


def _inline(value: object) -> str:
    """A value as inline code: names of files and sources are strangers' text."""
    text = value if isinstance(value, str) else json.dumps(value)
    safe = "".join(c if c.isprintable() and c not in "`|" else "?" for c in text)
    return f"`{safe}`"


def _number(value: float) -> str:
    return "undefined" if value != value else f"{value:.4f}"  # noqa: PLR0124  NaN is the value that differs from itself
