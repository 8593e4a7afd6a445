"""A Swin trains on a CPU with attention in plain steps and is evaluated with the fused one; nothing else changes."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from detector.models.backbones import build_backbone, find_base, load_base
from detector.training.attention import fused_attention, unfuse_attention
from detector.training.config import TrainConfig
from detector.training.dataset import SAMPLES_SCHEMA, Holdout
from detector.training.task import Task
from detector.training.worker import build_trainer, suited


@pytest.fixture
def fused_calls(monkeypatch):
    """One entry for each call of torch's fused attention."""
    calls = []
    real = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *args, **options: calls.append(1) or real(*args, **options)
    )
    return calls


def outputs_and_gradients(model, pixels, *, bf16):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(pixel_values=pixels).logits.float()
    logits[:, 0].sum().backward()
    return logits.detach(), torch.cat(
        [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    )


@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 1e-5), (True, 2e-2)])
def test_plain_steps_give_the_same_outputs_and_gradients(bf16, tolerance):
    torch.manual_seed(0)
    classifier = build_backbone("tiny", pretrained=False)
    model = classifier.model.eval()  # without its random depth
    pixels = torch.rand(2, 3, *classifier.transform.input_size)
    before, slopes = outputs_and_gradients(model, pixels, bf16=bf16)
    unfuse_attention(model)
    after, slopes_after = outputs_and_gradients(model, pixels, bf16=bf16)
    assert (before - after).abs().max() <= tolerance
    assert (slopes - slopes_after).norm() <= 10 * tolerance * slopes.norm()


@pytest.mark.parametrize(
    ("name", "on_cpu", "compiled", "fused"),
    [
        ("tiny", True, False, False),
        ("tiny", False, False, True),
        ("tiny", True, True, True),
        ("Swin-Transformer", True, False, False),
    ],
)
def test_which_models_train_with_fused_attention(fused_calls, name, on_cpu, compiled, fused):
    classifier = build_backbone(name, pretrained=False)
    model = suited(classifier.model, on_cpu=on_cpu, compiled=compiled)
    model(pixel_values=torch.rand(1, 3, *classifier.transform.input_size))
    assert bool(fused_calls) == fused


def test_a_trainer_trains_in_plain_steps_and_evaluates_fused(fused_calls, tmp_path):
    rows = []
    for number in range(4):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.full((64, 64, 3), 60 * number, np.uint8)).save(path)
        rows.append({"filename": path.name, "path": os.fsencode(path), "label": number % 2, "source": "one"})
    samples = pa.Table.from_pylist(rows, schema=SAMPLES_SCHEMA)
    base = find_base("scratch:tiny")
    config = TrainConfig(data="", model="", out="", epochs=1, batch_size=2, gradient_accumulation=1)
    task = Task(
        config=config,
        base=base,
        holdout=Holdout(train=samples, validation=samples),
        precision="fp32",
        use_gpu=False,
        board=None,
    )
    trainer = build_trainer(task, load_base(base), str(tmp_path / "scratch"))
    seen = {"training": [], "evaluation": []}
    trainer.model.register_forward_hook(
        lambda *_: seen["training" if torch.is_grad_enabled() else "evaluation"].append(fused_now())
    )

    def fused_now():
        count = len(fused_calls)
        fused_calls.clear()
        return count > 0

    trainer.train()
    assert seen == {"training": [False] * 2, "evaluation": [True] * 2}
    trainer.model.save_pretrained(tmp_path / "saved")
    written = Path(tmp_path / "saved" / "config.json").read_text(encoding="utf-8")
    assert "attn" not in written
    assert "eager" not in written


def test_after_a_failed_evaluation_training_goes_on_in_plain_steps():
    model = build_backbone("tiny", pretrained=False).model
    with fused_attention(model):
        assert model.config._attn_implementation == "sdpa", "it was never unfused, so nothing is to be undone"
    unfuse_attention(model)
    with pytest.raises(KeyError), fused_attention(model):
        assert model.config._attn_implementation == "sdpa"
        raise KeyError
    assert model.config._attn_implementation == "eager"
