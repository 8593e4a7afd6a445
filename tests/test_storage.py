"""Storage: all or nothing, wherever it is; what is wrong at the start is the user's to know, with the path."""

import errno
import io
import os
import pickle
import signal
import subprocess
import sys
import time
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detector import storage
from detector.errors import StopRequested, UsageError
from detector.storage import LocalStore, is_uri, local_path, open_store, uri_on, without_credentials
from tests.s3 import loopback_bucket


@pytest.fixture(scope="module")
def bucket():
    with loopback_bucket() as opened:
        yield opened


@pytest.fixture(params=["local", "remote"])
def store(request, tmp_path):
    if request.param == "local":
        return open_store(str(tmp_path / "out"))
    uri, _ = request.getfixturevalue("bucket")
    return open_store(uri(f"out put/{uuid.uuid4().hex}"))


def put(data: bytes):
    def writer(file):
        file.write(data)

    return writer


def test_what_is_written_is_read_back_listed_replaced_and_removed(store):
    assert store.names() == store.names("parts") == []
    store.write("parts/b.bin", put(b"one"))
    store.write("parts/a.bin", put(b""))
    store.write("top", put(b"three"))
    assert store.names("parts") == ["a.bin", "b.bin"]
    assert store.names() == ["top"]
    assert (store.read("parts/a.bin"), store.read("parts/b.bin")) == (b"", b"one")
    store.write("top", put(b"four"))
    assert store.read("top") == b"four"
    assert store.exists("top")
    assert not store.exists("parts")
    assert not store.exists("none")
    store.remove("top")
    store.remove("top")
    assert not store.exists("top")


def test_parquet_is_written_and_read_through_the_store(store):
    table = pa.table({"x": list(range(1000))})
    store.write("t.parquet", lambda file: pq.write_table(table, file))
    with store.open("t.parquet") as file:
        assert pq.ParquetFile(file).read().equals(table)


def test_a_writer_may_close_its_stream(store):
    def through_text(file):
        with io.TextIOWrapper(file, "utf-8", newline="") as text:
            text.write("é\n")

    store.write("t.csv", through_text)
    assert store.read("t.csv") == "é\n".encode()


@pytest.mark.parametrize("kind", [ValueError, OSError, StopRequested, KeyboardInterrupt])
def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(store, kind):
    store.write("x", put(b"old"))

    def fails(file):
        file.write(b"half" * 3_000_000)
        raise kind("no")

    with pytest.raises(kind):
        store.write("x", fails)
    assert store.read("x") == b"old"
    assert store.names() == ["x"]
    assert store.clean_temporary() == 0


def test_a_missing_file_is_named(store):
    with pytest.raises(FileNotFoundError, match="no-such-file"):
        store.open("no-such-file")


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "."])
def test_a_name_cannot_leave_the_store(store, name):
    with pytest.raises(ValueError, match="no name of a file"):
        store.write(name, put(b"x"))


def test_a_store_travels_to_another_process(store):
    store.write("x", put(b"1"))
    assert pickle.loads(pickle.dumps(store)).read("x") == b"1"


def test_half_written_files_of_a_killed_run_are_hidden_and_cleaned(tmp_path):
    code = (
        "import sys, time; from detector.storage import open_store\n"
        "def slow(file):\n"
        "    file.write(b'half'); file.flush(); print('in', flush=True); time.sleep(60)\n"
        "open_store(sys.argv[1]).write('parts/x', slow)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "in\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    store = open_store(str(tmp_path))
    assert len(os.listdir(tmp_path / "parts")) == 1
    assert store.names("parts") == []
    assert not store.exists("parts/x")
    (tmp_path / "parts" / ".writing-of-the-user.tmp").write_bytes(b"")
    assert store.clean_temporary("parts") == 1
    assert os.listdir(tmp_path / "parts") == [".writing-of-the-user.tmp"]


def test_a_killed_writer_never_shows_half_a_file(tmp_path):
    code = (
        "import sys; from detector.storage import open_store\n"
        "store = open_store(sys.argv[1])\n"
        "for i in range(10**9):\n"
        "    store.write('x', lambda file: [file.write(bytes([i % 256]) * 4096) for _ in range(50)])\n"
        "    i or print('in', flush=True)\n"
    )
    for delay in (0.01, 0.03, 0.1):
        child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "in\n"
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        content = (tmp_path / "x").read_bytes()
        assert len(content) == 50 * 4096
        assert len(set(content)) == 1


def test_a_write_is_flushed_before_it_is_renamed_and_the_folder_after(tmp_path, monkeypatch):
    store, steps = open_store(str(tmp_path)), []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(handle):
        steps.append(os.readlink(f"/proc/self/fd/{handle}").replace(str(tmp_path), "OUT"))
        real_fsync(handle)

    def replace(source, target):
        steps.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    store.write("x", put(b"1"))
    assert steps[0].startswith("OUT/.writing-")
    assert steps[1:] == ["rename", "OUT"]


def test_a_full_disk_is_an_oserror_with_the_path_and_its_number(tmp_path, monkeypatch):
    store = open_store(str(tmp_path))

    def full(_handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"cannot write '{tmp_path}/parts/x': No space left") as caught:
        store.write("parts/x", put(b"1"))
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path / "parts") == []


def test_an_output_deleted_during_the_run_is_an_error_and_not_made_again(tmp_path):
    store = open_store(str(tmp_path / "out"))
    os.rmdir(tmp_path / "out")
    for name in ("x", "parts/x"):
        with pytest.raises(FileNotFoundError, match="out"):
            store.write(name, put(b"1"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["file", "file/below", "dangling"])
def test_an_output_that_cannot_be_a_folder_is_wrong_use(tmp_path, out):
    (tmp_path / "file").write_bytes(b"mine")
    os.symlink(tmp_path / "nowhere" / "x", tmp_path / "dangling")
    with pytest.raises(UsageError, match=f"{tmp_path}/{out}"):
        open_store(str(tmp_path / out))
    assert (tmp_path / "file").read_bytes() == b"mine"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a file system that takes no files")
def test_an_output_where_nothing_can_be_written_is_wrong_use():
    with pytest.raises(UsageError, match="cannot write to the output folder '/proc/self'"):
        open_store("/proc/self")


def test_a_read_only_file_system_is_wrong_use(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(tmp_path)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no right to mount here")
    try:
        for out in (tmp_path, tmp_path / "below"):
            with pytest.raises(UsageError, match="Read-only file system"):
                open_store(str(out))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_new_store_is_empty_and_keeps_what_is_there(tmp_path):
    (tmp_path / "mine").write_bytes(b"x")
    open_store(str(tmp_path))
    assert os.listdir(tmp_path) == ["mine"]


def test_files_get_the_users_usual_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        open_store(str(tmp_path)).write("x", put(b"1"))
    finally:
        os.umask(before)
    assert os.stat(tmp_path / "x").st_mode & 0o777 == 0o640


def test_a_relative_output_stays_where_it_was_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = open_store("out")
    monkeypatch.chdir("/")
    store.write("x", put(b"1"))
    assert (tmp_path / "out" / "x").exists()
    assert isinstance(store, LocalStore)


@pytest.mark.parametrize(
    ("path", "remote", "plain"),
    [
        ("/a/b", False, "/a/b"),
        ("a:b", False, "a:b"),
        ("file:///a%20b", False, "/a b"),
        ("FILE://localhost/a%25", False, "/a%"),
        ("file:///a%FF", False, os.fsdecode(b"/a\xff")),
        ("s3://b/c", True, None),
        ("gs://b/c", True, None),
        ("X=s3://b/c", False, "X=s3://b/c"),
    ],
)
def test_uris_and_paths_are_told_apart(path, remote, plain):
    assert is_uri(path) is remote
    if plain is not None:
        assert local_path(path) == plain


def test_a_file_uri_of_another_machine_is_wrong_use():
    with pytest.raises(UsageError, match="another machine"):
        local_path("file://host/x")


@pytest.mark.parametrize("user", ["key:secret@", "key:sec%2Fret@", "key:sec/secret@", ""])
def test_credentials_are_not_shown(user):
    assert without_credentials(f"s3://{user}bucket/a b?access_key=x") == "s3://bucket/a%20b"
    assert "secret" not in repr(storage.ObjectStore(root=f"s3://{user}bucket/x"))


def test_an_object_store_sends_a_small_file_as_one_put(bucket, monkeypatch):
    uri, client = bucket
    store = open_store(uri("one-put"))
    before = client.list_multipart_uploads(Bucket="bucket").get("Uploads", [])
    store.write("x", put(b"1" * 1000))
    head = client.head_object(Bucket="bucket", Key="one-put/x")
    assert "-" not in head["ETag"]  # S3 marks multipart objects so
    assert client.list_multipart_uploads(Bucket="bucket").get("Uploads", []) == before


def test_a_large_file_arrives_whole_on_an_object_store(bucket):
    uri, _ = bucket
    store = open_store(uri("large"))
    data = os.urandom(1 << 20) * 25
    store.write("x", put(data))
    assert store.read("x") == data


def test_the_probe_of_an_object_store_is_gone(bucket):
    uri, client = bucket
    open_store(uri("probe"))
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket="bucket", Prefix="probe").get("Contents", [])]
    assert not [key for key in keys if not key.endswith("/")]


def test_a_bucket_that_is_not_there_is_wrong_use_and_shows_no_keys(bucket):
    uri, _ = bucket
    with pytest.raises(UsageError, match="NO_SUCH_BUCKET") as caught:
        open_store(uri("x").replace("@bucket/", "@no-such-bucket/"))
    assert "secret" not in str(caught.value)


def test_a_scheme_that_is_not_known_is_wrong_use():
    with pytest.raises(UsageError, match="foo://x"):
        open_store("foo://x/y")


def test_uris_of_odd_keys_lead_back_to_them(bucket):
    uri, _ = bucket
    for key in ("a b", "100%", "a%20b", "é#?&.jpg", "[x]*", "a+b=c;d"):
        files, path = storage.filesystem(uri_on(uri("pre"), f"bucket/pre/{key}"))
        assert path == f"bucket/pre/{key}"
        with files.open_output_stream(path) as stream:
            stream.write(key.encode())
        again, same = storage.filesystem(uri_on(uri("pre"), path))
        assert again.open_input_stream(same).read() == key.encode()
