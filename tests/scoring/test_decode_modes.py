"""--decode scaled: only with a checkpoint for it, its own fingerprint, other scores, the same facts about the files."""

import json

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from detector.models.backbones_files import write_configs
from detector.models.checkpoint import inspect_checkpoint
from tests import pictures
from tests.checkpoints import save_swin

SEED = 5
FACTS = ["filename", "bytes", "modified", "sha256", "width", "height", "format", "error"]


def write_large(folder, count):
    """JPEGs large enough to be scaled for a model of 32 pixels, one of them turned; a PNG and a small one, which are not."""
    print("seed", SEED)
    rng = np.random.default_rng(SEED)
    folder.mkdir()
    for number in range(count):
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 1 else 1
        Image.fromarray(pictures.array(rng, 300, 400)).save(folder / f"{number}.jpg", quality=95, exif=exif)
    Image.fromarray(pictures.array(rng, 300, 400)).save(folder / "large.png")
    Image.fromarray(pictures.array(rng, 60, 70)).save(folder / "small.jpg")
    return folder


def rows_of(out):
    return pq.read_table(out / "predictions.parquet").sort_by("filename")


def test_scaled_decoding_is_asked_for_validated_and_recorded(score, tmp_path):
    images = write_large(tmp_path / "images", 4)
    model = save_swin(tmp_path / "model")
    scaled_model = save_swin(tmp_path / "scaled-model")
    write_configs(scaled_model, inspect_checkpoint(model).transform, decode="scaled")
    flags = ["--images", images, "--engine", "local", "--precision", "fp32"]
    _, refused = score(*flags, "--model", model, "--out", tmp_path / "no", "--decode", "scaled", check=2)
    assert "--decode full" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "no").exists()
    _, refused = score(*flags, "--model", scaled_model, "--out", tmp_path / "no", check=2)
    assert "--decode scaled" in refused.stderr

    full, _ = score(*flags, "--model", model, "--out", tmp_path / "full")
    scaled, _ = score(*flags, "--model", scaled_model, "--out", tmp_path / "scaled", "--decode", "scaled")
    assert full["model"] != scaled["model"]
    facts = [json.loads((tmp_path / out / "run.json").read_text())["model"] for out in ("full", "scaled")]
    assert [fact["decoder"] for fact in facts] == ["simplejpeg+pillow/1", "simplejpeg+pillow/1+dct-scaled/1"]
    assert facts[0]["identity"] == facts[1]["identity"]  # the same weights and transform: only the decoding differs
    before, after = rows_of(tmp_path / "full"), rows_of(tmp_path / "scaled")
    assert before.select(FACTS).equals(after.select(FACTS))
    gaps = np.abs(before["p_ai"].to_numpy() - after["p_ai"].to_numpy())
    is_scaled = np.array([name.endswith(".jpg") and "small" not in name for name in before["filename"].to_pylist()])
    print(gaps)
    assert (gaps[is_scaled] > 0).all()
    assert gaps[is_scaled].mean() < 0.2
    assert (gaps[~is_scaled] == 0).all()
