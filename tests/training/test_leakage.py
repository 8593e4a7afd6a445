"""What counts as nearly the same picture: both hashes close and the thumbnail too, none of them alone."""

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from detector.training.leakage import SIGNATURES_SCHEMA, find_pairs, signature

SEED = 17


def table(*signatures, prefix=""):
    return pa.table([[f"{prefix}{i}" for i in range(len(signatures))], list(signatures)], schema=SIGNATURES_SCHEMA)


def scene(seed=SEED, size=(160, 120)):
    low = np.random.default_rng(seed).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    return Image.fromarray(low).resize(size, 3)


def pairs(first, second):
    return [(pair.first, pair.second, pair.same_bytes) for pair in find_pairs(first, second)]


def test_resized_and_recompressed_copies_are_found_among_others(tmp_path):
    print(f"seed {SEED}")
    others = [signature(np.asarray(scene(seed))) for seed in range(100, 140)]
    scene().save(tmp_path / "x.jpg", quality=30)
    with Image.open(tmp_path / "x.jpg") as picture:
        copies = [np.asarray(picture.convert("RGB")), np.asarray(scene().resize((81, 60), 3))]
    second = table(*others, *(signature(copy) for copy in copies), prefix="b")
    assert pairs(table(signature(np.asarray(scene())), prefix="a"), second) == [(0, 40, False), (0, 41, False)]


def test_flat_pictures_of_two_colours_are_two_pictures():
    """Their hashes are equal; only the thumbnail tells them apart."""
    red, blue = (np.full((50, 70, 3), colour, dtype=np.uint8) for colour in ((200, 0, 0), (0, 0, 200)))
    assert signature(red)[:40] == signature(blue)[:40]
    assert pairs(table(signature(red), prefix="a"), table(signature(blue), prefix="b")) == []
    assert pairs(table(signature(red), prefix="a"), table(signature(red.copy()), prefix="b")) == [(0, 0, False)]


@pytest.mark.parametrize("where", [range(8), range(8, 40)])
def test_one_hash_alone_is_not_enough(where):
    one = signature(np.asarray(scene()))
    other = bytearray(one)
    for index in where:
        other[index] ^= 0x55
    assert pairs(table(one, prefix="a"), table(bytes(other), prefix="b")) == []


def test_equal_bytes_are_told_from_nearly_equal_pictures():
    one = signature(np.asarray(scene()))
    found = pairs(table(one, prefix="same"), table(one, prefix="same"))
    assert found == [(0, 0, True)]
