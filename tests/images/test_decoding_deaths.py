"""The protected decoder's child may die at any moment, of a picture or of a stranger: one outcome for each path all the same."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from detector.errors import JobError
from detector.images import child_process
from detector.images.decoding import Decoder
from tests.images.decoding_files import honest, pid, running, write
from tests.images.hostile import png, scan_bomb


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
