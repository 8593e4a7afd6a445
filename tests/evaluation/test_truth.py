import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detector.errors import UsageError
from detector.evaluation.truth import match, read_truth


def matched(predicted, truth):
    """Prediction name → truth name."""
    rows, unmatched = match(pd.DataFrame({"filename": predicted}), truth)
    names = truth.table["filename"].tolist()
    return {name: names[row] if row >= 0 else None for name, row in zip(predicted, rows, strict=True)}, unmatched


def truth_of(write_csv, *names, labels=None):
    labels = labels or ["AI"] * len(names)
    return read_truth(write_csv("filename,label\n" + "".join(f"{n},{v}\n" for n, v in zip(names, labels, strict=True))))


@pytest.mark.parametrize("name", ["./a/sub/1.jpg", "a/sub/1.jpg", "sub/1.jpg"])
def test_names_match_with_and_without_the_leading_folder(write_csv, name):
    assert matched(["./a/sub/1.jpg", "./a/2.jpg"], truth_of(write_csv, name)) == ({"./a/sub/1.jpg": name, "./a/2.jpg": None}, 0)


def test_predictions_without_a_folder_match_a_truth_with_one(write_csv):
    assert matched(["1.jpg"], truth_of(write_csv, "./a/1.jpg"))[0] == {"1.jpg": "./a/1.jpg"}


def test_the_same_name_in_another_folder_is_another_picture(write_csv):
    assert matched(["./b/1.jpg"], truth_of(write_csv, "./a/1.jpg")) == ({"./b/1.jpg": None}, 1)


def test_a_bare_name_does_not_match_a_file_deeper_down(write_csv):
    assert matched(["./a/sub/1.jpg"], truth_of(write_csv, "1.jpg")) == ({"./a/sub/1.jpg": None}, 1)


def test_a_name_that_fits_two_predictions_is_refused(write_csv):
    with pytest.raises(UsageError, match="fits more than one prediction"):
        matched(["./a/1.jpg", "./b/1.jpg"], truth_of(write_csv, "1.jpg"))
    with pytest.raises(UsageError, match="fits more than one prediction"):
        matched(["./a/1.jpg", "./b/a/1.jpg"], truth_of(write_csv, "a/1.jpg"))
    assert matched(["./a/1.jpg", "./b/a/1.jpg"], truth_of(write_csv, "./a/1.jpg"))[0]["./a/1.jpg"] == "./a/1.jpg"


def test_two_rows_of_one_picture_must_agree(write_csv):
    assert matched(["./a/1.jpg"], truth_of(write_csv, "1.jpg", "./a/1.jpg")) == ({"./a/1.jpg": "1.jpg"}, 0)
    with pytest.raises(UsageError, match=r"says both AI and Real of '\./a/1\.jpg'"):
        matched(["./a/1.jpg"], truth_of(write_csv, "1.jpg", "./a/1.jpg", labels=["0", "Real"]))


def test_labels_are_numbers_or_names(write_csv):
    labels = ["0", "1", "AI", "Real", "fake", "human", "1.0"]
    table = truth_of(write_csv, *[f"{i}.jpg" for i in range(7)], labels=labels).table
    assert table["label"].tolist() == [0, 1, 0, 1, 0, 1, 1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name,label\na,0\n", "no column filename; its columns are: name, label"),
        ("filename\na\n", "no column label"),
        ("filename,label\na,0\nb,perhaps\n", "record 3: 'perhaps' is not a label"),
        ("filename,label\na,b.jpg,0\n", "in quotes"),
    ],
)
def test_a_csv_that_is_no_truth_is_refused_with_the_reason(write_csv, text, says):
    with pytest.raises(UsageError, match=says):
        read_truth(write_csv(text))


def test_a_byte_order_mark_and_capitals_in_the_header_do_no_harm(write_csv):
    assert read_truth(write_csv("\ufeffFilename,Label\na.jpg,AI\n")).table["filename"].tolist() == ["a.jpg"]


@pytest.fixture
def split(tmp_path):
    for side, name in (("AI", "1.jpg"), ("Real", "2.jpg"), ("AI", "north__2.jpg")):
        folder = tmp_path / "data" / "test" / side
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"picture")
    return tmp_path / "data" / "test"


def test_a_split_folder_says_what_its_pictures_are(split):
    table = read_truth(str(split) + "/").table
    assert table["label"].tolist() == [0, 0, 1]
    assert set(table["source"]) == {"test"}  # no manifest: the split's name


@pytest.mark.parametrize("prefix", ["./test/", "./", "./data/test/", "./renamed/"])
def test_a_split_matches_predictions_made_from_any_folder_of_the_data(split, prefix):
    names = [f"{prefix}{name}" for name in ("AI/1.jpg", "AI/north__2.jpg", "Real/2.jpg")]
    found, unmatched = matched(names, read_truth(str(split)))
    assert (list(found.values()), unmatched) == (["./test/AI/1.jpg", "./test/AI/north__2.jpg", "./test/Real/2.jpg"], 0)


@pytest.mark.parametrize("prefix", ["test/", "./test/", ""])
def test_the_manifest_adds_sources(split, prefix):
    rows = {
        "filename": [f"{prefix}AI/1.jpg", f"{prefix}Real/2.jpg", "AI/1.jpg"],
        "split": ["test", "test", "train"],
        "source": ["north", "south", "wrong"],
        "width": [10, None, 5],
    }
    pq.write_table(pa.table(rows), split.parent / "manifest.parquet")
    truth = read_truth(str(split))
    assert truth.table["source"].tolist() == ["north", "", "south"]
    assert truth.sha256 is not None


def test_a_folder_without_classes_and_a_missing_one_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no such file or folder"):
        read_truth(str(tmp_path / "nowhere"))
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "1.jpg").write_bytes(b"picture")
    with pytest.raises(UsageError, match="no pictures under AI/ or Real/"):
        read_truth(str(tmp_path))
    with pytest.raises(UsageError, match=r"a \.csv file"):
        read_truth(str(tmp_path / "cats" / "1.jpg"))
