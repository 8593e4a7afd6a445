"""The architectures a detector can be fine-tuned from: the comparison's ten, three sizes of Swin, and a tiny one.

A base is named by a folder, a hub id, a name of the table below, or ``scratch:NAME`` (random weights, no network). What comes
out is always a two-class classifier whose output 0 is AI and output 1 is Real, with the evaluation transform that belongs
to it: input size, resampling, mean and standard deviation are each architecture's own.
"""

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from detector.errors import UsageError
from detector.images.transforms import EvaluationTransform
from detector.labels import ID2LABEL, LABEL2ID, LabelMap, map_classes
from detector.models.checkpoint import CONFIG, PREPROCESSOR, find_folder, id2label_of, read_json, transform_of, weight_files

if TYPE_CHECKING:
    import torch

SCRATCH = "scratch:"
TINY = "tiny"


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """One of the comparison's ten.

    Attributes:
        name: as the published report calls it.
        timm_id: architecture and weights in timm; weights are at ``timm/<timm_id>`` on the hub.
        published_f1: F1 of AI that the report gives for the contest data of 2022. The lowest look like collapsed runs.
        has_weights: whether pretrained weights of exactly this architecture exist.
    """

    name: str
    timm_id: str
    published_f1: float
    has_weights: bool = True


BACKBONES = (
    Backbone(name="Swin-Transformer", timm_id="swin_small_patch4_window7_224.ms_in1k", published_f1=0.9513),
    Backbone(name="ResNet50V2", timm_id="resnetv2_50.a1h_in1k", published_f1=0.8556),
    Backbone(name="DenseNet201", timm_id="densenet201.tv_in1k", published_f1=0.8392),
    Backbone(name="MobileNetV2", timm_id="mobilenetv2_100.ra_in1k", published_f1=0.8148),
    Backbone(name="ResNet152V2", timm_id="resnetv2_152", published_f1=0.8104, has_weights=False),
    Backbone(name="InceptionV3", timm_id="inception_v3.tf_in1k", published_f1=0.6239),
    Backbone(name="MobileNetV3Large", timm_id="mobilenetv3_large_100.ra_in1k", published_f1=0.3568),
    Backbone(name="DenseNet121", timm_id="densenet121.ra_in1k", published_f1=0.3210),
    Backbone(name="ResNet50", timm_id="resnet50.a1_in1k", published_f1=0.3048),
    Backbone(name="EfficientNetV2B0", timm_id="tf_efficientnetv2_b0.in1k", published_f1=0.0),
)
_BY_NAME = {backbone.name.lower(): backbone for backbone in BACKBONES}
# transformers' own Swin: hub id, width of the first stage, blocks and heads of each stage (Liu et al. 2021, table 7).
SWINS: dict[str, tuple[str, int, tuple[int, ...], tuple[int, ...]]] = {
    "swin-tiny": ("microsoft/swin-tiny-patch4-window7-224", 96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "swin-small": ("microsoft/swin-small-patch4-window7-224", 96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "swin-base": ("microsoft/swin-base-patch4-window7-224", 128, (2, 2, 18, 2), (4, 8, 16, 32)),
}
_SWIN_TRANSFORM = EvaluationTransform(
    resize_to=(224, 224), shortest_edge=None, crop=None, resample="bicubic", rescale=1 / 255,
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
)  # fmt: skip
# Small enough for two CPU cores: 96 pixels, three stages, no drop path, so that two workers see what one sees.
_TINY_SWIN = {"image_size": 96, "patch_size": 4, "window_size": 4, "embed_dim": 32, "depths": [2, 2, 2], "num_heads": [2, 4, 8],
              "drop_path_rate": 0.0}  # fmt: skip
_TINY_TRANSFORM = EvaluationTransform(
    resize_to=(96, 96), shortest_edge=None, crop=None, resample="bicubic", rescale=1 / 255,
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
)  # fmt: skip
_PIL_RESAMPLE = {"nearest-exact": 0, "bilinear": 2, "bicubic": 3}


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base that has been found and checked, before anything heavy is imported.

    Attributes:
        name: what the user called it.
        folder: absolute path of its files, or None for random weights.
        label_map: which of its outputs is AI, if it is a detector already; None where it gets a new head.
    """

    name: str
    folder: str | None
    label_map: LabelMap | None

    @property
    def is_detector(self) -> bool:
        """Whether the base already tells AI from Real, so that its head is kept."""
        return self.label_map is not None


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A two-class model (output 0 AI, output 1 Real) and the transform that makes its inputs."""

    model: "torch.nn.Module"
    transform: EvaluationTransform


def find_base(model: str, *, ai_class: str | None = None) -> Base:
    """Find a base by scratch name, table name, folder or hub id, and check its files. Imports neither torch nor transformers.

    Raises:
        UsageError: no such base, or a hub that cannot be reached.
    """
    if model.startswith(SCRATCH):
        name = model.removeprefix(SCRATCH).lower()
        if name != TINY and name not in SWINS and name not in _BY_NAME:
            names = [TINY, *SWINS, *(backbone.name for backbone in BACKBONES)]
            raise UsageError(f"--model {model}: there is no such architecture; scratch: takes {', '.join(names)}")
        return Base(name=model, folder=None, label_map=None)
    folder = find_folder(_hub_id(model))
    config = read_json(os.path.join(folder, CONFIG))
    if not config.get("model_type") and not config.get("architecture"):
        raise UsageError(f"{folder}/{CONFIG} names no architecture (model_type): this is no checkpoint of transformers or timm")
    weight_files(folder)
    return Base(name=model, folder=folder, label_map=_detector_labels(config, folder, ai_class))


def load_base(base: Base) -> Classifier:
    """Build the model of a base in float32 on the CPU: a detector's head is kept, any other base gets a new one.

    A new head and random weights come from torch's global generator: seed it first.

    Raises:
        UsageError: transformers cannot build it.
    """
    if base.folder is None:
        return build_backbone(base.name.removeprefix(SCRATCH), pretrained=False)
    import transformers

    labels = {} if base.is_detector else {"num_labels": 2, "id2label": ID2LABEL, "label2id": LABEL2ID}
    safely = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(base.folder, **safely, **labels)
        if getattr(config, "model_args", None):  # timm writes its number of classes here too, and would be given it twice
            config.model_args = {name: value for name, value in config.model_args.items() if name != "num_classes"}
        model = transformers.AutoModelForImageClassification.from_pretrained(
            base.folder,
            config=config,
            use_safetensors=True,
            dtype="float32",
            ignore_mismatched_sizes=not base.is_detector,
            **safely,
        )
    except Exception as error:  # transformers raises what its many parsers raise; all of it means this folder
        raise UsageError(f"the checkpoint {base.name} cannot be loaded: {str(error).strip().splitlines()[0][:300]}") from error
    if base.label_map is not None:
        _orient_head(model, base.label_map)
    transform = _transform_of_base(base.folder, read_json(os.path.join(base.folder, CONFIG)))
    return Classifier(model=_named(model), transform=transform)


def build_backbone(name: str, *, num_labels: int = 2, pretrained: bool = True) -> Classifier:
    """Build an architecture of this module by name, with weights from the hub or (``pretrained=False``) random ones.

    Raises:
        UsageError: no such name, or weights that cannot be had.
    """
    if pretrained:
        return load_base(find_base(name))
    key = name.lower()
    if key == TINY:
        return Classifier(model=_swin(_TINY_SWIN, num_labels), transform=_TINY_TRANSFORM)
    if key in SWINS:
        _, width, depths, heads = SWINS[key]
        shape = {"embed_dim": width, "depths": list(depths), "num_heads": list(heads)}
        return Classifier(model=_swin(shape, num_labels), transform=_SWIN_TRANSFORM)
    if key not in _BY_NAME:
        raise UsageError(f"there is no backbone {name!r}: use one of {', '.join(backbone.name for backbone in BACKBONES)}")
    return _random_timm(_BY_NAME[key], num_labels)


def save_classifier(classifier: Classifier, folder: str) -> None:
    """Write a Hugging Face folder: safetensors, ``config.json`` with AI and Real, ``preprocessor_config.json``.

    Both ``transformers.pipeline`` and this project's scoring read it, with equal answers.
    """
    model: Any = classifier.model
    model.save_pretrained(folder)
    write_configs(folder, classifier.transform)


def write_configs(folder: str, transform: EvaluationTransform) -> None:
    """Complete a saved model's folder: class names in ``config.json``, and the preprocessor's file."""
    path = os.path.join(folder, CONFIG)
    config = read_json(path)
    config["id2label"] = {str(index): name for index, name in ID2LABEL.items()}  # timm's wrapper leaves them out
    config["label2id"] = LABEL2ID
    # With it transformers would not look at the preprocessor's file, and would resize with Pillow to another frame.
    config.pop("pretrained_cfg", None)
    _write_json(path, config)
    _write_json(os.path.join(folder, PREPROCESSOR), preprocessor_config(transform))


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


def _hub_id(model: str) -> str:
    """The hub id behind a table name; anything else is left as it is. A folder of that name comes first."""
    if os.path.exists(model):
        return model
    if model.lower() in SWINS:
        return SWINS[model.lower()][0]
    backbone = _BY_NAME.get(model.lower())
    if backbone is None:
        return model
    if not backbone.has_weights:
        raise UsageError(f"{backbone.name} has no pretrained weights at its published size: use {SCRATCH}{backbone.name}")
    return f"timm/{backbone.timm_id}"


def _detector_labels(config: dict[str, Any], folder: str, ai_class: str | None) -> LabelMap | None:
    """The label map of a base that is a detector already; any other base gets a new head."""
    try:
        classes = id2label_of(config, folder)
    except UsageError:
        return None
    if len(classes) != 2:
        return None
    if ai_class is not None:
        return map_classes(classes, ai_class=ai_class)
    try:
        return map_classes(classes)
    except UsageError:
        return None  # two classes of something else


def _transform_of_base(folder: str, config: dict[str, Any]) -> EvaluationTransform:
    pretrained = config.get("pretrained_cfg")
    if isinstance(pretrained, dict) and not os.path.exists(os.path.join(folder, PREPROCESSOR)):
        return _squash(pretrained)
    return transform_of(folder, config)


def _squash(pretrained: dict[str, Any]) -> EvaluationTransform:
    """The input size, resampling and statistics of timm, the whole picture squashed to the size: no border is cropped away."""
    own = EvaluationTransform.from_timm({**pretrained, "crop_pct": 1.0, "crop_mode": "squash"})
    return EvaluationTransform(
        resize_to=own.input_size,
        shortest_edge=None,
        crop=None,
        resample=own.resample,
        rescale=own.rescale,
        mean=own.mean,
        std=own.std,
    )


def _swin(shape: dict[str, Any], num_labels: int) -> "torch.nn.Module":
    import transformers

    config = transformers.SwinConfig(num_labels=num_labels, **shape)
    return _named(transformers.SwinForImageClassification(config))


def _random_timm(backbone: Backbone, num_labels: int) -> Classifier:
    import timm
    import transformers

    pretrained = timm.get_pretrained_cfg(backbone.timm_id).to_dict()
    pretrained.pop("num_classes", None)
    config = transformers.TimmWrapperConfig(
        architecture=backbone.timm_id.split(".")[0], num_labels=num_labels, pretrained_cfg=pretrained
    )
    model = transformers.AutoModelForImageClassification.from_config(config)
    return Classifier(model=_named(model), transform=_squash(pretrained))


def _named(model: Any) -> Any:
    """Give a two-class model the names AI and Real."""
    if model.config.num_labels == 2:
        model.config.id2label, model.config.label2id = dict(ID2LABEL), dict(LABEL2ID)
    return model


def _orient_head(model: "torch.nn.Module", label_map: LabelMap) -> None:
    """Swap the two rows of a detector's head where its output 0 is Real."""
    if label_map.ai_index == 0:
        return
    import torch

    heads = [
        module for module in model.modules()
        if (isinstance(module, torch.nn.Linear) and module.out_features == 2)
        or (isinstance(module, torch.nn.Conv2d) and module.out_channels == 2)
    ]  # fmt: skip
    if len(heads) != 1:
        raise UsageError(
            f"the checkpoint has {len(heads)} layers of two outputs, so its head cannot be told: retrain from its backbone"
        )
    with torch.no_grad():
        for parameter in heads[0].parameters(recurse=False):
            parameter.copy_(parameter.flip(0).clone())


def _write_json(path: str, value: dict[str, Any]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
