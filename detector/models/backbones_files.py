"""What a two-class model's folder needs beside its weights, so that transformers and this project read it alike."""

import json
import os
from typing import TYPE_CHECKING, Any

from detector.images.transforms import EvaluationTransform
from detector.labels import ID2LABEL, LABEL2ID
from detector.models.checkpoint import CONFIG, DECODE_MODES, PREPROCESSOR, read_json

if TYPE_CHECKING:
    from detector.models.backbones import Classifier

_PIL_RESAMPLE = {"nearest-exact": 0, "bilinear": 2, "bicubic": 3}


def save_classifier(classifier: "Classifier", folder: str) -> None:
    """Write a Hugging Face folder: safetensors, ``config.json`` with AI and Real, ``preprocessor_config.json``.

    Both ``transformers.pipeline`` and this project's scoring read it, with equal answers.
    """
    model: Any = classifier.model
    model.save_pretrained(folder)
    write_configs(folder, classifier.transform)


def write_configs(folder: str, transform: EvaluationTransform, *, decode: str = "full") -> None:
    """Complete a saved model's folder: class names in ``config.json``, and the preprocessor's file.

    ``decode`` is the way to decode that the model was validated with (:data:`detector.images.pixels.DECODERS`).
    """
    path = os.path.join(folder, CONFIG)
    config = read_json(path)
    config["id2label"] = {str(index): name for index, name in ID2LABEL.items()}  # timm's wrapper leaves them out
    config["label2id"] = LABEL2ID
    # With it transformers would not look at the preprocessor's file, and would resize with Pillow to another frame.
    config.pop("pretrained_cfg", None)
    _write_json(path, config)
    modes = {} if decode == "full" else {DECODE_MODES: [decode]}
    _write_json(os.path.join(folder, PREPROCESSOR), preprocessor_config(transform) | modes)


def preprocessor_config(transform: EvaluationTransform) -> dict[str, Any]:
    """The ``preprocessor_config.json`` that makes transformers' image processor do what ``transform`` does."""
    config: dict[str, Any] = {
        "do_resize": transform.resize_to is not None or transform.shortest_edge is not None,
        "do_rescale": True, "rescale_factor": transform.rescale, "do_normalize": True,
        "image_mean": list(transform.mean), "image_std": list(transform.std),
        "resample": _PIL_RESAMPLE[transform.resample], "do_center_crop": transform.crop is not None,
    }  # fmt: skip
    if transform.crop is not None:
        config["crop_size"] = {"height": transform.crop[0], "width": transform.crop[1]}
    if transform.shortest_edge is not None:
        return {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": transform.shortest_edge}, **config}
    height, width = transform.resize_to or transform.input_size
    kind = "ViTImageProcessor" if transform.crop is None else "DeiTImageProcessor"
    return {"image_processor_type": kind, "size": {"height": height, "width": width}, **config}


def _write_json(path: str, value: dict[str, Any]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
