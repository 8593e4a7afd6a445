"""How well the two classes can be told apart without looking at the picture: a probe for shortcuts in a corpus.

``container_features`` sees the file alone: format, size in pixels and bytes, bytes per pixel, JPEG tables, sampling.
``colour_features`` sees brightness, contrast and saturation. ``probe_auc`` cross-validates a forest and a logistic
regression on them and returns the better area under the ROC curve: 0.5 is chance.
"""

import csv
import os

import numpy as np
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def read_labels(split_folder: str) -> tuple[list[str], np.ndarray]:
    """Paths and labels (0 = AI, 1 = Real) of one split of a corpus, from its ``labels.csv``."""
    with open(os.path.join(split_folder, "labels.csv"), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    paths = [os.path.join(split_folder, "images", row["filename"]) for row in rows]
    return paths, np.array([int(row["label"]) for row in rows])


def container_features(path: str) -> list[float]:
    """What the file's outside says: never a decoded pixel."""
    size_bytes = os.path.getsize(path)
    with Image.open(path) as image:
        width, height = image.size
        tables = [sum(table) for _, table in sorted(getattr(image, "quantization", {}).items())]
        sampling = [component[1] for component in getattr(image, "layer", [])]
        bands, is_jpeg = len(image.getbands()), image.format == "JPEG"
    padded_tables = [*tables, 0, 0][:2]
    padded_sampling = [*sampling, 0, 0, 0][:3]
    shape = [width, height, width * height, width / height]
    return [*shape, size_bytes, size_bytes / (width * height), bands, is_jpeg, *padded_tables, *padded_sampling]


def colour_features(path: str) -> list[float]:
    """Mean and deviation of luminance, saturation and each channel."""
    with Image.open(path) as image:
        rgb = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    luminance, saturation = rgb.mean(axis=2), rgb.max(axis=2) - rgb.min(axis=2)
    planes = [luminance, saturation, rgb[..., 0], rgb[..., 1], rgb[..., 2]]
    return [float(value) for plane in planes for value in (plane.mean(), plane.std())]


def probe_auc(features: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> float:
    """The better of two probes' cross-validated AUC (5 folds)."""
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    probes = (
        RandomForestClassifier(100, min_samples_leaf=5, random_state=seed),
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
    )
    return max(
        float(roc_auc_score(labels, cross_val_predict(probe, features, labels, cv=folds, method="predict_proba")[:, 1]))
        for probe in probes
    )
