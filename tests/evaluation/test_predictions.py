import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detector.errors import UsageError
from detector.evaluation.predictions import read_predictions
from tests.evaluation.conftest import row


def test_parquet_gives_scored_and_failed_rows(save):
    found = read_predictions(save([row("./a/1.jpg", 0.9), row("./a/2.jpg"), row("./a/3.jpg", 0.25)]))
    assert found.scored["filename"].tolist() == ["./a/1.jpg", "./a/3.jpg"]
    assert found.scored["label"].tolist() == [0, 1]
    assert found.scored["p_ai"].tolist() == pytest.approx([0.9, 0.25])
    assert found.failed[["filename", "error"]].to_numpy().tolist() == [["./a/2.jpg", "truncated"]]
    assert np.isnan(found.failed["p_ai"].iloc[0])


def test_what_a_failed_row_still_holds_as_a_probability_is_dropped(tmp_path):
    table = pa.table({"filename": ["a", "b"], "label": pa.array([0, None], pa.int8()), "p_ai": [0.9, 0.7]})
    pq.write_table(table, tmp_path / "predictions.parquet")
    assert np.isnan(read_predictions(str(tmp_path)).table["p_ai"].iloc[1])


def test_csv_turns_the_score_of_the_label_into_the_probability_of_ai(write_csv):
    path = write_csv('score,label,filename\n0.900000,0,./a/1.jpg\n0.750000,1,"./a/x,\n\ry.jpg"\n', "predictions.csv")
    table = read_predictions(path).table
    assert table["p_ai"].tolist() == pytest.approx([0.9, 0.25])
    assert table["filename"].tolist() == ["./a/1.jpg", "./a/x,\n\ry.jpg"]


def test_csv_counts_the_failures_of_the_errors_file_beside_it(write_csv, tmp_path):
    write_csv("score,label,filename\n0.9,0,./a/1.jpg\n", "predictions.csv")
    write_csv("filename,error,message\n./a/2.jpg,empty,no bytes\n", "errors.csv")
    found = read_predictions(str(tmp_path))
    assert (len(found.scored), found.failed["error"].tolist()) == (1, ["empty"])


def test_parquet_is_preferred_to_csv_in_the_same_folder(save, tmp_path):
    folder = save([row("./a/1.jpg", 0.9)])
    (tmp_path / "predictions" / "predictions.csv").write_text("score,label,filename\n")
    assert read_predictions(folder).path.endswith(".parquet")


def test_a_name_like_na_stays_a_name(write_csv):
    assert read_predictions(write_csv("score,label,filename\n0.9,0,NA\n", "p.csv")).table["filename"].tolist() == ["NA"]


def test_labels_that_contradict_their_probability_are_counted(tmp_path):
    table = pa.table({"filename": ["a", "b", "c"], "label": [0, 0, 1], "p_ai": [0.9, 0.1, 0.5]})
    pq.write_table(table, tmp_path / "predictions.parquet")
    assert read_predictions(str(tmp_path)).num_contradictions == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("label,filename\n0,a\n", "no column score"),
        ("score,label,filename\n0.9,maybe,a\n", "'maybe' is not a label"),
        ("score,label,filename\nhigh,0,a\n", "no number"),
        ("score,label,filename\nnan,0,a\n", "not between 0 and 1"),
        ("score,label,filename\n1.5,0,a\n", "not between 0 and 1"),
        ("score,label,filename\n0.9,0,a\n0.8,0,a\n", "more than once"),
        ("score,label,filename\n0.9,0,a,b\n", "4 fields"),
        (b"\xff\xfe", "UTF-8"),
        ("", "no column"),
    ],
)
def test_files_that_are_no_predictions_are_refused_with_the_reason(write_csv, text, says):
    with pytest.raises(UsageError, match=says):
        read_predictions(write_csv(text, "p.csv"))


def test_missing_folder_and_folder_without_predictions_say_what_to_do(tmp_path):
    with pytest.raises(UsageError, match=r"no such file or folder; run jobs\.score"):
        read_predictions(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"no predictions\.parquet or predictions\.csv"):
        read_predictions(str(tmp_path))


def test_a_damaged_parquet_file_is_refused(tmp_path):
    (tmp_path / "predictions.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UsageError, match="not a readable Parquet"):
        read_predictions(str(tmp_path))
