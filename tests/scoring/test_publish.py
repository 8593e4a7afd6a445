"""The published files hold exactly this run's listing, in a form that strict readers accept."""

import csv
import io

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from detector.errors import JobError
from detector.images.listing import SKIPPED_SCHEMA, Listing, display_name
from detector.scoring import publish
from detector.storage import open_store
from tests.scoring.test_ledger import files, parts

HARD = ["plain", "comma,in", 'quote"in', "new\nline", "carriage\rreturn", "=formula", "trailing ", "ünï", "50%25", "a\x1b[31m"]


@pytest.mark.parametrize("name", HARD)
def test_a_quoted_field_reads_back_exactly(name):
    text = f"{publish.quoted(name)},1\n"
    assert next(csv.reader(io.StringIO(text, newline=""))) == [name, "1"]


@pytest.mark.parametrize(
    ("name", "quoted"), [("plain", False), ("a,b", True), ('a"b', True), ("a\nb", True), ("a\rb", True), ("=a b", False)]
)
def test_only_what_needs_quotes_is_quoted(name, quoted):
    assert publish.quoted(name).startswith('"') is quoted


def listing(*rows):
    return Listing(files=files(*rows), skipped=SKIPPED_SCHEMA.empty_table(), roots=(("a", "/a"),))


def test_a_missing_row_stops_the_publication():
    with pytest.raises(JobError, match="1 listed pictures have no result"):
        publish.results_of(listing(("./a/1", 1, 1), ("./a/2", 1, 1)), parts(("./a/1", 1, 1, None, 1)), run="x")


def test_rows_of_pictures_that_are_gone_are_not_published():
    found = publish.results_of(listing(("./a/2", 1, 1)), parts(("./a/1", 1, 1, None, 1), ("./a/2", 1, 1, None, 1)), run="x")
    assert found["filename"].to_pylist() == ["./a/2"]


def test_path_bytes_keep_names_that_are_not_utf8():
    raw = [b"./a/caf\xe9.jpg", b"./a/100%25.jpg", b"./a/\xf0\x9f\x96\xbc.jpg", b"./a/plain%.jpg"]
    names = sorted((display_name(r) for r in raw), key=str.encode)
    rows = publish.results_of(listing(*[(n, 1, 1) for n in names]), parts(*[(n, 1, 1, None, 1) for n in names]), run="x")
    assert sorted(rows["path_bytes"].to_pylist()) == sorted(raw)


def test_published_csv_has_the_contract_form(tmp_path):
    names = sorted((f"./a/{n}" for n in HARD), key=str.encode)
    committed = parts(*[(n, 1, 1, None, 1) for n in names])
    for column, value in (("score", 0.98765432), ("label", 1), ("p_ai", 0.01234568)):
        index = committed.schema.get_field_index(column)
        committed = committed.set_column(
            index, committed.schema.field(column), pa.array([value] * len(names), committed.schema.field(column).type)
        )
    store, found = open_store(str(tmp_path / "out")), listing(*[(n, 1, 1) for n in names])
    publish.publish(store, found, publish.results_of(found, committed, run="x"), {"status": "complete"})
    data = store.read("predictions.csv")
    assert data.startswith(b"score,label,filename\n0.987654,1,./a/")
    assert list(csv.reader(io.StringIO(data.decode(), newline="")))[1:] == [["0.987654", "1", n] for n in names]
    options = pyarrow.csv.ParseOptions(newlines_in_values=True)
    assert pyarrow.csv.read_csv(io.BytesIO(data), parse_options=options)["filename"].to_pylist() == names
    assert store.read("errors.csv") == b"filename,error,message\n"
    assert store.read("skipped.csv") == b"filename,reason\n"


def test_scores_are_written_as_python_formats_them():
    print("seed", 11)
    rng = np.random.default_rng(11)
    ties = (2 * rng.integers(0, 1_000_000, 2000) + 1) / 2e6
    scores = np.concatenate([rng.random(50_000), ties, [0, 1, 0.5, np.nextafter(np.float32(1), np.float32(0)), 1e-9, 5e-7]])
    column = pa.array(scores.astype(np.float32))
    assert publish._six_decimals(column).to_pylist() == [f"{score:.6f}" for score in column.to_pylist()]
