"""A checkpoint says which way of decoding it was validated with, and is refused with another."""

import json
import os

import pytest

from detector.errors import UsageError
from detector.images.pixels import DECODER_MODE, DECODERS
from detector.images.transforms import EvaluationTransform
from detector.models.backbones_files import write_configs
from detector.models.checkpoint import inspect_checkpoint
from tests.checkpoints import save_swin


def test_absent_means_full_and_written_means_that_one(tmp_path):
    folder = save_swin(tmp_path)
    plain = inspect_checkpoint(folder)
    assert plain.decode_modes == ("full",)
    plain.require_decode_mode("full")
    with pytest.raises(UsageError, match=r"--decode scaled.*--decode full.*jobs.train --decode scaled"):
        plain.require_decode_mode("scaled")
    write_configs(folder, plain.transform, decode="scaled")
    scaled = inspect_checkpoint(folder)
    assert scaled.decode_modes == ("scaled",)
    scaled.require_decode_mode("scaled")
    with pytest.raises(UsageError, match="--decode scaled"):
        scaled.require_decode_mode("full")
    assert scaled.transform == plain.transform
    write_configs(folder, plain.transform)
    assert inspect_checkpoint(folder).decode_modes == ("full",)


@pytest.mark.parametrize("value", ["scaled", [], ["half"], {"scaled": 1}, 1])
def test_what_is_no_way_to_decode_is_refused(tmp_path, value):
    folder = save_swin(tmp_path)
    path = os.path.join(folder, "preprocessor_config.json")
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config | {"decode_modes": value}, file)
    with pytest.raises(UsageError, match="decode_modes"):
        inspect_checkpoint(folder)


def test_full_decoding_keeps_its_name_in_the_fingerprint():
    """Another name would give every score a second life: raise it only when pixels change."""
    assert DECODERS["full"] == DECODER_MODE == "simplejpeg+pillow/1"
    assert len(set(DECODERS.values())) == len(DECODERS)


@pytest.mark.parametrize(
    ("geometry", "minimum"),
    [
        ({"resize_to": (224, 192), "shortest_edge": None, "crop": None}, (448, 384)),
        ({"resize_to": None, "shortest_edge": 256, "crop": (224, 224)}, (512, 512)),
        ({"resize_to": None, "shortest_edge": None, "crop": (224, 224)}, None),
    ],
)
def test_a_scaled_picture_keeps_twice_the_size_that_it_is_resized_to(geometry, minimum):
    same = {"resample": "bicubic", "rescale": 1 / 255, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    assert EvaluationTransform(**geometry, **same).scaled_minimum == minimum
