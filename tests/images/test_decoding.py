"""The protected decoder: whatever a file is, one outcome for each path, and neighbours unharmed."""

import hashlib
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from detector.images import decoding, remote
from detector.images.decoding import Decoder
from detector.images.pixels import DecodeError, DecodeLimits, decode_bytes
from tests.images.decoding_files import LIMITS, honest, write
from tests.images.hostile import encode, picture, png, write_hostile
from tests.images.test_pixels import ARTWORKS, CODES, ODD

BAD_IMAGES = ARTWORKS.parent / "bad-images.tar.gz"


@pytest.fixture(scope="module")
def decoder():
    with Decoder() as standing:
        yield standing


def test_outcomes_are_those_of_decoding_here(decoder, tmp_path):
    paths = [write(tmp_path / name, data) for name, data in ODD.items()]
    for path, found in zip(paths, decoder.decode(paths), strict=True):
        data = Path(os.fsdecode(path)).read_bytes()
        here = decode_bytes(data, LIMITS)
        assert np.array_equal(found.pixels, here.pixels), path
        assert (found.error, found.width, found.height, found.format) == (None, here.width, here.height, here.format)
        assert found.sha256 == hashlib.sha256(data).hexdigest()
        assert (found.num_bytes, found.modified_ns) == (len(data), os.stat(path).st_mtime_ns)


def test_each_hostile_file_is_one_outcome_and_its_neighbours_keep_their_pixels(decoder, tmp_path):
    good, arrays = honest(tmp_path, 6)
    (tmp_path / "hostile").mkdir()
    hostile = write_hostile(tmp_path / "hostile")
    order = [path for at, entry in enumerate(hostile) for path in (good[at % 6], entry.path)]
    order.append(good[len(hostile) % 6])
    results = []
    for at, found in enumerate(decoder.decode(order)):
        assert found.error in CODES | {None}
        assert (found.error is None) == (found.message is None) == (found.pixels is not None)
        if at % 2 == 0:
            assert np.array_equal(found.pixels, arrays[at // 2 % 6]), order[at - 1 : at + 2]
        else:
            assert found.error in hostile[at // 2].outcomes, (order[at], found.error, found.message)
        results.append(found.error)
    assert len(results) == len(order)


def test_a_file_that_changes_while_it_is_read_is_unreadable_and_not_scored(tmp_path, monkeypatch):
    """Called here rather than in the child, to write between its two looks at the file."""
    from detector.images import decoder_child

    path = write(tmp_path / "a.png", png(10, 10))

    def read_and_change(descriptor, most):
        data = os.read(descriptor, most)
        (tmp_path / "a.png").write_bytes(data + b"more")
        return data

    monkeypatch.setattr(decoder_child, "_read_all", read_and_change)
    with pytest.raises(DecodeError) as caught:
        decoder_child.read_file(path, LIMITS, {})
    assert caught.value.code == "unreadable"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_unreadable(decoder, tmp_path):
    path = write(tmp_path / "a.png", png(10, 10))
    os.chmod(path, 0)
    assert [found.error for found in decoder.decode([path])] == ["unreadable"]


def test_paths_that_no_file_can_have_are_outcomes_too(decoder):
    found = [item.error for item in decoder.decode([b"", b"/a\0b", b"/" + b"x" * 5000, b"/no/such", b"/dev/null", b"/"])]
    assert found == ["vanished", "unreadable", "unreadable", "vanished", "unreadable", "unreadable"]


def test_works_from_another_folder_that_holds_modules_of_the_same_names(tmp_path):
    for name in ("numpy", "PIL", "json", "detector", "simplejpeg"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported a stranger')")
    path = write(tmp_path / "a.png", png(10, 10))
    code = f"import os; os.chdir({str(tmp_path)!r})\nprint([d.error for d in decoding.Decoder().decode([{path!r}])])"
    root = str(Path(decoding.__file__).parents[2])
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r}); from detector.images import decoding; {code}"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert ended.stdout.strip() == "[None]", ended.stderr


def test_the_child_imports_no_torch_and_no_ray(tmp_path):
    code = "import sys, detector.images.decoder_child; print({'torch', 'ray', 'pyarrow', 'transformers'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "set()"


def test_remote_files_are_decoded_under_the_same_limits(decoder, tmp_path, monkeypatch):
    from pyarrow import fs

    good, arrays = honest(tmp_path, 8)
    write(tmp_path / "cut.jpg", encode(picture(300, 300), "JPEG")[:2000])
    write(tmp_path / "large.png", b"x" * 200_000)
    (tmp_path / "folder.png").mkdir()
    local = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(remote, "filesystem", lambda uri: (local, uri.removeprefix("s3://bucket/")))
    names = [os.path.basename(path).decode() for path in good]
    names = [*names[:4], "gone.png", "cut.jpg", *names[4:], "large.png", "folder.png"]
    uris = [f"s3://bucket/{name}".encode() for name in names]
    expected = dict(zip([os.path.basename(path).decode() for path in good], arrays, strict=True))
    errors = {"gone.png": "vanished", "cut.jpg": "truncated", "large.png": "too_large", "folder.png": "unreadable"}
    with Decoder(DecodeLimits(max_bytes=100_000)) as limited:
        for name, found in zip(names, limited.decode(uris), strict=True):
            assert found.error == errors.get(name), found.message
            if found.error is None:
                assert np.array_equal(found.pixels, expected[name])
                data = (tmp_path / name).read_bytes()
                assert (found.num_bytes, found.sha256) == (len(data), hashlib.sha256(data).hexdigest())
                assert found.modified_ns == os.stat(tmp_path / name).st_mtime_ns
    mixed = [uris[0], good[1], uris[2], good[3]]
    for found, array in zip(decoder.decode(mixed), arrays[:4], strict=True):
        assert np.array_equal(found.pixels, array)


def test_a_remote_store_that_hangs_is_a_timeout(monkeypatch, tmp_path):
    path = write(tmp_path / "a.png", png(10, 10))
    release = threading.Event()
    monkeypatch.setattr(remote, "filesystem", lambda uri: release.wait(30))
    with Decoder(DecodeLimits(timeout_s=0.3)) as decoder:
        found = [item.error for item in decoder.decode([b"s3://bucket/a.png", path])]
    release.set()
    assert found == ["timeout", None]


@pytest.mark.skipif(not BAD_IMAGES.exists(), reason=f"no {BAD_IMAGES}")
def test_all_known_bad_images_are_outcomes(decoder, tmp_path):
    with tarfile.open(BAD_IMAGES) as archive:
        archive.extractall(tmp_path, filter="data")
    root = os.fsencode(tmp_path / "files")
    paths = sorted(os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names)
    start = time.monotonic()
    codes = Counter(found.error or "decoded" for found in decoder.decode(paths))
    print(f"{len(paths)} files in {time.monotonic() - start:.1f} s: {dict(codes)}")
    assert len(paths) == codes.total() >= 300
    assert set(codes) <= CODES | {"decoded"}
    assert codes["decoder_crashed"] == codes["unreadable"] == codes["vanished"] == 0
    assert time.monotonic() - start < 90
