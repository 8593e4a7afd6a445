"""How well the container alone, without a look at one pixel, tells the classes of a test set apart.

Collections of AI pictures and of human-made ones come from different places and were saved by different programs, so
that format, size and compression often give the class away. On such a set a detector may score well by reading the
container. The probe measures this: where it does well, a good result of the detector on the set is no proof.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from detector.labels import Label

NUM_FOLDS = 5
MIN_PER_CLASS = 20  # below it the folds hold fewer than four pictures of a class: no figure rather than a random one
MAX_IMAGES = 10_000  # a random sample of this size is plenty for an AUC to two digits, and takes seconds
HIGH_AUC = 0.70


@dataclass(frozen=True, kw_only=True)
class ContainerProbe:
    """``auc`` is the mean ROC AUC over the folds on held-out pictures, ``spread`` its standard deviation over them."""

    auc: float
    spread: float
    num_images: int
    features: tuple[str, ...]

    @property
    def is_high(self) -> bool:
        """Whether the container gives the class away."""
        return self.auc >= HIGH_AUC


def probe_container(table: pd.DataFrame, *, seed: int = 0) -> ContainerProbe | None:
    """Cross-validate a random forest on format, size and bytes per pixel alone.

    Args:
        table: columns ``truth`` (0 AI, 1 Real), ``format``, ``bytes``, ``width``, ``height``, one row per picture.
        seed: of the sample, the folds and the forest.

    Returns:
        The result, or None where fewer than :data:`MIN_PER_CLASS` pictures of a class have all these columns.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    known = table[(table["format"] != "") & (table[["bytes", "width", "height"]] > 0).all(axis=1)]
    if len(known) > MAX_IMAGES:
        known = known.sample(MAX_IMAGES, random_state=seed)
    is_ai = (known["truth"] == Label.AI).to_numpy()
    if min(is_ai.sum(), (~is_ai).sum()) < MIN_PER_CLASS:
        return None
    features = _features(known)
    forest = RandomForestClassifier(n_estimators=50, min_samples_leaf=3, random_state=seed, n_jobs=1)
    folds = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=seed)
    scores = cross_val_score(forest, features.to_numpy(), is_ai, scoring="roc_auc", cv=folds)
    return ContainerProbe(
        auc=float(scores.mean()),
        spread=float(scores.std()),
        num_images=len(known),
        features=("format", "width", "height", "bytes per pixel"),
    )


def _features(known: pd.DataFrame) -> pd.DataFrame:
    """Sizes as logarithms, the shape, bytes per pixel, and one column per format."""
    numbers = pd.DataFrame({
        "width": np.log2(known["width"]),
        "height": np.log2(known["height"]),
        "shape": np.log2(known["width"] / known["height"]),
        "bytes_per_pixel": np.log2(known["bytes"] / (known["width"] * known["height"])),
    })  # fmt: skip
    formats = pd.get_dummies(known["format"], prefix="format")
    return pd.concat([numbers, formats], axis=1)
