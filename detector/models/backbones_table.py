"""The architectures themselves: the comparison's ten in timm, three sizes of Swin, and a tiny one for tests and the demo."""

from dataclasses import dataclass

from detector.images.transforms import EvaluationTransform

SCRATCH = "scratch:"  # before a name: random weights
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
BY_NAME = {backbone.name.lower(): backbone for backbone in BACKBONES}
# transformers' own Swin: hub id, width of the first stage, blocks and heads of each stage (Liu et al. 2021, table 7).
SWINS: dict[str, tuple[str, int, tuple[int, ...], tuple[int, ...]]] = {
    "swin-tiny": ("microsoft/swin-tiny-patch4-window7-224", 96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "swin-small": ("microsoft/swin-small-patch4-window7-224", 96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "swin-base": ("microsoft/swin-base-patch4-window7-224", 128, (2, 2, 18, 2), (4, 8, 16, 32)),
}
SWIN_TRANSFORM = EvaluationTransform(
    resize_to=(224, 224), shortest_edge=None, crop=None, resample="bicubic", rescale=1 / 255,
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
)  # fmt: skip
# Small enough for two CPU cores: 96 pixels, three stages, no drop path, so that two workers see what one sees.
TINY_SWIN = {"image_size": 96, "patch_size": 4, "window_size": 4, "embed_dim": 32, "depths": [2, 2, 2], "num_heads": [2, 4, 8],
              "drop_path_rate": 0.0}  # fmt: skip
TINY_TRANSFORM = EvaluationTransform(
    resize_to=(96, 96), shortest_edge=None, crop=None, resample="bicubic", rescale=1 / 255,
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
)  # fmt: skip
