"""Models to fine-tune a detector from: found, checked and built.

A base is named by a folder, a hub id, a name of ``backbones_table.py``, or ``scratch:NAME`` (random weights, no network).
What comes out is always a two-class classifier whose output 0 is AI and output 1 is Real, with the evaluation transform
that belongs to it: input size, resampling, mean and standard deviation are each architecture's own.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from detector.errors import UsageError
from detector.images.transforms import EvaluationTransform
from detector.labels import ID2LABEL, LABEL2ID, LabelMap, map_classes
from detector.models.backbones_table import (
    BACKBONES,
    BY_NAME,
    SCRATCH,
    SWIN_TRANSFORM,
    SWINS,
    TINY,
    TINY_SWIN,
    TINY_TRANSFORM,
    Backbone,
)  # fmt: skip
from detector.models.checkpoint import CONFIG, PREPROCESSOR, find_folder, id2label_of, read_json, transform_of, weight_files

if TYPE_CHECKING:
    import torch


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
        if name != TINY and name not in SWINS and name not in BY_NAME:
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
        return Classifier(model=_swin(TINY_SWIN, num_labels), transform=TINY_TRANSFORM)
    if key in SWINS:
        _, width, depths, heads = SWINS[key]
        shape = {"embed_dim": width, "depths": list(depths), "num_heads": list(heads)}
        return Classifier(model=_swin(shape, num_labels), transform=SWIN_TRANSFORM)
    if key not in BY_NAME:
        raise UsageError(f"there is no backbone {name!r}: use one of {', '.join(backbone.name for backbone in BACKBONES)}")
    return _random_timm(BY_NAME[key], num_labels)


def _hub_id(model: str) -> str:
    """The hub id behind a table name; anything else is left as it is. A folder of that name comes first."""
    if os.path.exists(model):
        return model
    if model.lower() in SWINS:
        return SWINS[model.lower()][0]
    backbone = BY_NAME.get(model.lower())
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
