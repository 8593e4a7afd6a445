"""Small checkpoints with random weights, in the forms that real ones have."""

import json
import os

import torch
from safetensors.torch import save_file
from transformers import SwinConfig, SwinForImageClassification, ViTImageProcessor

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def save_swin(
    folder,
    *,
    names=("AI", "Real"),
    image_size=32,
    seed=0,
    spread=3.0,
    depths=(1, 1),
    embed_dim=16,
    num_heads=(1, 2),
    window_size=4,
    patch_size=2,
    old_form=False,
    **processor,
):
    """Save a Swin with random weights whose logit differences on random pictures spread by about ``spread``."""
    torch.manual_seed(seed)
    config = SwinConfig(
        image_size=image_size,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depths=list(depths),
        num_heads=list(num_heads),
        window_size=window_size,
        num_labels=2,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    model = SwinForImageClassification(config).eval()
    _spread_logits(model, image_size, spread)
    os.makedirs(folder, exist_ok=True)
    if old_form:
        _save_old(model, folder, names, image_size)
    else:
        model.save_pretrained(folder, safe_serialization=True)
        size = {"height": image_size, "width": image_size}
        ViTImageProcessor(**{"size": size, "resample": 3, **IMAGENET, **processor}).save_pretrained(folder)
    return str(folder)


def _spread_logits(model, image_size, spread):
    """Scale and centre the head: random weights alone give every picture the same probability."""
    with torch.no_grad():
        for parameter in model.swin.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.0)
        noise = torch.randn(32, 3, 1, 1) * 0.8 + torch.randn(32, 3, image_size, image_size) * torch.rand(32, 1, 1, 1)
        logits = model(noise).logits
        difference = logits[:, 0] - logits[:, 1]
        model.classifier.weight.mul_(spread / difference.std())
        logits = model(noise).logits
        model.classifier.bias[0] -= (logits[:, 0] - logits[:, 1]).mean()


def _save_old(model, folder, names, image_size):
    """As AutoTrain wrote them in 2022: string label ids, ViTFeatureExtractor, size as one number."""
    config = model.config.to_dict()
    config.update(
        {
            "id2label": {str(index): name for index, name in enumerate(names)},
            "label2id": {name: str(index) for index, name in enumerate(names)},
            "architectures": ["SwinForImageClassification"],
            "transformers_version": "4.22.1",
            "_name_or_path": "AutoTrain",
        }
    )
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump({k: v for k, v in config.items() if k != "dtype"}, file)
    old = {
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "ViTFeatureExtractor",
        "resample": 3,
        "size": image_size,
        **IMAGENET,
    }
    with open(os.path.join(folder, "preprocessor_config.json"), "w", encoding="utf-8") as file:
        json.dump(old, file)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        os.path.join(folder, "model.safetensors"),
        metadata={"format": "pt"},
    )
