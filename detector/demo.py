"""The whole product on a generated corpus: prepare → train → score → evaluate, on a laptop's CPU in a few minutes.

The corpus is synthetic, and so is the cue that the model learns: what the demo shows is that every part works, not how well
any detector does on real pictures.
"""

import os
import shutil
from dataclasses import dataclass
from typing import Any

from detector import runs
from detector.cluster import connect
from detector.errors import UsageError
from detector.progress import log
from detector.uris import is_uri, local_path, shown

MARKER = ".demo"
_SPLITS = {"train": 800, "test": 200}
_FOLDERS = ("corpus", "data", "model", "predictions", "evaluation")


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Generate a corpus, then prepare, train, score and evaluate: every job of this project on a laptop CPU."""

    out: str
    """Folder for the corpus, the data, the model, the predictions and the evaluation."""
    seed: int = 0
    """Seed of the corpus and of the training."""


def demo(config: DemoConfig) -> dict[str, Any]:
    """Run every stage; the summary has what each job's has.

    Raises:
        UsageError: the output folder holds something else than an earlier demo.
    """
    if config.seed < 0:
        raise UsageError("--seed must not be negative")
    out = _fresh_folder(config.out)
    _make_data(out, config.seed)
    trained = _train(out, config.seed)
    scored = _score(out)
    judged = _evaluate(out)
    log(f"demo: F1 (AI positive) {judged['f1']:.3f} on {judged['num_images']} unseen synthetic pictures")
    log(f"demo: look at {os.path.join(out, 'evaluation', 'report.html')}")
    kept = ("best_metric", "epochs")
    return {
        **scored,
        **{name: trained[name] for name in kept},
        "train_images_per_second": trained["images_per_second"],
        **judged,
    }


def _fresh_folder(out: str) -> str:
    """An empty output; an earlier demo's own folders are replaced, anything else is left alone."""
    if is_uri(out):
        raise UsageError(f"--out {shown(out)}: the demo needs a local folder")
    out = local_path(out)
    if os.path.isdir(out) and os.listdir(out) and not os.path.exists(os.path.join(out, MARKER)):
        raise UsageError(f"--out {out} is not empty and no earlier demo's: give a new folder")
    try:
        os.makedirs(out, exist_ok=True)
        for name in _FOLDERS:
            shutil.rmtree(os.path.join(out, name), ignore_errors=True)
        with open(os.path.join(out, MARKER), "w", encoding="utf-8") as file:
            file.write(f"made by jobs.demo, run {runs.new_run_id()}; the next demo replaces the folders beside this file\n")
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written: {error.strerror}") from None
    return os.path.abspath(out)


def _make_data(out: str, seed: int) -> None:
    from detector.images.synthetic import CorpusSpec, write_corpus
    from detector.training.preparation import prepare
    from detector.training.prepare_config import PrepareConfig

    log(f"demo 1/5: draw {sum(_SPLITS.values()):,} synthetic pictures (seed {seed})")
    corpus = os.path.join(out, "corpus")
    write_corpus(corpus, CorpusSpec(seed=seed, images_per_split=_SPLITS))
    log("demo 2/5: prepare the data folder")
    for split in _SPLITS:
        labels, images = os.path.join(corpus, split, "labels.csv"), os.path.join(corpus, split, "images")
        prepare(
            PrepareConfig(labels=(labels,), images=(images,), split=split, source="synthetic", out=os.path.join(out, "data"))
        )


def _train(out: str, seed: int) -> dict[str, Any]:
    from detector.training.config import TrainConfig
    from detector.training.finetune import finetune

    log("demo 3/5: train a small Swin from scratch (Ray Train, 2 workers)")
    config = TrainConfig(
        data=os.path.join(out, "data"),
        model="scratch:tiny",
        out=os.path.join(out, "model"),
        seed=seed,
        workers=2,
        # From random weights, so not the fine-tuning recipe: its learning rate is far too small here.
        epochs=10,
        learning_rate=1e-3,
        batch_size=16,
        gradient_accumulation=1,
        weight_decay=0.05,
        crop_min_scale=0.5,
    )
    with connect(None):
        return finetune(config)


def _score(out: str) -> dict[str, Any]:
    from detector.scoring.config import ScoreConfig
    from detector.scoring.score import score

    log("demo 4/5: score the unseen split (Ray Data)")
    images, model = os.path.join(out, "data", "test"), os.path.join(out, "model")
    return score(ScoreConfig(images=(images,), model=model, out=os.path.join(out, "predictions")))


def _evaluate(out: str) -> dict[str, Any]:
    from detector.evaluation.evaluate import EvaluateConfig, evaluate

    log("demo 5/5: evaluate")
    predictions, truth = os.path.join(out, "predictions"), os.path.join(out, "data", "test")
    return evaluate(EvaluateConfig(predictions=predictions, truth=truth, out=os.path.join(out, "evaluation")))
