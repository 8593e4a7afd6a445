"""Manifests: each name is one row or one skipped entry, however the file was written."""

import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detector.errors import UsageError
from detector.images.listing import list_images
from tests.images.files import make, names, skipped


@pytest.fixture
def art(tmp_path, monkeypatch):
    """An empty folder ``art``, seen from its parent."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "art").mkdir()
    return tmp_path / "art"


def sizes(listing):
    return listing.files["bytes"].to_pylist()


def write(path, data):
    with open(path, "wb") as file:
        file.write(data)


def parquet(path, values, kind):
    pq.write_table(pa.table({"label": [1] * len(values), "filename": pa.array(values, kind)}), path)


@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("m.csv", b"filename\n1.jpg\nsub/2.jpg\n"),
        ("M.CSV", b"\xef\xbb\xbffilename\r\n1.jpg\r\n\r\nsub/2.jpg"),
        ("m.csv", b'label,"filename"\n1,"1.jpg"\n0,"sub/2.jpg"\n'),
        ("m.txt", b"1.jpg\nsub/2.jpg\n"),
        ("m.txt", b"\xef\xbb\xbf1.jpg\r\n\r\n./sub/2.jpg"),
        ("m.txt", b'"1.jpg"\nsub/../sub//2.jpg\n1.jpg\n'),
        ("m.txt", b"filename\n1.jpg\nsub/2.jpg\n"),
        ("m.csv", b"filename\n1.jpg\n./1.jpg\n1.jpg\nsub/2.jpg\n"),
    ],
)
def test_a_manifest_lists_its_files_once_under_its_folder(art, file, data):
    make(art, "1.jpg", "sub/2.jpg", "not-named.jpg")
    write(art / file, data)
    listing = list_images([f"art/{file}"])
    assert names(listing) == ["./art/1.jpg", "./art/sub/2.jpg"]
    assert sizes(listing) == [1, 1]
    assert listing.roots == (("art", str(art)),)
    assert names(list_images([f"N=art/{file}"])) == ["./N/1.jpg", "./N/sub/2.jpg"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int8(), pa.string()),
                                  pa.string_view(), pa.large_binary()])  # fmt: skip
def test_a_parquet_manifest_may_hold_any_kind_of_text(art, kind):
    make(art, "1.jpg", "é.jpg")
    values = ["1.jpg", "é.jpg"]
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        values = [value.encode() for value in values]
    if pa.types.is_dictionary(kind):
        column = pa.array(values).dictionary_encode()
        pq.write_table(pa.table({"filename": column}), art / "m.parquet")
    else:
        parquet(art / "m.parquet", values, kind)
    assert names(list_images(["art/m.parquet"])) == ["./art/1.jpg", "./art/é.jpg"]


def test_odd_names_are_found(art):
    odd = [b'a,b"c.jpg', b"new\nline.jpg", b"\xff.jpg", b"%FF.jpg", b"a%20b.jpg", b" space ", b"NA", b"50%.jpg"]
    make(art, *odd)
    quoted = b"".join(b'"' + name.replace(b'"', b'""') + b'"\n' for name in odd)
    write(art / "m.csv", b"filename\n" + quoted)
    listing = list_images(["art/m.csv"])
    assert sizes(listing) == [1] * len(odd)
    assert set(listing.files["path"].to_pylist()) == {os.fsencode(art) + b"/" + name for name in odd}


def test_names_with_line_ends_are_whole_wherever_the_reader_cuts_the_file(art):
    name = "line\n" * 40 + ".jpg"
    make(art, name)
    write(
        art / "m.csv", b"filename\n" + b"".join(b'"%d%s"\n' % (n, name.encode()) for n in range(25_000)) + f'"{name}"'.encode()
    )
    listing = list_images(["art/m.csv"])
    assert len(listing.files) == 25_001
    assert all(text.endswith(name) for text in names(listing))
    assert sum(size is not None for size in sizes(listing)) == 1


def test_names_as_the_published_files_show_them_are_found(art):
    make(art, b"\xff.jpg", b"a%25.jpg", b"b%FF.jpg")
    shown = names(list_images(["art"]))
    write(art.parent / "errors.csv", "".join(f"{name}\n" for name in ["filename", *shown]).encode())
    listing = list_images([f"{art.parent}/errors.csv"])
    assert sizes(listing) == [1, 1, 1]
    assert set(listing.files["path"].to_pylist()) == {
        os.fsencode(art) + b"/" + x for x in (b"\xff.jpg", b"a%25.jpg", b"b%FF.jpg")
    }


def test_a_file_that_is_not_there_stays_a_row(art):
    make(art, "1.jpg")
    write(art / "m.txt", b"1.jpg\ngone.jpg\n1.jpg/below.jpg\n" + b"n" * 300 + b"\n")
    listing = list_images(["art/m.txt"])
    rows = {row["filename"]: (row["bytes"], row["modified"]) for row in listing.files.to_pylist()}
    assert rows["./art/1.jpg"][0] == 1
    for gone in ("gone.jpg", "1.jpg/below.jpg", "n" * 300):
        assert rows[f"./art/{gone}"] == (None, None)


def test_what_is_named_and_is_no_file_is_skipped_and_links_are_not_followed(art, tmp_path):
    make(tmp_path, "outside/x.jpg")
    make(art, "1.jpg", ".h.jpg", ".d/2.jpg", "folder/3.jpg")
    os.symlink("../outside", art / "way")
    os.symlink("1.jpg", art / "link.jpg")
    os.symlink("round", art / "round")
    os.mkfifo(art / "pipe")
    write(art / "m.txt", b"1.jpg\n.h.jpg\n.d/2.jpg\nfolder\nway/x.jpg\nway/y.jpg\nlink.jpg\nround\npipe\nround/x\n")
    listing = list_images(["art/m.txt"])
    assert skipped(listing) == {"./art/.h.jpg": "hidden", "./art/.d/2.jpg": "hidden", "./art/folder": "folder",
                                "./art/way/x.jpg": "link", "./art/link.jpg": "link", "./art/round": "loop",
                                "./art/pipe": "fifo"}  # fmt: skip
    assert {row["filename"]: row["bytes"] for row in listing.files.to_pylist()} == {
        "./art/1.jpg": 1, "./art/way/y.jpg": None, "./art/round/x": None}  # fmt: skip


@pytest.mark.parametrize("name", [b"/etc/passwd", b"../x.jpg", b"a/../../x.jpg", b"", b".", b"a/..", b"nul\0"])
def test_a_name_that_leaves_the_folder_is_wrong_use(art, name):
    make(art, "1.jpg")
    make(art.parent, "x.jpg")
    write(art / "m.csv", b'filename\n1.jpg\n"' + name + b'"\n')
    parquet(art / "m.parquet", [b"1.jpg", name], pa.binary())
    for manifest in ("m.csv", "m.parquet"):
        with pytest.raises(UsageError, match="manifest"):
            list_images([f"art/{manifest}"])


@pytest.mark.parametrize(
    ("file", "data", "message"),
    [
        ("m.csv", b"", "cannot be read: Empty CSV"),
        ("m.csv", b"file,label\n1.jpg,1\n", "no column 'filename'; it has: file,label"),
        ("m.csv", b"filename\n", "names no file"),
        ("m.csv", b"label\n", "no column 'filename'"),
        ("m.csv", b"filename,label\n1.jpg\n", "cannot be read: CSV parse error"),
        ("m.csv", "filename\n1.jpg\n".encode("utf-16"), "UTF-16"),
        ("m.txt", b"\n\r\n", "names no file"),
        ("m.txt", b"x.jpg\ny.jpg\n", "none of the 2 files.*relative to the manifest's folder"),
        ("m.parquet", b"PAR1 no", "cannot be read"),
    ],
)
def test_a_wrong_manifest_is_wrong_use(art, file, data, message):
    make(art, "1.jpg")
    write(art / file, data)
    with pytest.raises(UsageError, match=message):
        list_images([f"art/{file}"])


def test_a_parquet_manifest_without_the_column_or_with_a_null_is_wrong_use(art):
    make(art, "1.jpg")
    pq.write_table(pa.table({"name": ["1.jpg"]}), art / "m.parquet")
    with pytest.raises(UsageError, match="no column 'filename'; it has: name"):
        list_images(["art/m.parquet"])
    parquet(art / "m.parquet", ["1.jpg", None], pa.string())
    with pytest.raises(UsageError, match="row without a filename"):
        list_images(["art/m.parquet"])


def test_a_manifest_and_its_folder_give_each_file_once(art):
    make(art, "1.jpg", "2.jpg")
    write(art / "m.txt", b"1.jpg\ngone.jpg\n")
    assert names(list_images(["art/m.txt", "art"])) == ["./art/1.jpg", "./art/2.jpg", "./art/gone.jpg", "./art/m.txt"]


def test_patterns_apply_to_manifests(art):
    make(art, "1.jpg", "2.png", "sub/3.jpg")
    write(art / "m.txt", b"1.jpg\n2.png\nsub/3.jpg\n")
    listing = list_images(["art/m.txt"], include=["*.jpg"], exclude=["sub"])
    assert names(listing) == ["./art/1.jpg"]
    assert skipped(listing) == {"./art/2.png": "excluded", "./art/sub/3.jpg": "excluded"}


def test_a_link_to_a_manifest_and_a_manifest_behind_a_link_name_without_extension_are_read(art):
    make(art, "1.jpg")
    write(art / "abc", b"filename\n1.jpg\n")
    os.symlink("art/abc", "list.csv")
    assert names(list_images(["list.csv"])) == ["./art/1.jpg"]
    write(art / "real.csv", b"filename\n1.jpg\n")
    os.symlink("art/real.csv", "current")
    assert names(list_images(["current"])) == ["./art/1.jpg"]


def test_a_hundred_thousand_names_do_not_need_much_memory(art):
    make(art, "0.jpg")
    with open(art / "m.csv", "w") as file:
        file.write("filename\n" + "".join(f"{number}.jpg\n" for number in range(100_000)))
    code = (
        "import resource\n"
        "from detector.images.listing import list_images\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "before = peak(); rows = len(list_images(['art/m.csv']).files); print(rows, peak() - before)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    rows, megabytes = map(int, done.stdout.split())
    print(f"{rows} rows, {megabytes} MB")
    assert rows == 100_000
    assert megabytes < 80
