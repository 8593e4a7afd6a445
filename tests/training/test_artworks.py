"""Real pictures from end to end: prepared, trained on by two workers, and scored alike by jobs.score and transformers."""

import pathlib
import shutil

import pyarrow.parquet as pq
import pytest
from PIL import Image

from detector.scoring.config import ScoreConfig
from detector.scoring.score import score
from detector.training import finetune
from detector.training.config import TrainConfig
from detector.training.preparation import prepare
from detector.training.prepare_config import PrepareConfig

ARTWORKS = pathlib.Path(__file__).parents[3] / "shared" / "data" / "artworks"
PER_CLASS, SEED = 20, 17
TOLERANCE = 1e-5  # fp32 on a CPU; a batch of 16 against one picture at a time moves p by up to 5e-7
pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(not ARTWORKS.is_dir(), reason="../shared/data/artworks is not here"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, ray_here):
    """(data folder, checkpoint folder, summary) of a short training on pictures of every size and format of the set."""
    print(f"seed {SEED}")
    top = tmp_path_factory.mktemp("artworks")
    for label in ("AI", "Real"):
        found = sorted((ARTWORKS / label).iterdir(), key=lambda path: (path.stem, path.suffix))
        folder = top / "chosen" / label
        folder.mkdir(parents=True)
        for path in found[:: len(found) // PER_CLASS][:PER_CLASS]:
            shutil.copy(path, folder)
        prepare(PrepareConfig(label=label, images=(str(folder),), split="train", source="artworks", out=str(top / "data")))
    config = TrainConfig(
        data=str(top / "data"), model="scratch:tiny", out=str(top / "model"), workers=2, epochs=2, batch_size=8,
        gradient_accumulation=1, learning_rate=1e-3, seed=SEED,
    )  # fmt: skip
    return top / "data", top / "model", finetune.finetune(config)


def test_real_pictures_train_on_two_workers(trained):
    _, _, summary = trained
    assert summary["train_images"] + summary["validation_images"] == 2 * PER_CLASS
    assert (summary["workers"], summary["epochs"], summary["dropped"]) == (2, 2, 0)
    assert 0 <= summary["best_metric"] <= 1


def test_the_trained_folder_scores_real_pictures_as_transformers_does(trained, tmp_path):
    from transformers import pipeline

    data, model, _ = trained
    score(
        ScoreConfig(
            images=(str(data / "train"),),
            model=str(model),
            out=str(tmp_path / "out"),
            engine="local",
            scorers=1,
            precision="fp32",
        )
    )
    rows = pq.read_table(tmp_path / "out" / "predictions.parquet", columns=["filename", "p_ai", "error"]).to_pylist()
    assert len(rows) == 2 * PER_CLASS
    classify = pipeline("image-classification", model=str(model))
    for row in rows:
        assert row["error"] is None
        with Image.open(data / row["filename"].removeprefix("./")) as picture:
            theirs = {answer["label"]: answer["score"] for answer in classify(picture.convert("RGB"))}
        assert theirs["AI"] == pytest.approx(row["p_ai"], abs=TOLERANCE), row["filename"]
    assert len({round(row["p_ai"], 6) for row in rows}) > PER_CLASS, "one answer for all would prove nothing"
