"""jobs.prepare's promises: every entry is accounted for, names and bytes stay, leakage is refused without a trace."""

import csv
import os
import random

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from detector.errors import UsageError
from detector.training.preparation import prepare
from detector.training.prepare_config import PrepareConfig
from tests.training import corpora

SEED = 11


def config(out, **changes):
    return PrepareConfig(**{"split": "train", "source": "first", "out": str(out), **changes})


def add(out, folder, label, **changes):
    return prepare(config(out, images=(str(folder),), label=label, **changes))


def manifest(out):
    return pq.read_table(os.path.join(out, "manifest.parquet")).to_pylist()


def snapshot(folder):
    """Every path below a folder with its bytes."""
    return {
        os.path.relpath(os.path.join(top, name), folder): open(os.path.join(top, name), "rb").read()
        for top, _, names in os.walk(folder) for name in names
    }  # fmt: skip


def write_csv(path, rows, header=("filename", "label")):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def left_out(out):
    with open(os.path.join(out, "left_out.csv"), newline="", encoding="utf-8") as file:
        return {row["filename"]: row["reason"] for row in csv.DictReader(file)}


def test_folders_accumulate_into_one_tree_and_manifest(tmp_path):
    print(f"seed {SEED}")
    names = corpora.pictures(tmp_path / "ai", 4, seed=SEED, label="AI")
    corpora.pictures(tmp_path / "real", 6, seed=SEED + 1)
    add(tmp_path / "data", tmp_path / "ai", "AI")
    summary = add(tmp_path / "data", tmp_path / "real", "Real", source="second")
    rows = manifest(tmp_path / "data")
    assert [row["filename"] for row in rows] == sorted(row["filename"] for row in rows)
    assert {row["filename"] for row in rows if row["label"] == 0} == {f"train/AI/{name}" for name in names}
    assert summary["balance"] == {"train": {"AI": 4, "Real": 6}}
    assert {(row["source"], row["label"]) for row in rows} == {("first", 0), ("second", 1)}
    assert {(row["width"], row["height"], row["format"]) for row in rows} == {(64, 64, "PNG")}
    for row in rows:
        source = tmp_path / ("ai" if row["label"] == 0 else "real") / os.path.basename(row["filename"])
        assert os.path.samefile(source, tmp_path / "data" / row["filename"]), "hard links are the default"
    assert (tmp_path / "data" / "balance.svg").stat().st_size > 1000


@pytest.mark.parametrize("link", ["hard", "symbolic", "copy"])
def test_each_link_kind_gives_the_same_bytes(tmp_path, link):
    corpora.pictures(tmp_path / "in", 2, seed=SEED)
    add(tmp_path / "data", tmp_path / "in", "Real", link=link)
    for name in os.listdir(tmp_path / "in"):
        placed = tmp_path / "data" / "train" / "Real" / name
        assert placed.read_bytes() == (tmp_path / "in" / name).read_bytes()
        assert placed.is_symlink() == (link == "symbolic")
        assert os.path.samefile(placed, tmp_path / "in" / name) == (link != "copy")


def test_the_same_source_again_adds_nothing(tmp_path):
    corpora.pictures(tmp_path / "in", 3, seed=SEED)
    add(tmp_path / "data", tmp_path / "in", "AI")
    before = snapshot(tmp_path / "data" / "train"), manifest(tmp_path / "data")
    summary = add(tmp_path / "data", tmp_path / "in", "AI")
    assert (summary["added"], summary["left_out"]) == (0, {"already there": 3})
    assert (snapshot(tmp_path / "data" / "train"), manifest(tmp_path / "data")) == before


def test_a_csv_accounts_for_every_row_and_every_file(tmp_path):
    corpora.pictures(tmp_path / "in", 4, seed=SEED)
    corpora.pictures(tmp_path / "in" / "sub", 1, seed=SEED + 1, prefix="deep")
    (tmp_path / "in" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    table = write_csv(tmp_path / "labels.csv", [
        ["0000.png", "AI"], ["./0001.png", "1"], ["0002", "fake"], ["deep0000.png", "human"], ["0000.png", "0"],
        ["gone.png", "AI"], ["broken.jpg", "AI"],
    ], header=("id", "kind"))  # fmt: skip
    summary = prepare(
        config(tmp_path / "data", labels=(table,), images=(str(tmp_path / "in"),), filename_column="id", label_column="kind")
    )
    assert summary["added"] == 4
    assert summary["left_out"] == {"file without a row": 1, "row without a file": 1, "undecodable": 1}
    labels = {row["filename"]: row["label"] for row in manifest(tmp_path / "data")}
    assert labels == {
        "train/AI/0000.png": 0, "train/Real/0001.png": 1, "train/AI/0002.png": 0, "train/Real/deep0000.png": 1,
    }  # fmt: skip
    reasons = left_out(tmp_path / "data")
    assert reasons["gone.png"] == "row without a file"
    assert reasons["0003.png"] == "file without a row"
    assert reasons["broken.jpg"].startswith("undecodable")


def test_conflicting_labels_and_duplicates_are_left_out(tmp_path):
    """One file with two rows, and one content under two names with different labels."""
    corpora.pictures(tmp_path / "in", 4, seed=SEED)
    data = (tmp_path / "in" / "0001.png").read_bytes()
    (tmp_path / "in" / "copy-same.png").write_bytes(data)
    (tmp_path / "in" / "copy-other.png").write_bytes((tmp_path / "in" / "0002.png").read_bytes())
    rows = [
        ["0000.png", 0], ["0000.png", 1], ["0001.png", 0], ["copy-same.png", 0], ["0002.png", 0], ["copy-other.png", 1],
        ["0003.png", 1],
    ]  # fmt: skip
    table = write_csv(tmp_path / "labels.csv", rows)
    summary = prepare(config(tmp_path / "data", labels=(table,), images=(str(tmp_path / "in"),)))
    assert summary["added"] == 2
    assert summary["left_out"] == {"conflicting labels": 3, "duplicate": 1}
    assert {row["filename"] for row in manifest(tmp_path / "data")} == {"train/AI/0001.png", "train/Real/0003.png"}


def test_a_clash_of_names_takes_the_sources_name(tmp_path):
    for number, folder in enumerate(("a", "b", "c")):
        corpora.pictures(tmp_path / folder, 1, seed=SEED + number)
    add(tmp_path / "data", tmp_path / "a", "AI")
    add(tmp_path / "data", tmp_path / "b", "AI", source="other")
    add(tmp_path / "data", tmp_path / "c", "AI", source="other")
    names = sorted(os.listdir(tmp_path / "data" / "train" / "AI"))
    assert names == ["0000.png", "other__0000.png", "other__2__0000.png"]
    assert (tmp_path / "data/train/AI/other__0000.png").read_bytes() == (tmp_path / "b/0000.png").read_bytes()


def test_what_a_killed_run_left_is_taken_over(tmp_path):
    """A file in place without a row in the manifest gets its row, and no second copy under another name."""
    corpora.pictures(tmp_path / "in", 2, seed=SEED)
    target = tmp_path / "data" / "train" / "AI"
    target.mkdir(parents=True)
    os.link(tmp_path / "in" / "0000.png", target / "0000.png")
    add(tmp_path / "data", tmp_path / "in", "AI")
    assert sorted(os.listdir(target)) == ["0000.png", "0001.png"]
    assert len(manifest(tmp_path / "data")) == 2


@pytest.mark.parametrize("change", ["nothing", "jpeg", "resized"])
def test_leakage_between_train_and_test_is_refused_and_leaves_no_trace(tmp_path, change):
    rng = np.random.default_rng(SEED)
    low = Image.fromarray(rng.integers(0, 256, (9, 12, 3)).astype(np.uint8)).resize((160, 120), 3)
    corpora.pictures(tmp_path / "train", 3, seed=SEED, side=96)
    low.save(tmp_path / "train" / "picture.png")
    (tmp_path / "test").mkdir()
    if change == "nothing":
        (tmp_path / "test" / "other.png").write_bytes((tmp_path / "train" / "picture.png").read_bytes())
    elif change == "jpeg":
        low.save(tmp_path / "test" / "other.jpg", quality=40)
    else:
        low.resize((90, 68), 3).save(tmp_path / "test" / "other.png")
    corpora.pictures(tmp_path / "test", 3, seed=SEED + 1, side=96)
    add(tmp_path / "data", tmp_path / "train", "Real")
    before = snapshot(tmp_path / "data")
    with pytest.raises(UsageError, match="leakage: 1 new picture"):
        add(tmp_path / "data", tmp_path / "test", "Real", split="test_2022")
    assert snapshot(tmp_path / "data") == before
    summary = add(tmp_path / "data", tmp_path / "test", "Real", split="test_2022", allow_leakage=True)
    assert (summary["leaks"], summary["leaks_same_bytes"]) == (1, int(change == "nothing"))
    assert summary["added"] == 4


def test_leakage_between_two_test_splits_is_only_reported(tmp_path):
    corpora.pictures(tmp_path / "in", 2, seed=SEED)
    add(tmp_path / "data", tmp_path / "in", "Real", split="test_2022")
    assert add(tmp_path / "data", tmp_path / "in", "Real", split="test_collected")["leaks"] == 2


def test_a_refusal_makes_no_folder(tmp_path):
    corpora.pictures(tmp_path / "in", 2, seed=SEED)
    table = write_csv(tmp_path / "labels.csv", [["0000.png", "perhaps"]])
    with pytest.raises(UsageError, match=r"line 2: 'perhaps' is no"):
        prepare(config(tmp_path / "data", labels=(table,), images=(str(tmp_path / "in"),)))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.jpg").write_bytes(b"no picture")
    with pytest.raises(UsageError, match="nothing to prepare"):
        add(tmp_path / "data", tmp_path / "bad", "AI")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "name one source"),
        ({"label": "AI"}, "--images DIR is missing"),
        ({"label": "AI", "images": ("x",), "dataset": "y"}, "name one source"),
        ({"label": "cat", "images": (".",)}, "'cat' is no"),
        ({"label": "AI", "images": ("/nowhere",)}, "no such folder"),
        ({"label": "AI", "images": (".",), "split": "a/b"}, "--split"),
        ({"dataset": "nobody/nothing"}, "cannot be opened"),
    ],
)
def test_wrong_use_is_one_clear_line(tmp_path, monkeypatch, changes, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match=message) as caught:
        prepare(config(tmp_path / "data", **changes))
    assert "\n" not in str(caught.value)


def test_a_csv_without_the_named_columns_names_those_it_has(tmp_path):
    corpora.pictures(tmp_path / "in", 1, seed=SEED)
    table = write_csv(tmp_path / "labels.csv", [["0000.png", "AI"]], header=("file", "class"))
    with pytest.raises(UsageError, match=r"no column 'filename'; its columns are file, class.*--filename-column"):
        prepare(config(tmp_path / "data", labels=(table,), images=(str(tmp_path / "in"),)))


def test_imagefolder_reads_the_prepared_tree_with_the_same_labels(tmp_path):
    import datasets

    corpora.pictures(tmp_path / "ai", 3, seed=SEED, label="AI")
    corpora.pictures(tmp_path / "real", 2, seed=SEED + 1)
    add(tmp_path / "data", tmp_path / "ai", "AI")
    add(tmp_path / "data", tmp_path / "real", "Real")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    table = loaded["train"].cast_column("image", datasets.Image(decode=False))
    found = {os.path.relpath(row["image"]["path"], tmp_path / "data"): row["label"] for row in table}
    assert table.features["label"].names == ["AI", "Real"]
    assert found == {row["filename"]: row["label"] for row in manifest(tmp_path / "data")}


@pytest.mark.parametrize("kind", ["folder", "saved"])
def test_a_data_set_is_mapped_by_its_class_names(tmp_path, kind):
    """Its classes are the other way round: human = 0, artificial = 1."""
    import datasets

    corpora.pictures(tmp_path / "in" / "artificial", 2, seed=SEED)
    corpora.pictures(tmp_path / "in" / "human", 3, seed=SEED + 1)
    source = str(tmp_path / "in")
    if kind == "saved":
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["human", "artificial"])})
        rows = {"image": [], "label": []}
        for label, name in enumerate(("human", "artificial")):
            for file in sorted(os.listdir(tmp_path / "in" / name)):
                rows["image"].append({"bytes": (tmp_path / "in" / name / file).read_bytes(), "path": None})
                rows["label"].append(label)
        source = str(tmp_path / "saved")
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(source)
    summary = prepare(config(tmp_path / "data", dataset=source))
    assert summary["balance"] == {"train": {"AI": 2, "Real": 3}}
    by_sha = {row["sha256"]: row["label"] for row in manifest(tmp_path / "data")}
    import hashlib

    expected = {
        hashlib.sha256((tmp_path / "in" / name / file).read_bytes()).hexdigest(): label
        for label, name in enumerate(("artificial", "human")) for file in os.listdir(tmp_path / "in" / name)
    }  # fmt: skip
    assert by_sha == expected


def test_names_that_are_not_utf8_are_kept(tmp_path):
    (tmp_path / "in").mkdir()
    raw = os.fsencode(str(tmp_path / "in")) + b"/caf\xe9 100%25.png"
    corpora.pictures(tmp_path / "one", 1, seed=SEED)
    with open(raw, "wb") as file:
        file.write((tmp_path / "one" / "0000.png").read_bytes())
    add(tmp_path / "data", tmp_path / "in", "AI")
    assert os.listdir(os.fsencode(str(tmp_path / "data" / "train" / "AI"))) == [b"caf\xe9 100%25.png"]
    add(tmp_path / "data", tmp_path / "in", "AI")
    assert len(os.listdir(tmp_path / "data" / "train" / "AI")) == 1


def test_unrelated_noise_is_no_leakage(tmp_path):
    """Textures of one kind have like thumbnails and like statistics; their hashes must keep them apart."""
    random.seed(SEED)
    corpora.pictures(tmp_path / "a", 60, seed=SEED, side=96)
    corpora.pictures(tmp_path / "b", 60, seed=SEED + 1, side=96)
    add(tmp_path / "data", tmp_path / "a", "Real")
    assert add(tmp_path / "data", tmp_path / "b", "Real", split="test")["leaks"] == 0
