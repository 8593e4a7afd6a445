"""The training augmentation: uint8 in and out, seeded by its caller, blind to the label."""

import numpy as np
import pytest
import torch

from detector.images import augmentation
from detector.images.augmentation import TrainingAugmentation

SEED = 13


def picture(height=60, width=90, seed=SEED):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("robust", [False, True])
@pytest.mark.parametrize("shape", [(60, 90), (1, 1), (3, 400), (500, 2), (224, 224)])
def test_any_picture_becomes_one_input_of_the_model(robust, shape):
    augment = TrainingAugmentation(size=(32, 48), robust=robust)
    for seed in range(8):
        out = augment(picture(*shape), np.random.default_rng(seed))
        assert (out.dtype, tuple(out.shape), out.is_contiguous()) == (torch.uint8, (3, 32, 48), True)


@pytest.mark.parametrize("robust", [False, True])
def test_the_same_generator_gives_the_same_bytes_and_the_source_stays(robust):
    augment, pixels = TrainingAugmentation(size=(32, 32), robust=robust), picture()
    before = pixels.copy()
    first = augment(pixels, np.random.default_rng(SEED))
    assert torch.equal(first, augment(pixels, np.random.default_rng(SEED)))
    assert not torch.equal(first, augment(pixels, np.random.default_rng(SEED + 1)))
    assert np.array_equal(pixels, before)


def test_crops_keep_the_asked_share_and_shape():
    """The distribution of torchvision's RandomResizedCrop: area from the asked share to 1, ratio from 3/4 to 4/3."""
    augment = TrainingAugmentation(size=(32, 32), min_scale=0.3)
    rng = np.random.default_rng(SEED)
    for _ in range(300):
        top, left, height, width = augment._crop(400, 500, rng)
        assert 0 <= top <= 400 - height
        assert 0 <= left <= 500 - width
        assert 0.29 <= height * width / (400 * 500) <= 1
        assert 0.74 <= width / height <= 1.35


def test_half_of_the_pictures_are_flipped():
    augment = TrainingAugmentation(size=(8, 8), min_scale=1.0)
    ramp = np.repeat(np.arange(0, 240, 8, dtype=np.uint8)[None, :, None], 30, axis=0).repeat(3, axis=2)
    flipped = [bool(out[0, 4, 0] > out[0, 4, -1]) for out in (augment(ramp, np.random.default_rng(s)) for s in range(200))]
    assert np.mean(flipped) == pytest.approx(0.5, abs=0.12)


def test_blur_keeps_the_mean_and_takes_the_contrast():
    pixels = picture()
    blurred = augmentation._blur(pixels, 2.0)
    assert blurred.shape == pixels.shape
    assert blurred.mean() == pytest.approx(pixels.mean(), abs=1.5)
    assert blurred.std() < pixels.std() / 3


def test_robust_damage_reaches_about_seven_of_eight_pictures_and_plain_none():
    """Three kinds, each with probability one half; JPEG at quality 100 still changes noise."""
    pixels = picture()
    changed = [not np.array_equal(augmentation._damage(pixels, np.random.default_rng(s)), pixels) for s in range(200)]
    assert np.mean(changed) == pytest.approx(7 / 8, abs=0.08)
