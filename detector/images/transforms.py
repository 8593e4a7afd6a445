"""THE evaluation transform: one function from decoded pixels to a model's input, built from the checkpoint's own files.

Training's validation, scoring and the comparison all call it, so that there is no train/score skew. It reproduces the
torchvision back-end of transformers' image processors (resize on uint8 with antialiasing, centre crop, rescale and
normalise fused in float32); Pillow's own resize differs from it by up to 0.007 in a probability.

Building a transform needs no torch; applying one imports it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from detector.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch

# PIL.Image.Resampling numbers and timm's words → torch.nn.functional.interpolate's modes.
_RESAMPLE = {
    0: "nearest-exact",
    2: "bilinear",
    3: "bicubic",
    "nearest": "nearest-exact",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
}
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
# What each family of processors assumes for a key that its file leaves out (transformers' class attributes).
_DEFAULTS: dict[str, dict[str, Any]] = {
    "vit": {"size": {"height": 224, "width": 224}, "resample": 2, "stats": _HALF, "do_center_crop": False},
    "deit": {"size": {"height": 256, "width": 256}, "resample": 3, "stats": _IMAGENET, "do_center_crop": True,
             "crop_size": {"height": 224, "width": 224}},
    "convnext": {"size": {"shortest_edge": 384}, "resample": 3, "stats": _IMAGENET, "do_center_crop": False,
                 "crop_pct": 224 / 256},
    "beit": {"size": {"height": 224, "width": 224}, "resample": 3, "stats": _HALF, "do_center_crop": False},
    "bit": {"size": {"shortest_edge": 224}, "resample": 3, "stats": _CLIP, "do_center_crop": True,
            "crop_size": {"height": 224, "width": 224}},
    "clip": {"size": {"shortest_edge": 224}, "resample": 3, "stats": _CLIP, "do_center_crop": True,
             "crop_size": {"height": 224, "width": 224}},
    "siglip": {"size": {"height": 224, "width": 224}, "resample": 3, "stats": _HALF, "do_center_crop": False},
}  # fmt: skip


# A strip of 60,000 × 1 pixels, 254 bytes as PNG, would become 15,360,000 × 256 where the aspect is kept.
_MAX_RESIZED_PIXELS = 64_000_000


class ShapeError(ValueError):
    """A picture of a shape that this checkpoint's preprocessing cannot take."""


@dataclass(frozen=True, kw_only=True)
class EvaluationTransform:
    """From RGB pixels of any size to one model input.

    Attributes:
        resize: height and width in pixels that every picture is squashed to, or None.
        shortest_edge: length in pixels that the shorter side is resized to (aspect kept), or None.
        crop: height and width in pixels of the centre crop, or None.
        resample: mode of ``torch.nn.functional.interpolate``.
        rescale: factor from uint8 to the range that ``mean`` and ``std`` are given in (1/255).
        mean, std: per channel, RGB.
    """

    resize_to: tuple[int, int] | None
    shortest_edge: int | None
    crop: tuple[int, int] | None
    resample: str
    rescale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels of the model's input."""
        size = self.crop or self.resize_to
        assert size is not None, "a transform without a fixed output size is refused when it is built"
        return size

    @property
    def scaled_minimum(self) -> tuple[int, int] | None:
        """Height and width in pixels that a picture keeps when it is decoded at a smaller scale: twice what it is resized to.

        None where pictures are not resized: a smaller scale would be another picture.
        """
        height, width = self.resize_to or (self.shortest_edge, self.shortest_edge)
        return (2 * height, 2 * width) if height is not None and width is not None else None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable form; part of the model's fingerprint."""
        return asdict(self)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "EvaluationTransform":
        """Read a ``preprocessor_config.json``, in today's form or the one before transformers 4.27.

        Raises:
            UsageError: a processor of an unknown kind that leaves out a key, or a resampling this project cannot do exactly.
        """
        values = {**_defaults(config), **{k: v for k, v in config.items() if v is not None}}
        mean, std = values.get("image_mean") or values["stats"][0], values.get("image_std") or values["stats"][1]
        if not values.get("do_normalize", True):
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        geometry = _geometry(values)
        rescale = float(values.get("rescale_factor", 1 / 255)) if values.get("do_rescale", True) else 1.0
        return cls(**geometry, resample=_resample(values.get("resample")), rescale=rescale, mean=_three(mean), std=_three(std))

    @classmethod
    def from_timm(cls, pretrained: Mapping[str, Any]) -> "EvaluationTransform":
        """Read the ``pretrained_cfg`` of a timm model: its own input size, crop and normalisation.

        Raises:
            UsageError: a resampling or crop mode this project cannot do exactly.
        """
        height, width = (int(v) for v in (pretrained.get("input_size") or (3, 224, 224))[-2:])
        ratio = float(pretrained.get("crop_pct") or 0.875)
        mode = pretrained.get("crop_mode") or "center"
        if mode not in {"center", "squash"}:
            raise UsageError(f"the checkpoint's crop mode {mode!r} is not supported: use center or squash in its config.json")
        squash = mode == "squash" or height != width
        full = (int(height / ratio), int(width / ratio))
        return cls(
            resize_to=full if squash else None,
            shortest_edge=None if squash else full[0],
            crop=(height, width),
            resample=_resample(pretrained.get("interpolation") or "bicubic"),
            rescale=1 / 255,
            mean=_three(pretrained.get("mean") or _IMAGENET[0]),
            std=_three(pretrained.get("std") or _IMAGENET[1]),
        )

    def resize(self, pixels: "np.ndarray") -> "torch.Tensor":
        """Resize and crop one picture: uint8 [H, W, 3] → torch.uint8 [3, h, w], (h, w) = ``input_size``.

        torch's antialiased interpolation on uint8 gives torchvision v2's result bit for bit.

        Raises:
            ShapeError: the picture is so much longer than wide that resizing its short side would take gigabytes.
        """
        import torch

        return self.resize_tensor(torch.from_numpy(pixels).permute(2, 0, 1))

    def resize_tensor(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """As :meth:`resize`, for uint8 [3, H, W] on any device.

        A GPU interpolates in float32 and rounds, as torchvision v2 does there: at most one level from the CPU's result.

        Raises:
            ShapeError: as :meth:`resize`.
        """
        from torch.nn import functional

        picture = pixels.unsqueeze(0)
        height, width = self._target(picture.shape[-2], picture.shape[-1])
        if height * width > _MAX_RESIZED_PIXELS:
            raise ShapeError(
                f"{picture.shape[-1]} × {picture.shape[-2]} pixels would become {width} × {height} before the crop: too long"
            )
        if (height, width) != tuple(picture.shape[-2:]):
            smooth = self.resample in {"bilinear", "bicubic"}
            options = {"antialias": True, "align_corners": False} if smooth else {}
            source = picture.float() if smooth and picture.is_cuda else picture
            resized = functional.interpolate(source, size=(height, width), mode=self.resample, **options)
            picture = resized.round_().clamp_(0, 255).to(picture.dtype) if source is not picture else resized
        return _center_crop(picture[0], self.crop) if self.crop else picture[0]

    def normalize(self, batch: "torch.Tensor", constants: "tuple[torch.Tensor, torch.Tensor] | None" = None) -> "torch.Tensor":
        """Rescale and normalise on the batch's device: uint8 [N, 3, h, w] → float32 [N, 3, h, w].

        ``(x − mean/rescale) / (std/rescale)`` in one step, as transformers fuses it. ``constants`` are those of
        :meth:`constants`, where they are at hand: making them for a GPU waits for it.
        """
        import torch

        mean, std = constants or self.constants(batch.device)
        return batch.to(torch.float32).sub_(mean).div_(std)

    def constants(self, device: "torch.device") -> "tuple[torch.Tensor, torch.Tensor]":
        """mean/rescale and std/rescale: float32 [1, 3, 1, 1] on ``device``."""
        import torch

        mean, std = (
            (torch.tensor(values, dtype=torch.float32) * (1.0 / self.rescale)).view(1, 3, 1, 1).to(device)
            for values in (self.mean, self.std)
        )
        return mean, std

    def _target(self, height: int, width: int) -> tuple[int, int]:
        if self.resize_to is not None:
            return self.resize_to
        if self.shortest_edge is None:
            return height, width
        short, long = sorted((height, width))
        longer = max(1, int(self.shortest_edge * long / short))
        return (self.shortest_edge, longer) if height <= width else (longer, self.shortest_edge)


def _center_crop(picture: "torch.Tensor", size: tuple[int, int]) -> "torch.Tensor":
    """Cut [3, H, W] to ``size`` around its centre; a smaller picture is padded with black, as transformers does."""
    from torch.nn import functional

    pad_h, pad_w = max(size[0] - picture.shape[-2], 0), max(size[1] - picture.shape[-1], 0)
    if pad_h or pad_w:
        picture = functional.pad(picture, (pad_w // 2, (pad_w + 1) // 2, pad_h // 2, (pad_h + 1) // 2))
    top, left = (picture.shape[-2] - size[0]) // 2, (picture.shape[-1] - size[1]) // 2
    return picture[:, top : top + size[0], left : left + size[1]]


def _defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    family = (
        kind.lower().removesuffix("fast").removesuffix("pil").removesuffix("imageprocessor").removesuffix("featureextractor")
    )
    if family in _DEFAULTS:
        return dict(_DEFAULTS[family])
    missing = [key for key in ("size", "resample", "image_mean", "image_std") if config.get(key) is None]
    if missing:
        raise UsageError(
            f"preprocessor_config.json is of an unknown kind ({kind or 'unnamed'}) and leaves out {', '.join(missing)}"
        )
    return {"stats": _HALF, "do_center_crop": False}


def _geometry(values: Mapping[str, Any]) -> dict[str, Any]:
    """Resize and crop from the many ways in which processors write them."""
    crop = _size(values.get("crop_size") or values["size"]) if values.get("do_center_crop") else None
    if not values.get("do_resize", True):
        if crop is None:
            raise UsageError("preprocessor_config.json neither resizes nor crops: a model needs one input size")
        return {"resize_to": None, "shortest_edge": None, "crop": crop}
    size = values["size"]
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else None
    if isinstance(size, int) and isinstance(values["stats"], tuple) and "crop_pct" in values:
        edge = size  # ConvNext files before 4.27 give the edge as a bare number
    if edge is None:
        return {"resize_to": _size(size), "shortest_edge": None, "crop": crop}
    edge = int(edge)
    if "crop_pct" in values:  # ConvNext: crops below 384 pixels, squashes from there on
        if edge >= 384:
            return {"resize_to": (edge, edge), "shortest_edge": None, "crop": crop}
        return {"resize_to": None, "shortest_edge": int(edge / values["crop_pct"]), "crop": (edge, edge)}
    if crop is None:
        raise UsageError("preprocessor_config.json keeps the aspect ratio and does not crop: a model needs one input size")
    return {"resize_to": None, "shortest_edge": edge, "crop": crop}


def _size(size: object) -> tuple[int, int]:
    if isinstance(size, Mapping) and "height" in size and "width" in size:
        return int(size["height"]), int(size["width"])
    if isinstance(size, Mapping) and "shortest_edge" in size:
        return int(size["shortest_edge"]), int(size["shortest_edge"])
    if isinstance(size, int):
        return size, size
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return int(size[0]), int(size[1])
    raise UsageError(f"preprocessor_config.json gives a size that is not understood: {size!r}")


def _resample(value: object) -> str:
    mode = _RESAMPLE.get(value if isinstance(value, (int, str)) else -1)
    if mode is None:
        raise UsageError(
            f"preprocessor_config.json asks for resample {value!r}: only nearest (0), bilinear (2) and bicubic (3) are exact"
        )
    return mode


def _three(values: object) -> tuple[float, float, float]:
    if isinstance(values, (list, tuple)) and len(values) == 3:
        return float(values[0]), float(values[1]), float(values[2])
    raise UsageError(f"preprocessor_config.json: mean and std need one number for each of R, G and B, not {values!r}")
