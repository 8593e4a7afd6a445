"""Scores agree with ``transformers.pipeline("image-classification")`` on the same checkpoint and the same pictures."""

import os
import pathlib

import numpy as np
import pytest
import torch

from detector.images.decoding import Decoder
from detector.images.pixels import DecodeLimits
from detector.models.checkpoint import inspect_checkpoint
from detector.models.devices import resolve_settings
from detector.models.predictor import Predictor
from tests import pictures
from tests.checkpoints import save_swin

ARTWORKS = pathlib.Path(__file__).parents[3] / "shared" / "data" / "artworks"
SIZE = {"image_size": 96, "patch_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4), "window_size": 6}


def files():
    """At least 100 labelled pictures of every format that the set has, evenly spread; generated ones of every mode beside."""
    found = sorted(ARTWORKS.glob("*/*"))
    by_suffix = {}
    for path in found:
        by_suffix.setdefault(path.suffix.lower(), []).append(path)
    return [path for group in by_suffix.values() for path in group[:: max(1, len(group) // 60)][:60]]


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    generated = tmp_path_factory.mktemp("generated")
    names = pictures.folder(generated, 36, seed=7)
    paths = [str(generated / name) for name in names]
    return paths + [str(path) for path in files()]


def ours(checkpoint, paths, precision):
    predictor = Predictor.load(checkpoint, resolve_settings(kind="cpu", batch_size=16, precision=precision))
    with Decoder(DecodeLimits()) as decoder:
        resized = [checkpoint.transform.resize(picture.pixels).numpy() for picture in decoder.decode(map(os.fsencode, paths))]
    return predictor.predict_all(np.stack(resized))


def theirs(folder, paths):
    from transformers import pipeline

    names = {"AI", "artificial"}
    classify = pipeline("image-classification", model=folder, dtype=torch.float32)
    answers = classify(paths, top_k=2)
    return np.array([next(a["score"] for a in answer if a["label"] in names) for answer in answers])


@pytest.mark.parametrize("old_form", [False, True], ids=["today", "2022"])
def test_scores_agree_with_transformers(tmp_path, sample, old_form):
    names = ("human", "artificial") if old_form else ("AI", "Real")
    folder = save_swin(tmp_path / "model", names=names, old_form=old_form, seed=3, spread=6.3, **SIZE)
    checkpoint = inspect_checkpoint(folder)
    expected, fp32, bf16 = theirs(folder, sample), ours(checkpoint, sample, "fp32"), ours(checkpoint, sample, "bf16")
    logits = np.log(expected / (1 - expected))
    print(
        f"{len(sample)} pictures, logit spread {logits.std():.2f}; fp32 max |Δp| {np.abs(fp32 - expected).max():.2e}; "
        f"bf16 mean {np.abs(bf16 - fp32).mean():.4f} max {np.abs(bf16 - fp32).max():.4f}"
    )
    assert 2.5 < logits.std() < 4.0, "the pictures must spread by about 3, or agreement proves nothing"
    assert np.abs(fp32 - expected).max() <= 1e-3
    assert ((fp32 >= 0.5) == (expected >= 0.5)).all()
    assert np.abs(bf16 - expected).mean() <= 0.01
    assert np.abs(bf16 - expected).max() <= 0.05
    clear = np.abs(expected - 0.5) >= 0.05
    assert ((bf16 >= 0.5) == (expected >= 0.5))[clear].all()


@pytest.mark.skipif(not ARTWORKS.is_dir(), reason="../shared/data/artworks is not here")
def test_the_sample_is_large_and_mixed(sample):
    real = [path for path in sample if str(ARTWORKS) in path]
    assert len(real) >= 100
    assert len({os.path.splitext(path)[1].lower() for path in real}) >= 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_score_does_not_depend_on_its_neighbours(tmp_path, precision):
    """Bit-identical alone, among others, in another order and with another thread count: every batch has one padded shape."""
    checkpoint = inspect_checkpoint(save_swin(tmp_path / "model", **SIZE))
    predictor = Predictor.load(checkpoint, resolve_settings(kind="cpu", batch_size=8, precision=precision))
    rng = np.random.default_rng(11)
    batch = rng.integers(0, 256, (21, 3, 96, 96), dtype=np.uint8)
    together = predictor.predict_all(batch)
    order = rng.permutation(len(batch))
    alone = np.concatenate([predictor.predict_all(batch[i : i + 1]) for i in range(len(batch))])
    assert (predictor.predict_all(batch[order]) == together[order]).all()
    assert (alone == together).all()
    torch.set_num_threads(2)
    try:
        assert (predictor.predict_all(batch) == together).all()
    finally:
        torch.set_num_threads(1)
