"""A training from end to end on two CPU workers, and what it leaves behind."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detector.images.pixels import DecodeLimits, decode_bytes
from detector.metrics import compute_metrics
from detector.models.checkpoint import inspect_checkpoint, load_model
from detector.training import finetune
from detector.training.config import TrainConfig
from detector.training.dataset import hold_out, read_split
from detector.training.preparation import prepare
from detector.training.prepare_config import PrepareConfig
from tests.training import corpora

SEED = 3
pytestmark = pytest.mark.ray


def config(data, out, **changes):
    values = {
        "data": str(data), "out": str(out), "model": "scratch:tiny", "epochs": 2, "workers": 2, "batch_size": 8,
        "gradient_accumulation": 2, "learning_rate": 1e-3, "crop_min_scale": 0.5, "seed": SEED, "validation_fraction": 0.2,
    }  # fmt: skip
    return TrainConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A prepared folder of two sources: 80 pictures of each class, so that 128 of them train in whole batches."""
    print(f"seed {SEED}")
    top = tmp_path_factory.mktemp("finetune")
    for number, (source, count) in enumerate((("first", 60), ("second", 20))):
        for label in ("AI", "Real"):
            folder = top / source / label
            corpora.pictures(folder, count, seed=SEED + 2 * number + (label == "Real"), label=label)
            prepare(PrepareConfig(split="train", source=source, out=str(top / "data"), label=label, images=(str(folder),)))
    return top / "data"


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory, ray_here):
    out = tmp_path_factory.mktemp("trained")
    return out, finetune.finetune(config(data, out))


def test_the_folder_has_everything_a_checkpoint_needs(trained, data):
    out, summary = trained
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "README.md", "history.csv", "run.json",
            "learning_curves.png", "tensorboard"} <= set(os.listdir(out))  # fmt: skip
    saved = json.loads((out / "config.json").read_text())
    assert saved["id2label"] == {"0": "AI", "1": "Real"}
    record = json.loads((out / "run.json").read_text())
    manifest = hashlib.sha256((data / "manifest.parquet").read_bytes()).hexdigest()
    assert record["status"] == "complete"
    assert record["identity"]["manifest"] == manifest
    assert manifest in (out / "README.md").read_text()
    assert Image.open(out / "learning_curves.png").width > 500
    assert any(name.startswith("events.out.tfevents") for name in os.listdir(out / "tensorboard"))
    assert not [name for name in os.listdir(out) if name.endswith((".bin", ".pt", ".pth"))], "no pickles"
    assert {"best_metric", "epochs", "images_per_second"} <= set(summary)
    assert (summary["train_images"], summary["validation_images"]) == (128, 32)


def test_the_saved_model_scores_what_the_training_measured(trained, data):
    """No skew: decoding, transform and model of scoring give the best evaluation's own loss and accuracy."""
    out, summary = trained
    rows = corpora.history(out)
    best = next(row for row in rows if row["best"] == "1")
    assert float(best["accuracy"]) == max(float(row["accuracy"]) for row in rows) == summary["best_metric"]
    held = hold_out(read_split(str(data), "train"), fraction=0.2, seed=SEED).validation
    checkpoint = inspect_checkpoint(str(out))
    model, labels = load_model(checkpoint), held["label"].to_numpy()
    pictures = [decode_bytes(Path(os.fsdecode(path)).read_bytes(), DecodeLimits()) for path in held["path"].to_pylist()]
    inputs = torch.stack([checkpoint.transform.resize(picture.pixels) for picture in pictures])
    with torch.inference_mode():
        logits = model(checkpoint.transform.normalize(inputs)).logits
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels.astype(np.int64)))
    found = compute_metrics(labels, torch.softmax(logits, -1)[:, 0].numpy())
    assert float(loss) == pytest.approx(float(best["validation_loss"]), abs=1e-5)
    assert found["accuracy"] == pytest.approx(float(best["accuracy"]))


def test_the_pipeline_of_transformers_gives_the_same_answers(trained, tmp_path):
    from transformers import pipeline

    out, _ = trained
    checkpoint = inspect_checkpoint(str(out))
    model, answer = load_model(checkpoint), pipeline("image-classification", model=str(out))
    for seed, label in enumerate(("AI", "Real")):
        pixels = corpora.draw(np.random.default_rng(seed), label, 130)
        with torch.inference_mode():
            p_ai = torch.softmax(model(checkpoint.transform.normalize(checkpoint.transform.resize(pixels)[None])).logits, -1)[
                0, 0
            ]
        theirs = {row["label"]: row["score"] for row in answer(Image.fromarray(pixels))}
        assert theirs["AI"] == pytest.approx(float(p_ai), abs=1e-5)


def test_two_workers_with_half_the_batch_follow_one_workers_loss(trained, data, tmp_path):
    """The same pictures, augmentation and order; only sums are added up in another order."""
    out, _ = trained
    finetune.finetune(config(data, tmp_path / "one", workers=1, batch_size=16))
    for two, one in zip(corpora.history(out), corpora.history(tmp_path / "one"), strict=True):
        assert float(two["train_loss"]) == pytest.approx(float(one["train_loss"]), abs=2e-3)
        assert float(two["validation_loss"]) == pytest.approx(float(one["validation_loss"]), abs=2e-3)
        assert float(two["learning_rate"]) == float(one["learning_rate"])


def test_fine_tuning_from_a_detector_goes_on_from_its_answers(trained, data, tmp_path):
    """At a learning rate of next to nothing the first evaluation is the base's last one, so its head was kept."""
    out, _ = trained
    best = next(row for row in corpora.history(out) if row["best"] == "1")
    again = config(
        data, tmp_path / "again", model=str(out), epochs=1, learning_rate=1e-9, class_balance="weights", augment="robust"
    )
    finetune.finetune(again)
    row = corpora.history(tmp_path / "again")[0]
    assert float(row["validation_loss"]) == pytest.approx(float(best["validation_loss"]), abs=1e-4)
    assert "its head kept" in (tmp_path / "again" / "README.md").read_text()


@pytest.mark.soak
def test_an_object_store_gets_the_same_checkpoint(trained, data, ray_here):
    """Ray Train's own checkpoints go through the store too, and are gone afterwards."""
    from tests.s3 import loopback_bucket

    with loopback_bucket() as (uri, client):
        finetune.finetune(config(data, uri("models/first")))
        keys = [item["Key"] for item in client.list_objects_v2(Bucket="bucket")["Contents"]]
    names = {key.removeprefix("models/first/") for key in keys if key.startswith("models/first/")}
    assert {"model.safetensors", "config.json", "run.json", "history.csv"} <= names
    assert not [name for name in names if name.startswith(".training/") and not name.endswith("/")]


@pytest.mark.soak
def test_a_handful_of_pictures_train_in_batches_larger_than_all_of_them(tmp_path, ray_here):
    data = corpora.tree(tmp_path / "data", 3, seed=SEED)
    summary = finetune.finetune(config(data, tmp_path / "out", epochs=1, batch_size=32, gradient_accumulation=4))
    assert (summary["train_images"], summary["validation_images"]) == (4, 2)
