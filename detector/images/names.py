"""File names: the text that stands for any bytes, and the patterns that choose among them.

A file system's names are bytes; tables hold text. Here the one becomes the other and back without two names ever
meeting. Patterns are matched on text in which bytes that are not UTF-8 are lone surrogates, so that ``?`` is one
character, not one byte.
"""

import fnmatch
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

# A percent sign that could be taken for an escape, or a byte that is not UTF-8 (as a lone surrogate).
_TO_ESCAPE = re.compile(r"%(?=25|[89A-Fa-f][0-9A-Fa-f])|[\udc80-\udcff]")
_ESCAPED = re.compile(rb"%(25|[89A-Fa-f][0-9A-Fa-f])")
_MAGIC = re.compile(r"[*?\[]")


def display_name(raw: bytes) -> str:
    """The text for a file name: itself if it is UTF-8, else with ``%XX`` for each byte that is not.

    A literal ``%`` that could be read as such an escape is written ``%25``, so no two names share a text and
    :func:`raw_name` finds the bytes again.
    """
    text = name_text(raw)
    if "%" not in text and (text.isascii() or not _TO_ESCAPE.search(text)):
        return text
    return _TO_ESCAPE.sub(lambda found: f"%{ord(found[0]) & 0xFF:02X}", text)


def raw_name(display: str) -> bytes:
    """The bytes of a file name behind the text of :func:`display_name`; other text is read by the same rule."""
    raw = text_bytes(display)
    return _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), raw) if b"%" in raw else raw


def name_text(raw: bytes) -> str:
    """Bytes as text for matching and for the operating system; lone surrogates stand for what is not UTF-8."""
    return raw.decode("utf-8", "surrogateescape")


def text_bytes(text: str) -> bytes:
    """The bytes of :func:`name_text`'s text, or of an argument of the command line."""
    return text.encode("utf-8", "surrogateescape")


def has_magic(text: str) -> bool:
    """Whether a shell would take the text for a pattern."""
    return _MAGIC.search(text) is not None


def match_parts(parts: Sequence[str], patterns: Sequence[str], *, below: bool = False) -> bool:
    """Whether a path, cut at its slashes, fits a pattern cut likewise; ``**`` stands for any number of folders.

    Args:
        parts: the path.
        patterns: the pattern; case matters, as it does in file names.
        below: what lies below a folder that fits, fits too.
    """
    if not patterns:
        return below or not parts
    if patterns[0] == "**":
        return any(match_parts(parts[at:], patterns[1:], below=below) for at in range(len(parts) + 1))
    if not parts or not fnmatch.fnmatchcase(parts[0], patterns[0]):
        return False
    return match_parts(parts[1:], patterns[1:], below=below)


@dataclass(frozen=True, kw_only=True)
class Patterns:
    """A list of globs of ``--include`` or ``--exclude``.

    Without a slash a pattern is matched with the name of a file or of any folder above it (``*.gif``, ``thumbs``);
    with one, with the path from the listed folder on (``thumbs/*.gif``, ``**/cache/*``); with a leading ``./``, with the
    whole ``filename`` (``./art/thumbs/*``). A folder that fits counts with all that is below it.
    """

    simple: tuple[Callable[[str], object], ...]
    relative: tuple[tuple[str, ...], ...]
    whole: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, globs: Sequence[str]) -> Self:
        """Compile the globs; empty ones are dropped."""
        simple, relative, whole = [], [], []
        for glob in globs:
            parts = tuple(part for part in glob.split("/") if part not in {"", "."})
            if not parts:
                continue
            if glob.startswith("./"):
                whole.append(parts)
            elif len(parts) == 1 and not glob.startswith("/"):
                simple.append(re.compile(fnmatch.translate(parts[0])).match)
            else:
                relative.append(parts)
        return cls(simple=tuple(simple), relative=tuple(relative), whole=tuple(whole))

    def __bool__(self) -> bool:
        return bool(self.simple or self.relative or self.whole)

    def match(self, folder: bytes, relative: bytes) -> bool:
        """Whether a path fits any of the patterns: ``relative`` below the listed folder that is named ``folder``."""
        parts = name_text(relative).split("/")
        if any(fits(part) for fits in self.simple for part in parts):
            return True
        if any(match_parts(parts, patterns, below=True) for patterns in self.relative):
            return True
        return any(match_parts([name_text(folder), *parts], patterns, below=True) for patterns in self.whole)
