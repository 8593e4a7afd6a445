"""Samples, order, weights and evaluation: what a training step sees depends on nothing but seed, epoch and picture."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from detector.errors import JobError
from detector.images.augmentation import TrainingAugmentation
from detector.models.backbones import build_backbone
from detector.training.dataset import read_split
from detector.training.samples import EpochSampler, PictureCache, TrainingPictures, ValidationPictures, class_weights, collate
from detector.training.trainer import DetectorTrainer, DivergedError, evaluate_logits, selection_score
from tests.training import corpora

SEED = 21


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    print(f"seed {SEED}")
    return read_split(corpora.tree(tmp_path_factory.mktemp("samples"), 5, seed=SEED), "train")


def pictures(samples, seed=SEED, budget=10**9):
    augmentation = TrainingAugmentation(size=(32, 32), robust=True)
    return TrainingPictures(samples, augmentation=augmentation, cache=PictureCache(budget_bytes=budget), seed=seed)


def test_a_sample_depends_only_on_seed_epoch_and_picture(samples):
    """Not on what was drawn before, on the process, or on whether the picture was kept in memory."""
    first, second = pictures(samples), pictures(samples, budget=0)
    for index in range(len(samples)):
        first[0, index]
    for key in ((3, 7), (0, 1), (3, 2)):
        assert torch.equal(first[key]["pixel_values"], second[key]["pixel_values"])
        assert first[key]["labels"] == samples["label"][key[1]].as_py()
    assert not torch.equal(first[0, 1]["pixel_values"], first[1, 1]["pixel_values"])
    assert not torch.equal(first[0, 1]["pixel_values"], pictures(samples, seed=SEED + 1)[0, 1]["pixel_values"])


def test_the_cache_keeps_within_its_budget(samples):
    cache = PictureCache(budget_bytes=64 * 64 * 3 * 3 + 10)
    for path in samples["path"].to_pylist():
        cache.pixels(path)
    assert len(cache._kept) == 3


def test_a_picture_that_is_gone_says_what_to_do(samples):
    with pytest.raises(JobError, match="prepare the data again"):
        PictureCache(budget_bytes=0).pixels(b"/nowhere/x.jpg")


def test_validation_uses_the_evaluation_transform(samples):
    transform = build_backbone("tiny", pretrained=False).transform
    dataset = ValidationPictures(samples, transform=transform, budget_bytes=10**6)
    pixels = PictureCache(budget_bytes=0).pixels(samples["path"][4].as_py())
    for _ in range(2):
        assert torch.equal(dataset[4]["pixel_values"], transform.resize(pixels))


def test_every_epoch_is_a_new_order_of_all_pictures():
    sampler = EpochSampler(np.zeros(50, dtype=np.int64), seed=SEED)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert {key[0] for key in keys} == {epoch}
        orders.append([key[1] for key in keys])
    assert sorted(orders[0]) == list(range(50))
    assert orders[0] != orders[1]
    assert orders[0] == orders[2]


def test_the_balanced_sampler_draws_both_classes_alike():
    labels = np.array([0] * 100 + [1] * 900)
    sampler = EpochSampler(labels, seed=SEED, balanced=True)
    drawn = labels[[index for _, index in sampler]]
    assert len(drawn) == 1000
    assert (drawn == 0).mean() == pytest.approx(0.5, abs=0.06)


def test_class_weights_make_both_classes_count_the_same():
    labels = np.array([0] * 10 + [1] * 90)
    weights = class_weights(labels)
    assert weights[0] * 10 == pytest.approx(weights[1] * 90)
    assert np.mean([weights[label] for label in labels]) == pytest.approx(1)


def evaluation(logits, labels):
    return evaluate_logits(SimpleNamespace(predictions=np.array(logits, dtype=np.float32), label_ids=np.array(labels)))


def test_a_constant_predictor_is_called_collapsed():
    rng = np.random.default_rng(SEED)
    labels = rng.integers(0, 2, 50)
    assert evaluation([[2.0, -1.0]] * 50, labels)["collapsed"]
    wobbling = rng.normal(0, 1e-6, (50, 2))
    assert evaluation(wobbling, labels)["collapsed"], "on both sides of one half, and still one answer for all"
    assert not evaluation(rng.normal(0, 1, (50, 2)), labels)["collapsed"]


def test_ai_is_the_positive_class_of_the_evaluation():
    found = evaluation([[3, 0], [3, 0], [0, 3], [0, 3]], [0, 1, 1, 1])
    assert (found["precision"], found["recall"], found["predicted_ai"]) == (0.5, 1.0, 0.5)


def test_outputs_that_are_no_numbers_end_the_training():
    with pytest.raises(DivergedError):
        evaluation([[float("nan"), 0.0], [0.0, 1.0]], [0, 1])


def test_the_best_evaluation_is_by_metric_then_by_loss():
    rows = [
        {"accuracy": 0.9, "f1": 0.5, "validation_loss": 0.2},
        {"accuracy": 0.9, "f1": 0.6, "validation_loss": 0.1},
        {"accuracy": 0.8, "f1": float("nan"), "validation_loss": 0.01},
    ]
    for metric, best in (("accuracy", 1), ("f1", 1)):
        scores = [selection_score(row, metric) for row in rows]
        assert scores.index(max(scores)) == best
    assert selection_score({"f1": float("nan"), "validation_loss": float("nan")}, "f1") < 0


def test_a_resumed_trainer_has_every_weight_of_the_checkpoint(tmp_path):
    """Would fail with the Trainer's own loading, which leaves out what transformers saves under other names."""
    torch.manual_seed(SEED)
    saved = build_backbone("tiny", pretrained=False).model
    saved.save_pretrained(tmp_path)
    other = build_backbone("tiny", pretrained=False).model
    DetectorTrainer._load_from_checkpoint(SimpleNamespace(model=other), str(tmp_path))
    for name, weight in saved.state_dict().items():
        assert torch.equal(other.state_dict()[name], weight), name


def test_a_batch_stays_uint8_until_it_is_on_the_device(samples):
    dataset = pictures(samples)
    batch = collate([dataset[0, 0], dataset[0, 1]])
    assert (batch["pixel_values"].dtype, tuple(batch["pixel_values"].shape)) == (torch.uint8, (2, 3, 32, 32))
