"""Every architecture that a detector can be made from: built, trained one step, saved, reloaded, scored alike by all."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from detector.errors import UsageError
from detector.models.backbones import build_backbone, find_base, load_base
from detector.models.backbones_files import preprocessor_config, save_classifier
from detector.models.backbones_table import BACKBONES, SWINS, TINY_TRANSFORM
from detector.models.checkpoint import inspect_checkpoint, load_model
from tests.checkpoints import save_swin

SEED = 5
NAMES = ["tiny", *SWINS, *(backbone.name for backbone in BACKBONES)]
# The large ones take seconds each on two cores; the short run has one of each family and every input size.
SHORT = {"tiny", "swin-tiny", "MobileNetV2", "MobileNetV3Large", "InceptionV3", "EfficientNetV2B0", "ResNet50V2", "DenseNet121"}


def names():
    return [name if name in SHORT else pytest.param(name, marks=pytest.mark.soak) for name in NAMES]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    yield
    torch.set_num_threads(threads)


def noise(size, seed=SEED):
    return np.random.default_rng(seed).integers(0, 256, (size, size + 20, 3)).astype(np.uint8)


def test_the_ten_are_those_of_the_published_comparison():
    assert len(BACKBONES) == 10
    assert [backbone.published_f1 for backbone in BACKBONES] == sorted((b.published_f1 for b in BACKBONES), reverse=True)
    assert {backbone.name for backbone in BACKBONES if not backbone.has_weights} == {"ResNet152V2"}


@pytest.mark.parametrize("name", names())
def test_builds_trains_saves_reloads_and_scores(name, tmp_path):
    """The saved folder gives transformers.pipeline and our own loading the same answer, at its own input size."""
    from transformers import pipeline

    classifier = build_backbone(name, pretrained=False)
    height, width = classifier.transform.input_size
    batch = torch.stack([classifier.transform.resize(noise(100, seed)) for seed in range(2)])
    classifier.model.train()
    before = [parameter.detach().clone() for parameter in classifier.model.parameters()]
    optimizer = torch.optim.SGD(classifier.model.parameters(), lr=0.01)
    logits = classifier.model(pixel_values=classifier.transform.normalize(batch)).logits
    assert logits.shape == (2, 2)
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, classifier.model.parameters(), strict=True))
    save_classifier(classifier, str(tmp_path))
    checkpoint = inspect_checkpoint(str(tmp_path))
    assert (checkpoint.transform, checkpoint.label_map.ai_index) == (classifier.transform, 0)
    pixels = noise(max(height, width) + 30)
    with torch.inference_mode():
        model = load_model(checkpoint)
        inputs = checkpoint.transform.normalize(checkpoint.transform.resize(pixels)[None])
        ours = torch.softmax(model(inputs).logits, -1)[0]
    pipe = pipeline("image-classification", model=str(tmp_path))
    their_inputs = pipe.image_processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    assert float((their_inputs - inputs).abs().max()) < 1e-5
    theirs = {row["label"]: row["score"] for row in pipe(Image.fromarray(pixels))}
    assert theirs["AI"] == pytest.approx(float(ours[0]), abs=1e-5)
    assert theirs["Real"] == pytest.approx(float(ours[1]), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "mean"),
    [("InceptionV3", 299, 0.5), ("EfficientNetV2B0", 192, 0.485), ("ResNet50V2", 224, 0.5), ("tiny", 96, 0.485)],
)
def test_input_size_and_normalisation_are_each_ones_own(name, size, mean):
    transform = build_backbone(name, pretrained=False).transform
    assert transform.input_size == (size, size)
    assert transform.mean[0] == mean


def test_the_parameter_count_is_the_published_architectures():
    """Swin-tiny with two classes has 27.5 M parameters."""
    count = sum(parameter.numel() for parameter in build_backbone("swin-tiny", pretrained=False).model.parameters())
    assert count == pytest.approx(27.5e6, rel=0.01)


@pytest.mark.parametrize("names_of", [("Real", "AI"), ("human", "artificial")])
def test_a_detector_keeps_its_head_and_is_turned_round(names_of, tmp_path):
    """Output 0 of the base is Real: afterwards output 0 is AI, and the answer is the same."""
    folder = save_swin(tmp_path / "base", names=names_of)
    base = find_base(folder)
    assert base.is_detector
    classifier = load_base(base)
    checkpoint = inspect_checkpoint(folder)
    assert checkpoint.label_map.ai_index == 1
    inputs = checkpoint.transform.normalize(checkpoint.transform.resize(noise(60))[None])
    with torch.inference_mode():
        old = load_model(checkpoint)(inputs).logits[0]
        new = classifier.model.eval()(pixel_values=inputs).logits[0]
    assert not torch.equal(old, old.flip(0))
    assert torch.equal(new, old.flip(0))
    assert classifier.model.config.id2label == {0: "AI", 1: "Real"}
    assert classifier.transform == checkpoint.transform


def test_any_other_backbone_gets_a_new_head_on_its_own_weights(tmp_path):
    from transformers import SwinConfig, SwinForImageClassification

    torch.manual_seed(SEED)
    config = SwinConfig(image_size=32, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[1, 2], window_size=4, num_labels=5)
    model = SwinForImageClassification(config)
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor_config(TINY_TRANSFORM)))
    base = find_base(str(tmp_path))
    assert not base.is_detector
    loaded = load_base(base).model
    assert loaded.classifier.weight.shape == (2, 32)
    assert torch.equal(
        loaded.swin.embeddings.patch_embeddings.projection.weight, model.swin.embeddings.patch_embeddings.projection.weight
    )


def test_two_classes_of_something_else_get_a_new_head(tmp_path):
    assert not find_base(save_swin(tmp_path / "base", names=("cat", "dog"))).is_detector
    assert find_base(save_swin(tmp_path / "named", names=("cat", "dog")), ai_class="dog").label_map.ai_index == 1


def test_a_hub_folder_of_timm_becomes_a_two_class_model_at_its_own_size(tmp_path):
    """What the hub holds for timm: config.json of timm's form, no preprocessor file."""
    import timm
    from timm.models import save_for_hf

    model = timm.create_model("mobilenetv2_100", pretrained=False)
    save_for_hf(model, tmp_path, safe_serialization=True)
    for name in os.listdir(tmp_path):
        if name.endswith(".bin"):
            os.unlink(tmp_path / name)
    base = find_base(str(tmp_path))
    assert not base.is_detector
    classifier = load_base(base)
    assert classifier.transform.input_size == (224, 224)
    assert classifier.model.eval()(pixel_values=torch.zeros(1, 3, 224, 224)).logits.shape == (1, 2)
    assert torch.equal(classifier.model.timm_model.conv_stem.weight, model.conv_stem.weight)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("scratch:huge", "there is no such architecture; scratch: takes tiny"),
        ("ResNet152V2", "use scratch:ResNet152V2"),
        ("/nowhere/at/all", "no such folder"),
        ("nobody/nothing-at-all", "could not be had from the model hub"),
        ("ResNet50", "could not be had from the model hub"),
    ],
)
def test_a_base_that_cannot_be_had_is_one_clear_line(model, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=message):
        find_base(model)


def test_a_shortest_edge_transform_survives_the_round_trip(tmp_path):
    """Crop and shortest edge, as many published processors have them, stay as they are in a fine-tuned checkpoint."""
    from detector.images.transforms import EvaluationTransform

    for old in (
        {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "resample": 3,
         "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "image_processor_type": "BitImageProcessor"},
        {"size": {"height": 256, "width": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224},
         "resample": 2, "image_processor_type": "DeiTImageProcessor"},
    ):  # fmt: skip
        transform = EvaluationTransform.from_config(old)
        assert EvaluationTransform.from_config(preprocessor_config(transform)) == transform
