"""The generated corpus: deterministic, balanced, and without a shortcut past the picture."""

import hashlib
import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from detector.errors import UsageError
from detector.images import synthetic
from detector.images.synthetic import CorpusSpec, write_corpus
from detector.images.synthetic_sources import LATENT_STRIDE_PX
from detector.labels import Label
from tests.images.container_probe import colour_features, container_features, probe_auc, read_labels

SEEDS = (1, 2, 3)
NUM_PROBED = 400


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Folder of the split ``train`` of one corpus per seed."""
    folders = {}
    for seed in SEEDS:
        folder = tmp_path_factory.mktemp(f"seed{seed}")
        write_corpus(str(folder), CorpusSpec(seed=seed, images_per_split={"train": NUM_PROBED}), workers=2)
        folders[seed] = str(folder / "train")
    return folders


def digests(folder):
    """Relative path → SHA-256 of every file under ``folder``."""
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, folder)] = hashlib.sha256(file.read()).hexdigest()
    return found


def grid_energy(path):
    """Share of the grey picture's energy at the latent grid's own frequency, along rows and columns."""
    with Image.open(path) as image:
        grey = np.asarray(image.convert("L"), dtype=np.float64)
    energy = 0.0
    for profile in (np.diff(grey, axis=0).mean(axis=1), np.diff(grey, axis=1).mean(axis=0)):
        wave = np.exp(-2j * np.pi * np.arange(len(profile)) / LATENT_STRIDE_PX)
        energy += abs((profile - profile.mean()) @ wave) ** 2 / len(profile) / profile.var()
    return energy


def test_bytes_depend_on_the_spec_alone_not_on_the_number_of_processes(tmp_path):
    spec = CorpusSpec(seed=7, images_per_split={"train": 20, "test": 6})
    first = write_corpus(str(tmp_path / "one"), spec, workers=1)
    write_corpus(str(tmp_path / "two"), spec, workers=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    write_corpus(str(tmp_path / "one"), spec, workers=1)  # again over its own files
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert first["train"] == {
        "images": str(tmp_path / "one" / "train" / "images"),
        "labels": str(tmp_path / "one" / "train" / "labels.csv"),
        "num_images": 20, "num_ai": 10, "num_real": 10,
    }  # fmt: skip


def test_another_split_or_more_of_it_leaves_a_picture_as_it_was():
    small = CorpusSpec(seed=7, images_per_split={"train": 4})
    large = CorpusSpec(seed=7, images_per_split={"test": 2, "train": 4})
    assert [synthetic.render_picture(small, "train", i) for i in range(4)] == [
        synthetic.render_picture(large, "train", i) for i in range(4)
    ]


def test_no_scene_appears_twice_in_or_across_splits_and_seeds(monkeypatch):
    scenes = []
    draw = synthetic.draw_scene
    monkeypatch.setattr(synthetic, "draw_scene", lambda *a, **k: scenes.append(draw(*a, **k)) or scenes[-1])
    for seed in (7, 8):
        spec = CorpusSpec(seed=seed, images_per_split={"train": 6, "test": 6}, max_side_px=96)  # one size: comparable
        for split in spec.images_per_split:
            for number in range(6):
                synthetic.render_picture(spec, split, number)
    flat = np.stack([scene.structure.mean(axis=2).ravel() for scene in scenes])
    alike = np.corrcoef(flat) - np.eye(len(flat))
    assert np.abs(alike).max() < 0.9


def test_every_class_has_half_of_each_split_and_the_order_of_names_tells_nothing(corpora):
    for seed, folder in corpora.items():
        paths, labels = read_labels(folder)
        assert paths == sorted(paths)
        assert sorted(os.path.basename(path) for path in paths) == sorted(os.listdir(os.path.join(folder, "images")))
        assert (labels == Label.AI).sum() == (labels == Label.REAL).sum() == NUM_PROBED // 2
        assert 0.4 < roc_auc_score(labels, np.arange(len(labels))) < 0.6, f"seed {seed}"
        assert 0.4 < (labels[1:] == labels[:-1]).mean() < 0.6, f"seed {seed}: classes come in turns or in blocks"


@pytest.mark.parametrize("seed", SEEDS)
def test_format_size_weight_and_jpeg_tables_do_not_tell_the_classes_apart(corpora, seed):
    paths, labels = read_labels(corpora[seed])
    auc = probe_auc(np.array([container_features(path) for path in paths]), labels)
    print(f"seed {seed}: container probe {auc:.3f}")
    assert auc <= 0.60


@pytest.mark.parametrize("seed", SEEDS)
def test_brightness_contrast_and_saturation_do_not_tell_the_classes_apart(corpora, seed):
    paths, labels = read_labels(corpora[seed])
    auc = probe_auc(np.array([colour_features(path) for path in paths]), labels)
    print(f"seed {seed}: colour probe {auc:.3f}")
    assert auc <= 0.60


def both_ways(monkeypatch, features, *, number_of_pictures=24):
    """``features`` of the same scenes as AI and as Real, [picture, feature] each."""
    spec = CorpusSpec(seed=5, images_per_split={"train": number_of_pictures})
    found = []
    for label in Label:
        monkeypatch.setattr(synthetic, "draw_labels", lambda _spec, _split, label=label: [label] * number_of_pictures)
        files = (synthetic.render_picture(spec, "train", number) for number in range(number_of_pictures))
        found.append(np.array([features(file) for file in files]))
    return found


def test_a_scene_weighs_the_same_in_either_class_and_would_not_without_levelling(monkeypatch):
    ai, real = both_ways(monkeypatch, len)
    assert np.quantile(np.abs(np.log(ai / real)), 0.8) < 0.04
    monkeypatch.setattr(synthetic, "_level", lambda render, target_bytes: render(0.05))
    ai, real = both_ways(monkeypatch, len)
    assert np.quantile(np.abs(np.log(ai / real)), 0.8) > 0.08


def test_a_scene_has_the_same_colours_in_either_class_and_would_not_without_grading(monkeypatch):
    ai, real = both_ways(monkeypatch, lambda file: colour_features(io.BytesIO(file)))
    assert np.median(np.abs(ai - real), axis=0).max() < 0.004
    monkeypatch.setattr(synthetic, "_grade", lambda image, like: image)
    ai, real = both_ways(monkeypatch, lambda file: colour_features(io.BytesIO(file)))
    assert np.median(np.abs(ai - real), axis=0).max() > 0.008


def test_the_probes_find_a_shortcut_that_is_there(corpora, tmp_path):
    paths, labels = read_labels(corpora[1])
    container, colour = [], []
    for path, label in zip(paths, labels, strict=True):
        container.append(container_features(path))
        container[-1][4:6] = (value * (0.7 if label == Label.AI else 1.0) for value in container[-1][4:6])
        colour.append(np.array(colour_features(path)) + (0.1 if label == Label.AI else 0.0))
    assert probe_auc(np.array(container), labels) > 0.60
    assert probe_auc(np.array(colour), labels) > 0.60


@pytest.mark.parametrize("seed", SEEDS)
def test_the_latent_grid_shows_in_generated_pictures_alone(corpora, seed):
    paths, labels = read_labels(corpora[seed])
    auc = roc_auc_score(labels == Label.AI, [grid_energy(path) for path in paths])
    print(f"seed {seed}: latent grid {auc:.3f}")
    assert auc >= 0.95


def test_a_folder_with_other_pictures_is_refused(tmp_path):
    images = tmp_path / "train" / "images"
    images.mkdir(parents=True)
    (images / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"holiday\.jpg.*empty folder"):
        write_corpus(str(tmp_path), CorpusSpec(seed=1, images_per_split={"train": 2}), workers=1)
    assert os.listdir(images) == ["holiday.jpg"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"images_per_split": {}}, {"images_per_split": {"train": 3}}, {"images_per_split": {"train": 0}},
        {"images_per_split": {"../train": 2}}, {"min_side_px": 130}, {"min_side_px": 8}, {"min_quality": 96}, {"seed": -1},
    ],
)  # fmt: skip
def test_a_spec_that_cannot_be_drawn_is_refused(wrong):
    with pytest.raises(UsageError):
        CorpusSpec(**{"seed": 1, "images_per_split": {"train": 2}} | wrong)


def test_drawing_pictures_needs_neither_torch_nor_ray():
    code = "import sys, detector.images.synthetic; print(sorted({'torch', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
