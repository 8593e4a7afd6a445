"""What a training on a CPU leaves out, and that leaving it out changes nothing."""

import json

import psutil
import pytest
import ray
import torch

from detector.cluster import is_private
from detector.models.backbones import build_backbone
from detector.training import finetune
from detector.training.config import TrainConfig
from detector.training.worker import unfused_attention
from tests.training import corpora


def outputs_and_gradients(model, pixels):
    model.zero_grad()
    logits = model(pixel_values=pixels).logits
    logits[:, 0].sum().backward()
    return logits.detach(), torch.cat(
        [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    )


@pytest.mark.parametrize("name", ["tiny", "Swin-Transformer"])
def test_unfused_attention_gives_the_same_outputs_and_gradients(name):
    torch.manual_seed(0)
    classifier = build_backbone(name, pretrained=False)
    model = classifier.model.eval()  # without its random depth
    pixels = torch.rand(2, 3, *classifier.transform.input_size)
    before, slopes = outputs_and_gradients(model, pixels)
    after, slopes_after = outputs_and_gradients(unfused_attention(model), pixels)
    assert torch.allclose(before, after, atol=1e-5)
    assert torch.allclose(slopes, slopes_after, atol=1e-4 * float(slopes.abs().max()))


@pytest.mark.parametrize("name", ["tiny", "Swin-Transformer"])
def test_no_swin_trains_with_fused_attention(name, monkeypatch):
    calls = []
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *args, **options: calls.append(1) or fused(*args, **options)
    )
    classifier = build_backbone(name, pretrained=False)
    pixels = torch.rand(1, 3, *classifier.transform.input_size)
    classifier.model(pixel_values=pixels)
    assert bool(calls) == (name == "tiny"), "it was not fused to begin with"
    calls.clear()
    unfused_attention(classifier.model)(pixel_values=pixels)
    assert not calls


def test_a_ray_that_is_not_connected_is_nobodys():
    if not ray.is_initialized():
        assert not is_private()


@pytest.mark.ray
def test_a_private_ray_has_no_log_monitor_and_training_no_autoscaler(tmp_path, ray_here):
    assert ray_here.local
    assert is_private()
    commands = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    assert any("raylet" in command for command in commands)
    assert not [command for command in commands if "log_monitor" in command]
    for label in ("AI", "Real"):
        corpora.pictures(tmp_path / "data" / "train" / label, 6, seed=1, label=label)
    config = TrainConfig(
        data=str(tmp_path / "data"), out=str(tmp_path / "out"), model="scratch:tiny", epochs=1, workers=1, batch_size=4
    )
    assert finetune.finetune(config)["epochs"] == 1
    named = {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
    assert not [name for name in named if "utoscaling" in name], named
    assert "attn" not in json.loads((tmp_path / "out" / "config.json").read_text())
