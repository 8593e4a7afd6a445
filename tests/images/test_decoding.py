"""The protected decoder: whatever a file or a killer does, one outcome for each path, and neighbours unharmed."""

import hashlib
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detector.errors import JobError
from detector.images import child_process, decoding, remote
from detector.images.decoding import Decoder
from detector.images.pixels import DecodeError, DecodeLimits, decode_bytes
from tests.images.hostile import encode, picture, png, scan_bomb, write_hostile
from tests.images.test_pixels import ARTWORKS, CODES, ODD

LIMITS = DecodeLimits()
BAD_IMAGES = ARTWORKS.parent / "bad-images.tar.gz"


@pytest.fixture(scope="module")
def decoder():
    with Decoder() as standing:
        yield standing


def pid(decoder):
    return decoder._child._process.pid


def write(path, data):
    path.write_bytes(data)
    return os.fsencode(path)


def honest(folder, count):
    """Pictures of several kinds, and their pixels decoded here."""
    paths, arrays = [], []
    for seed in range(count):
        kind = ("JPEG", "PNG", "WEBP")[seed % 3]
        data = encode(picture(80 + seed, 60, seed=seed), kind)
        paths.append(write(folder / f"honest-{seed:03}.{kind.lower()}", data))
        arrays.append(decode_bytes(data, LIMITS).pixels)
    return paths, arrays


def running(number):
    try:
        with open(f"/proc/{number}/stat", encoding="ascii") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


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


def test_a_slow_picture_is_a_timeout_and_the_next_ones_are_decoded(tmp_path):
    good, arrays = honest(tmp_path, 3)
    bomb = write(tmp_path / "bomb.jpg", scan_bomb(scans=3000))
    limits = DecodeLimits(max_scans=10**9, timeout_s=0.8)
    with Decoder(limits) as decoder:
        start = time.monotonic()
        found = []
        for at, item in enumerate(decoder.decode([good[0], bomb, good[1], bomb, good[2]])):
            found.append(item.error)
            if at % 2 == 0:
                assert np.array_equal(item.pixels, arrays[at // 2])
        assert found == [None, "timeout", None, "timeout", None]
        assert time.monotonic() - start < 10


def test_a_caller_that_is_away_for_longer_than_the_limit_costs_no_picture(tmp_path):
    good, arrays = honest(tmp_path, 4)
    with Decoder(DecodeLimits(timeout_s=0.3)) as decoder:
        for found, expected in zip(decoder.decode(good), arrays, strict=True):
            time.sleep(0.5)
            assert np.array_equal(found.pixels, expected)


def test_the_limit_is_for_each_picture_and_not_for_all_of_them(tmp_path):
    good, _ = honest(tmp_path, 1)
    start = time.monotonic()

    def paths():
        while time.monotonic() < start + 2.5:
            yield good[0]

    with Decoder(DecodeLimits(timeout_s=1.0)) as decoder:
        assert {found.error for found in decoder.decode(paths())} == {None}


def test_a_bomb_that_rings_the_childs_own_alarm_is_a_timeout(tmp_path):
    good, _ = honest(tmp_path, 1)
    bomb = write(tmp_path / "bomb.jpg", scan_bomb(scans=6000))
    with Decoder(DecodeLimits(max_scans=10**9, timeout_s=0.2)) as decoder:
        items = decoder.decode([good[0], bomb])
        next(items)
        time.sleep(0.2 + 2 + 1)
        assert not running(pid(decoder))
        assert next(items).error == "timeout"


def test_a_picture_over_the_memory_limit_is_out_of_memory_and_the_next_is_decoded(tmp_path):
    good, arrays = honest(tmp_path, 2)
    big = write(tmp_path / "big.png", png(6000, 6000))
    webp = write(tmp_path / "big.webp", encode(Image.new("RGB", (5000, 5000)), "WEBP", method=0))
    with Decoder(DecodeLimits(memory_bytes=64 * 2**20)) as decoder:
        found = []
        for at, item in enumerate(decoder.decode([good[0], big, good[1], webp, good[0]])):
            found.append(item.error)
            if at % 2 == 0:
                assert np.array_equal(item.pixels, arrays[at // 2 % 2])
        assert found == [None, "out_of_memory", None, "out_of_memory", None]


def test_the_memory_limit_does_not_count_the_shared_output(tmp_path):
    big = write(tmp_path / "big.png", png(6000, 6000))  # 144 MB in Pillow, 108 MB in each slot
    with Decoder(DecodeLimits(memory_bytes=200 * 2**20)) as decoder:
        assert [found.error for found in decoder.decode([big] * 4)] == [None] * 4


def test_a_slot_gives_a_giants_memory_back(tmp_path):
    big, small = write(tmp_path / "big.png", png(8000, 8000)), write(tmp_path / "small.png", png(10, 10))
    with Decoder() as decoder:
        list(decoder.decode([big, small, small, small]))
        held = [os.stat(f"/proc/self/fd/{slot.descriptor}").st_blocks * 512 for slot in decoder._slots]
        assert max(held) <= 70 * 2**20


def test_killing_the_child_at_any_moment_costs_nothing(tmp_path):
    good, arrays = honest(tmp_path, 12)
    seed = 7
    print("seed", seed)
    rng = np.random.default_rng(seed)
    stop, kills = threading.Event(), []

    def kill():
        # At least a second apart: a picture is tried twice, and must not be hit twice.
        while not stop.wait(1.0 + rng.uniform(0, 0.3)):
            child = decoder._child
            if child is not None and child.alive():
                os.kill(child._process.pid, signal.SIGKILL)
                kills.append(1)

    with Decoder() as decoder:
        killer = threading.Thread(target=kill)
        killer.start()
        try:
            end = time.monotonic() + 6
            while time.monotonic() < end:
                for found, expected in zip(decoder.decode(good), arrays, strict=True):
                    assert found.error is None, found.message
                    assert np.array_equal(found.pixels, expected)
        finally:
            stop.set()
            killer.join()
    assert len(kills) >= 3


def test_a_child_that_dies_between_two_calls_is_no_pictures_fault(tmp_path):
    good, arrays = honest(tmp_path, 2)
    with Decoder() as decoder:
        for _ in range(3):
            for found, expected in zip(decoder.decode(good), arrays, strict=True):
                assert np.array_equal(found.pixels, expected)
            os.kill(pid(decoder), signal.SIGKILL)
            time.sleep(0.05)


def test_a_picture_that_kills_its_decoder_is_tried_twice_and_no_more(tmp_path, monkeypatch):
    good, arrays = honest(tmp_path, 3)
    poison = write(tmp_path / "poison.png", png(10, 10))
    monkeypatch.setattr(child_process, "_MODULE", "tests.images.poisoned_child")
    monkeypatch.setenv("POISON_LOG", str(tmp_path / "log"))
    with Decoder() as decoder:
        found = []
        for at, item in enumerate(decoder.decode([good[0], poison, good[1], poison, poison, good[2]])):
            found.append(item.error)
            if item.error is None:
                assert np.array_equal(item.pixels, arrays[{0: 0, 2: 1, 5: 2}[at]])
    assert found == [None, "decoder_crashed", None, "decoder_crashed", "decoder_crashed", None]
    assert (tmp_path / "log").read_text() == "tried\n" * 6


def test_memory_that_an_earlier_picture_left_behind_is_not_held_against_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(child_process, "_MODULE", "tests.images.poisoned_child")
    leak, large = write(tmp_path / "leak.png", png(11, 11)), write(tmp_path / "large.png", png(4000, 4000))
    with Decoder(DecodeLimits(memory_bytes=150 * 2**20)) as decoder:
        found = [item.error for item in decoder.decode([leak, large, large, leak, large])]
    assert found == [None] * 5


def test_a_decoder_that_cannot_start_says_why(monkeypatch):
    monkeypatch.setattr(child_process, "_MODULE", "detector.images.no_such_module")
    with Decoder() as decoder, pytest.raises(JobError, match="no_such_module"):
        list(decoder.decode([b"/nowhere.png"]))


PARENT = """
import os, sys, time
from detector.images.decoding import Decoder
from detector.images.pixels import DecodeLimits
decoder = Decoder(DecodeLimits(max_scans=10**9, timeout_s=1.0))
items = decoder.decode([os.fsencode(path) for path in sys.argv[1:]])
first = next(items)
holder = os.fork() if os.environ.get("FORK") else 0
if os.environ.get("FORK") and not holder:
    os.close(1)
    time.sleep(8)
    os._exit(0)
print(decoder._child._process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("busy", "forked"), [(False, False), (True, False), (False, True)])
def test_no_child_outlives_a_killed_parent(tmp_path, monkeypatch, busy, forked):
    """Idle: its stdin ends. Busy: its own alarm. A fork of the parent that still holds the pipe: it looks for its parent."""
    monkeypatch.setenv("FORK", "1" if forked else "")
    paths = [write(tmp_path / "a.png", png(10, 10))]
    paths += [write(tmp_path / "bomb.jpg", scan_bomb(scans=6000))] * busy
    command = [sys.executable, "-c", PARENT, *map(os.fsdecode, paths)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        assert running(child)
        parent.kill()
    end = time.monotonic() + (1.0 + 3 if busy or forked else 1)
    while running(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not running(child)


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


def test_the_iterator_may_be_left_and_begun_again(tmp_path):
    good, arrays = honest(tmp_path, 5)
    with Decoder() as decoder:
        left = decoder.decode(good)
        next(left)
        for found, expected in zip(decoder.decode(good[1:]), arrays[1:], strict=True):
            assert np.array_equal(found.pixels, expected)
        with pytest.raises(RuntimeError):
            next(left)
        del left
        assert [found.error for found in decoder.decode(good)] == [None] * 5
        assert list(decoder.decode([])) == []


def test_a_closed_decoder_leaves_no_process_and_no_descriptor(tmp_path):
    good, _ = honest(tmp_path, 3)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with Decoder() as decoder:
            items = decoder.decode(good)
            next(items)
            child = pid(decoder)
        assert not running(child)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_stale_view_may_be_read_without_harm(tmp_path):
    """A caller that keeps a picture too long reads other pixels, but its process lives."""
    small, big = write(tmp_path / "s.png", png(300, 300)), write(tmp_path / "b.png", png(6000, 6000))
    with Decoder() as decoder:
        kept = [found.pixels for found in decoder.decode([big, small, small, big, small, small])]
        assert sum(int(pixels.sum()) for pixels in kept) >= 0
    assert sum(int(pixels.sum()) for pixels in kept) >= 0


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
