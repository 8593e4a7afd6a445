import csv
import os

import numpy as np
import pandas as pd
import pytest

from detector.evaluation.probe import probe_container

SEED = 11
ARTWORKS = os.path.join(os.path.dirname(__file__), "..", "..", "..", "shared", "data", "artworks", "sources.csv")


def files(truth, **columns):
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED)
    side = rng.integers(200, 2000, len(truth))
    table = {"truth": truth, "format": "JPEG", "bytes": side * 50.0, "width": side * 1.0, "height": side * 1.0}
    return pd.DataFrame({**table, **columns})


def test_a_container_that_says_nothing_scores_like_guessing():
    truth = np.random.default_rng(SEED + 1).integers(0, 2, 600)
    found = probe_container(files(truth))
    assert 0.4 < found.auc < 0.6
    assert not found.is_high


@pytest.mark.parametrize("given_away_by", ["format", "bytes", "width"])
def test_a_container_that_gives_the_class_away_is_found_out(given_away_by):
    truth = np.arange(200) % 2
    values = {"format": np.where(truth, "JPEG", "PNG"), "bytes": 1000.0 + truth * 9e6, "width": 512.0 + truth * 256}
    found = probe_container(files(truth, **{given_away_by: values[given_away_by]}))
    assert found.auc > 0.95
    assert found.is_high


def test_too_few_pictures_or_unknown_files_give_no_figure():
    assert probe_container(files(np.arange(38) % 2)) is None
    assert probe_container(files(np.zeros(100, dtype=int))) is None
    assert probe_container(files(np.arange(100) % 2, bytes=np.nan)) is None
    assert probe_container(files(np.arange(100) % 2, format="")) is None


@pytest.mark.skipif(not os.path.exists(ARTWORKS), reason="the shared set of real pictures is not beside the repository")
def test_the_shared_real_pictures_are_told_apart_by_their_containers():
    with open(ARTWORKS, encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    numbers = {name: [float(row[name]) for row in rows] for name in ("bytes", "width", "height")}
    table = pd.DataFrame(
        {"truth": [int(row["class"] != "AI") for row in rows], "format": [row["format"] for row in rows], **numbers}
    )
    assert probe_container(table).auc > 0.95
