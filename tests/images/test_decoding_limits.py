"""The protected decoder's limits: time and memory that one picture may take, and what they cost its neighbours."""

import os
import time

import numpy as np
from PIL import Image

from detector.images import child_process
from detector.images.decoding import Decoder
from detector.images.pixels import DecodeLimits
from tests.images.decoding_files import honest, pid, running, write
from tests.images.hostile import encode, png, scan_bomb


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
    big = write(tmp_path / "big.png", png(6000, 6000, colour=6))
    webp = write(tmp_path / "big.webp", encode(Image.new("RGB", (5000, 5000)), "WEBP", method=0))
    with Decoder(DecodeLimits(memory_bytes=64 * 2**20)) as decoder:
        found = []
        for at, item in enumerate(decoder.decode([good[0], big, good[1], webp, good[0]])):
            found.append(item.error)
            if at % 2 == 0:
                assert np.array_equal(item.pixels, arrays[at // 2 % 2])
        assert found == [None, "out_of_memory", None, "out_of_memory", None]


def test_the_memory_limit_does_not_count_the_shared_output(tmp_path):
    big = write(tmp_path / "big.png", png(6000, 6000, colour=6))  # 144 MB with its alpha, 108 MB in each slot
    with Decoder(DecodeLimits(memory_bytes=200 * 2**20)) as decoder:
        assert [found.error for found in decoder.decode([big] * 4)] == [None] * 4


def test_a_slot_gives_a_giants_memory_back(tmp_path):
    big, small = write(tmp_path / "big.png", png(8000, 8000)), write(tmp_path / "small.png", png(10, 10))
    with Decoder() as decoder:
        list(decoder.decode([big, small, small, small]))
        held = [os.stat(f"/proc/self/fd/{slot.descriptor}").st_blocks * 512 for slot in decoder._slots]
        assert max(held) <= 70 * 2**20


def test_memory_that_an_earlier_picture_left_behind_is_not_held_against_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(child_process, "_MODULE", "tests.images.poisoned_child")
    leak, large = write(tmp_path / "leak.png", png(11, 11)), write(tmp_path / "large.png", png(4000, 4000, colour=6))
    with Decoder(DecodeLimits(memory_bytes=150 * 2**20)) as decoder:
        found = [item.error for item in decoder.decode([leak, large, large, leak, large])]
    assert found == [None] * 5
