"""Samples, order, weights and evaluation: what a training step sees depends on nothing but seed, epoch and picture."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from detector.errors import JobError
from detector.images.augmentation import TrainingAugmentation
from detector.models.backbones import build_backbone, find_base, load_base
from detector.models.backbones_files import save_classifier
from detector.training.config import TrainConfig
from detector.training.dataset import Holdout, read_split
from detector.training.samples import EpochSampler, PictureCache, TrainingPictures, ValidationPictures, class_weights, collate
from detector.training.task import Task
from detector.training.trainer import DetectorTrainer, DivergedError, evaluate_logits, selection_score
from detector.training.worker import build_trainer, channels_last
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


def test_convolutional_nets_train_with_channels_last_and_save_as_before(tmp_path):
    """The layout is the worker's own business: weights, answers and files are those of the usual one."""
    torch.manual_seed(SEED)
    classifier = build_backbone("MobileNetV2", pretrained=False)
    inputs = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        before = classifier.model.eval()(pixel_values=inputs).logits
        model = channels_last(classifier.model)
        after = model(pixel_values=inputs).logits
    stem = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    assert stem.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-3)
    save_classifier(classifier, str(tmp_path))
    loaded = load_base(find_base(str(tmp_path))).model
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    swin = channels_last(build_backbone("tiny", pretrained=False).model)
    patches = next(module for module in swin.modules() if isinstance(module, torch.nn.Conv2d))
    assert patches.weight.is_contiguous(), "a transformer gains nothing from it"


@pytest.mark.parametrize(("decode", "at_least"), [("full", None), ("scaled", (192, 192))])
def test_the_way_to_decode_reaches_training_and_validation_pictures(samples, tmp_path, decode, at_least):
    classifier = load_base(find_base("scratch:tiny"))
    config = TrainConfig(data="", model="", out="", decode=decode)
    task = Task(
        config=config, base=find_base("scratch:tiny"), holdout=Holdout(train=samples, validation=samples), precision="fp32",
        use_gpu=False, board=None,
    )  # fmt: skip
    trainer = build_trainer(task, classifier, str(tmp_path))
    assert trainer.train_dataset._cache.at_least == at_least
    assert trainer.eval_dataset._cache.at_least == at_least


def test_a_picture_is_trained_on_as_it_will_be_scored(tmp_path):
    Image.fromarray(np.full((300, 400, 3), 90, np.uint8)).save(tmp_path / "large.jpg")
    path = os.fsencode(tmp_path / "large.jpg")
    for at_least, shape in ((None, (300, 400, 3)), ((64, 64), (75, 100, 3)), ((290, 64), (300, 400, 3))):
        assert PictureCache(budget_bytes=0, at_least=at_least).pixels(path).shape == shape
