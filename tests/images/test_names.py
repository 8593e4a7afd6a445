"""Names: any bytes become text and back, no two names share a text, patterns mean what their docstring says."""

import os
import random

import pytest

from detector.images.names import Patterns, display_name, match_parts, raw_name

SEED = 20260729
# Pieces that are likely to collide: percent signs, halves and wholes of escapes, broken and unbroken UTF-8.
PIECES = [b"%", b"2", b"5", b"25", b"%25", b"F", b"f", b"8", b"0", b"%FF", b"%ff", b"%7F", b"%8", b"\xff", b"\x80",
          b"\xc3", b"\xa9", "é".encode(), "e\u0301".encode(), "\u202e".encode(), b"\xed\xa0\x80", b"\xf0\x9f", "🎨".encode(),
          b"\n", b"\r", b"\t", b",", b'"', b"a", b".jpg", b" ", b"=", b"C", b"3", b"A", b"9"]  # fmt: skip


def random_names(count: int) -> list[bytes]:
    print("seed", SEED)
    rng = random.Random(SEED)
    mixed = [b"".join(rng.choices(PIECES, k=rng.randint(1, 8))) for _ in range(count)]
    return mixed + [bytes(rng.choices(range(1, 256), k=rng.randint(1, 12))) for _ in range(count)]


def test_every_name_comes_back_from_its_text():
    for raw in random_names(20_000):
        text = display_name(raw)
        assert raw_name(text) == raw
        text.encode()  # no lone surrogates: Parquet and CSV take it


def test_no_two_names_share_a_text():
    names = set(random_names(40_000))
    assert len({display_name(raw) for raw in names}) == len(names)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"plain.jpg", "plain.jpg"),
        ("Zoë 🎨.png".encode(), "Zoë 🎨.png"),
        (b"\xff\xfe.jpg", "%FF%FE.jpg"),
        (b"50%.jpg", "50%.jpg"),
        (b"a%20b.jpg", "a%20b.jpg"),
        (b"a%7Fb", "a%7Fb"),
        (b"a%25b", "a%2525b"),
        (b"a%FFb", "a%25FFb"),
        (b"a%c3b", "a%25c3b"),
        (b"a%\xff", "a%%FF"),
        (b"\xed\xa0\x80", "%ED%A0%80"),
        (b"new\nline\r", "new\nline\r"),
    ],
)
def test_text_of_a_name_is_as_the_contract_says(raw, text):
    assert display_name(raw) == text
    assert raw_name(text) == raw


def test_text_from_the_operating_system_gives_its_bytes():
    assert raw_name(os.fsdecode(b"caf\xe9.jpg")) == b"caf\xe9.jpg"


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("*.gif", "a.gif", True),
        ("*.gif", "deep/down/a.gif", True),
        ("*.gif", "a.GIF", False),
        ("thumbs", "x/thumbs/a.jpg", True),
        ("thumbs/", "thumbs/deep/a.jpg", True),
        ("thumbs", "x/thumbs2/a.jpg", False),
        ("/thumbs", "thumbs/a.jpg", True),
        ("/thumbs", "x/thumbs/a.jpg", False),
        ("x/*.jpg", "x/a.jpg", True),
        ("x/*.jpg", "y/x/a.jpg", False),
        ("x/*.jpg", "x/y/a.jpg", False),
        ("**/cache/*", "a/b/cache/c", True),
        ("**/cache/*", "cache/c", True),
        ("x/**", "x", True),
        ("x/**/a.jpg", "x/a.jpg", True),
        ("x/**/a.jpg", "x/y/z/a.jpg", True),
        ("./art/x/*", "x/a.jpg", True),
        ("./other/x/*", "x/a.jpg", False),
        ("?.jpg", "é.jpg", True),
        ("[ab].jpg", "b.jpg", True),
        ("[!ab].jpg", "b.jpg", False),
        ("new*line", "new\nline", True),
        (os.fsdecode(b"caf\xe9*"), "", False),
    ],
)
def test_patterns_fit_what_they_say(pattern, path, fits):
    assert Patterns.of([pattern]).match(b"art", path.encode()) is fits


def test_a_pattern_counts_a_byte_that_is_no_utf8_as_one_character():
    assert Patterns.of(["caf?.jpg"]).match(b"art", b"caf\xe9.jpg")
    assert Patterns.of([os.fsdecode(b"caf\xe9.*")]).match(b"art", b"caf\xe9.jpg")


def test_no_patterns_are_false_and_fit_nothing():
    none = Patterns.of(["", "./"])
    assert not none
    assert not none.match(b"art", b"a.jpg")


def test_below_is_needed_for_what_lies_in_a_folder_that_fits():
    assert match_parts(["a", "b"], ["a"], below=True)
    assert not match_parts(["a", "b"], ["a"])
    assert not match_parts(["a"], ["a", "b"], below=True)
