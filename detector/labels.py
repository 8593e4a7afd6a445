"""What a label means, stated once: 0 = AI, 1 = Real.

Checkpoints name their classes in many ways, in either order, with integer or string ids. Classes are therefore matched
by name, never by position: a detector whose labels are the other way round is the commonest silent mistake of this field.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from detector.errors import UsageError


class Label(IntEnum):
    """The two classes. The value is what stands in every file that this project writes."""

    AI = 0
    REAL = 1


LABEL_NAMES = {Label.AI: "AI", Label.REAL: "Real"}
ID2LABEL = {0: "AI", 1: "Real"}
LABEL2ID = {"AI": 0, "Real": 1}

_AI_WORDS = frozenset({
    "ai", "artificial", "artificialintelligence", "fake", "fakes", "generated", "synthetic", "synth", "machine",
    "deepfake", "aigenerated", "aigc", "aiart", "computergenerated", "diffusion", "gan", "midjourney",
    "generative", "nonhuman",
})  # fmt: skip
_REAL_WORDS = frozenset({
    "real", "reals", "human", "humans", "photo", "photos", "photograph", "authentic", "natural", "genuine",
    "humanmade", "original", "notai", "camera", "pristine", "nonai",
})  # fmt: skip
# Words that say nothing about the side: "AI image", "class real", "human art".
_FILLER = frozenset({"image", "images", "picture", "pictures", "art", "artwork", "artworks", "class", "label", "made", "by",
                     "created", "drawn", "the", "is", "an", "a", "img", "painting"})  # fmt: skip
_NEGATIONS = frozenset({"not", "no", "non"})


@dataclass(frozen=True, kw_only=True)
class LabelMap:
    """Which output of a two-class model stands for which label."""

    ai_index: int
    real_index: int


def side_of(name: str) -> Label | None:
    """The label that a class name stands for, or None where the words do not say."""
    words = [
        w for w in re.split(r"[^a-z]+", re.sub(r"([a-z])([A-Z])|([A-Z])([A-Z][a-z])", r"\1\3 \2\4", str(name)).lower()) if w
    ]
    words = [w for w in words if w not in _FILLER]
    joined = "".join(words)
    if joined in _AI_WORDS:
        return Label.AI
    if joined in _REAL_WORDS:
        return Label.REAL
    negated = any(w in _NEGATIONS for w in words)
    sides = {Label.AI for w in words if w in _AI_WORDS} | {Label.REAL for w in words if w in _REAL_WORDS}
    if len(sides) != 1:
        return None
    side = sides.pop()
    return Label(1 - side) if negated else side


def parse_label(value: object) -> Label:
    """Read one value of a label column: 0, 1, ``"0"``, ``1.0``, or a class name in any case.

    Raises:
        UsageError: the value names neither side.
    """
    text = str(value).strip()
    if text in {"0", "0.0"}:
        return Label.AI
    if text in {"1", "1.0"}:
        return Label.REAL
    side = side_of(text)
    if side is None:
        raise UsageError(f"{text!r} is not a label: use 0 or AI, 1 or Real")
    return side


def map_classes(id2label: Mapping[object, object], *, ai_class: str | None = None) -> LabelMap:
    """Map a checkpoint's class names to the two labels, by name.

    Args:
        id2label: class index (an int, or a string of digits as some published configs have it) → class name.
        ai_class: the class that stands for AI, for names that do not say.

    Raises:
        UsageError: not two classes, indices that are not 0 and 1, or names that do not settle which side is AI.
    """
    try:
        classes = {int(str(index)): str(name) for index, name in id2label.items()}
    except ValueError:
        raise UsageError(f"the checkpoint's class indices are not numbers: {sorted(map(str, id2label))}") from None
    names = ", ".join(repr(classes[i]) for i in sorted(classes))
    if sorted(classes) != [0, 1]:
        raise UsageError(f"the checkpoint is no two-class classifier: it has {len(classes)} classes ({names[:200]})")
    if ai_class is not None:
        chosen = [i for i, name in classes.items() if name.lower() == ai_class.lower()]
        if len(chosen) != 1:
            raise UsageError(f"--ai-class {ai_class!r} names no single class of the checkpoint; its classes are {names}")
        return LabelMap(ai_index=chosen[0], real_index=1 - chosen[0])
    sides = {i: side_of(name) for i, name in classes.items()}
    if set(sides.values()) != {Label.AI, Label.REAL}:
        raise UsageError(f"the checkpoint's class names ({names}) do not say which is AI: name it with --ai-class NAME")
    ai_index = next(i for i, side in sides.items() if side is Label.AI)
    return LabelMap(ai_index=ai_index, real_index=1 - ai_index)
