"""Listing: everything found is one row or one skipped entry, in one order, under names that lead back to the bytes."""

import errno
import os
import random
import socket
import stat
import subprocess
import time

import pyarrow as pa
import pytest

from detector.errors import UsageError
from detector.images.found import clamp_ns
from detector.images.listing import FILES_SCHEMA, SKIPPED_SCHEMA, list_images, raw_name
from tests.images.files import make, names, skipped

SEED = 20260729


@pytest.fixture
def art(tmp_path, monkeypatch):
    """An empty folder ``art``, seen from its parent."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "art").mkdir()
    return tmp_path / "art"


def test_every_regular_file_is_a_row_whatever_its_extension(art):
    make(art, "a.jpg", "b.PNG", "notes.txt", "none", "deep/er/c.webp", "x.jpg/inside.gif", data=b"12345")
    listing = list_images(["art"])
    assert names(listing) == ["./art/a.jpg", "./art/b.PNG", "./art/deep/er/c.webp", "./art/none", "./art/notes.txt",
                              "./art/x.jpg/inside.gif"]  # fmt: skip
    assert listing.files.schema == FILES_SCHEMA
    assert listing.skipped.schema == SKIPPED_SCHEMA
    assert listing.roots == (("art", str(art)),)
    row = listing.files.slice(0, 1).to_pylist()[0]
    assert row["path"] == os.fsencode(art / "a.jpg")
    assert row["bytes"] == 5
    assert listing.files["modified"].cast(pa.int64())[0].as_py() == os.stat(art / "a.jpg").st_mtime_ns


def test_what_is_no_row_is_skipped_with_its_reason_and_never_followed(art, tmp_path):
    make(tmp_path, "outside/secret.jpg")
    make(art, "real.jpg", ".hidden.jpg", ".cache/1.jpg", ".cache/2.jpg")
    os.symlink("real.jpg", art / "link.jpg")
    os.symlink("../outside", art / "way-out")
    os.symlink("nowhere", art / "dangling")
    os.symlink("round", art / "round")
    os.symlink("/dev/zero", art / "zero.jpg")
    os.symlink("..", art / "up")
    os.mkfifo(art / "pipe.jpg")
    # Bound by its short relative name: a socket's address holds 107 bytes.
    here = os.getcwd()
    os.chdir(art)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("sock")
    os.chdir(here)
    expected = {"./art/link.jpg": "link", "./art/way-out": "link", "./art/dangling": "link", "./art/round": "loop",
                "./art/zero.jpg": "link", "./art/up": "link", "./art/pipe.jpg": "fifo", "./art/sock": "socket",
                "./art/.hidden.jpg": "hidden", "./art/.cache": "hidden"}  # fmt: skip
    try:
        os.mknod(art / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        expected["./art/null"] = "device"
    except PermissionError:
        pass
    listing = list_images(["art"])
    assert names(listing) == ["./art/real.jpg"]
    assert skipped(listing) == expected
    assert listing.skipped["filename"].to_pylist() == sorted(expected, key=str.encode)


def test_any_name_of_the_file_system_is_a_row_that_leads_back_to_its_bytes(art):
    print("seed", SEED)
    rng = random.Random(SEED)
    odd = [b"new\nline", b"cr\r.jpg", b"tab\t", b'"', b",", b"=1+1", b"a%FF", b"a\xff", b"a%25", b"%", "é".encode(),
           "e\u0301".encode(), "\u202egpj.exe".encode(), "🎨".encode(), b"n" * 255, b" ", b"NA", b"-x", b"a%2525",
           "\U0010ffff".encode(), "\ue000".encode(), b"\xf4\x90\x80\x80", b"<b>", b"\x1b[31m", b"*", b"[a]"]  # fmt: skip
    alphabet = [byte for byte in range(1, 256) if byte != ord("/")]
    odd += [bytes(rng.choices(alphabet, k=rng.randint(1, 20))) for _ in range(500)]
    wanted = {name for name in odd if not name.startswith(b".")}
    make(art, *wanted)
    make(art, *(b"sub\xfe/" + name for name in wanted))
    listing = list_images(["art"])
    found = names(listing)
    assert len(found) == len(set(found)) == 2 * len(wanted)
    assert [text.encode() for text in found] == sorted(text.encode() for text in found)
    for text, path in zip(found, listing.files["path"].to_pylist(), strict=True):
        assert path == os.fsencode(art.parent) + raw_name(text)[1:]
        assert os.lstat(path)


def test_order_is_that_of_utf8_bytes_not_of_utf16(art):
    make(art, "\uffee", "\U0001f3a8", "a", "Z", "é", "a/b".replace("/", "-"), "a.b", "a0")
    assert names(list_images(["art"])) == ["./art/Z", "./art/a", "./art/a-b", "./art/a.b", "./art/a0", "./art/é",
                                           "./art/\uffee", "./art/\U0001f3a8"]  # fmt: skip


@pytest.fixture
def removed_by_rm(art):
    """For trees so deep that Python's own removal, and so pytest's, fails."""
    yield art
    subprocess.run(["rm", "-rf", str(art)], check=True)


def test_a_tree_deeper_than_python_recurses_is_listed(removed_by_rm):
    art = removed_by_rm
    here = os.getcwd()
    os.chdir(art)
    for _ in range(1200):
        os.mkdir("d")
        os.chdir("d")
    make(".", "x.jpg")
    os.chdir(here)
    listing = list_images(["art"])
    assert names(listing) == ["./art/" + "d/" * 1200 + "x.jpg"]


def test_a_tree_deeper_than_a_path_may_be_is_counted_as_unreadable(removed_by_rm, capfd):
    art = removed_by_rm
    make(art, "a.jpg")
    here = os.getcwd()
    os.chdir(art)
    for _ in range(30):
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
    make(".", "x.jpg")
    os.chdir(here)
    listing = list_images(["art"])
    assert names(listing) == ["./art/a.jpg"]
    assert list(skipped(listing).values()) == ["unreadable"]
    assert "cannot be read and is skipped" in capfd.readouterr().err


def test_a_folder_without_permission_is_one_unreadable_entry_and_the_rest_is_listed(art, monkeypatch, capfd):
    make(art, "a.jpg", "lost+found/x.jpg", "z/b.jpg")
    real = os.scandir

    def scandir(path):
        if path.endswith(b"lost+found"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)  # root may read every folder, so it is forbidden here
    listing = list_images(["art"])
    assert names(listing) == ["./art/a.jpg", "./art/z/b.jpg"]
    assert skipped(listing) == {"./art/lost+found": "unreadable"}
    assert "lost+found" in capfd.readouterr().err


def test_a_file_that_goes_before_it_is_looked_at_stays_a_row_without_size(art, monkeypatch):
    make(art, "a.jpg", "b.jpg")
    from detector.images import scanning

    class Gone:
        def __init__(self, entry):
            self._entry, self.name, self.path = entry, entry.name, entry.path

        def stat(self, follow_symlinks):
            raise FileNotFoundError(errno.ENOENT, "gone")

        def is_dir(self, follow_symlinks):
            return self._entry.is_dir(follow_symlinks=False)

        def is_symlink(self):
            return self._entry.is_symlink()

    real = scanning._entries
    monkeypatch.setattr(
        scanning,
        "_entries",
        lambda *args: ((name, Gone(entry) if name == b"b.jpg" else entry) for name, entry in real(*args)),
    )
    rows = list_images(["art"]).files.to_pylist()
    assert [row["bytes"] for row in rows] == [1, None]
    assert rows[1]["modified"] is None


def test_times_that_no_timestamp_holds_are_clamped(art):
    make(art, "far.jpg", "early.jpg")
    os.utime(art / "far.jpg", (1, 2**33))
    os.utime(art / "early.jpg", ns=(1, -5))
    listing = list_images(["art"])
    modified = dict(zip(names(listing), listing.files["modified"].cast(pa.int64()).to_pylist(), strict=True))
    assert modified["./art/early.jpg"] == os.stat(art / "early.jpg").st_mtime_ns
    assert modified["./art/far.jpg"] == os.stat(art / "far.jpg").st_mtime_ns
    assert clamp_ns(2**70) == 2**63 - 1
    assert clamp_ns(-(2**70)) == -(2**63) + 1
    os.utime(art / "far.jpg", (1, 2**35))  # the year 3058, where the file system holds it
    far = os.stat(art / "far.jpg").st_mtime_ns
    listing = list_images(["art/far.jpg"])
    assert listing.files["modified"].cast(pa.int64())[0].as_py() == min(far, 2**63 - 1)


def test_limit_keeps_the_first_rows_in_order(art):
    make(art, *(f"{number:02d}.jpg" for number in range(20)), ".hidden")
    listing = list_images(["art"], limit=3)
    assert names(listing) == ["./art/00.jpg", "./art/01.jpg", "./art/02.jpg"]
    assert skipped(listing) == {"./art/.hidden": "hidden"}


def test_patterns_choose_and_what_they_leave_is_counted(art):
    make(art, "1.jpg", "2.png", "thumbs/3.jpg", "thumbs/deep/4.jpg", "b/5.jpg", "b/6.txt")
    listing = list_images(["art"], include=["*.jpg"], exclude=["thumbs"])
    assert names(listing) == ["./art/1.jpg", "./art/b/5.jpg"]
    assert skipped(listing) == {"./art/2.png": "excluded", "./art/b/6.txt": "excluded", "./art/thumbs": "excluded"}
    listing = list_images(["art/**/*.jpg"], exclude=["thumbs"])
    assert names(listing) == ["./art/1.jpg", "./b/5.jpg"]
    assert skipped(listing) == {"./art/thumbs": "excluded"}
    with pytest.raises(UsageError, match="leave none of the 6 files"):
        list_images(["art"], include=["*.webp"])


def test_the_output_folder_is_never_listed(art):
    make(art, "1.jpg", "out/predictions.csv", "out/parts/x.parquet")
    listing = list_images(["art"], output="art/out")
    assert names(listing) == ["./art/1.jpg"]
    assert skipped(listing) == {"./art/out": "excluded"}
    assert names(list_images(["art/**/*"], output=str(art / "out"))) == ["./art/1.jpg"]
    with pytest.raises(UsageError, match="also the output folder"):
        list_images(["art"], output="art")


def test_the_same_tree_gives_the_same_tables_whatever_the_order_of_the_disk(art, monkeypatch):
    make(art, *(f"{number % 7}/{number}.jpg" for number in range(100)))
    first = list_images(["art"])
    real = os.scandir

    class Reversed:
        def __init__(self, path):
            self._entries = real(path)

        def __enter__(self):
            return iter(sorted(self._entries, key=lambda entry: entry.name, reverse=True))

        def __exit__(self, *_):
            self._entries.close()

    monkeypatch.setattr(os, "scandir", Reversed)
    second = list_images(["art"])
    assert first.files.equals(second.files)
    assert first.skipped.equals(second.skipped)


@pytest.mark.parametrize("odd", [None, "ünï.jpg", "50%25.jpg", os.fsdecode(b"\xff.jpg"), "far future.jpg", "tab\t.jpg"])
def test_files_counted_together_are_those_counted_one_by_one(art, monkeypatch, odd):
    """Whole columns at once where every name of a chunk is plain; one name that is not must change nothing else."""
    make(art, *(f"{number}.jpg" for number in range(8)), *(f"a/b %/{number}.png" for number in range(8)))
    if odd is not None:
        make(art, odd)
        if odd.startswith("far"):
            os.utime(art / odd, ns=(0, 10**19))
    monkeypatch.setattr("detector.images.scanning.CHUNK_ROWS", 3)
    monkeypatch.setattr("detector.images.found._FEW_ROWS", 2)
    together = list_images(["art"])

    def one_by_one(self, root, prefix, files):
        for name, size, modified in files:
            self.add(root, prefix + name, os.path.join(root.base, prefix + name), size, modified)

    monkeypatch.setattr("detector.images.found.Found.add_files", one_by_one)
    assert list_images(["art"]).files.equals(together.files)
    assert together.files.num_rows == 16 + (odd is not None)


def test_fifty_thousand_files_list_in_under_three_seconds(art):
    count = 50_000
    for folder in range(50):
        (art / f"{folder:02d}").mkdir()
        for number in range(count // 50):
            os.close(os.open(art / f"{folder:02d}/{number}.jpg", os.O_CREAT | os.O_WRONLY))
    start = time.process_time()  # the machine may be busy with something else
    listing = list_images(["art"])
    seconds = time.process_time() - start
    print(f"{count} files in {seconds:.2f} s")
    assert len(listing.files) == count
    assert seconds < 3
    assert listing.files.nbytes < 300 * count
