"""0 = AI, 1 = Real, whatever a checkpoint calls its classes."""

import pytest

from detector.errors import UsageError
from detector.labels import Label, map_classes, parse_label, side_of


@pytest.mark.parametrize(
    "name", ["AI", "ai", "artificial", "Fake", "generated", "synthetic", "AI-generated", "ai_art", "AIImage", "not real"]
)
def test_names_of_the_ai_side(name):
    assert side_of(name) is Label.AI


@pytest.mark.parametrize(
    "name", ["Real", "human", "photo", "Authentic", "natural", "Real image", "human_made", "not AI", "non-ai"]
)
def test_names_of_the_real_side(name):
    assert side_of(name) is Label.REAL


@pytest.mark.parametrize("name", ["LABEL_0", "cat", "", "0", "AI or human", "fake photo"])
def test_names_that_do_not_say_are_not_guessed(name):
    assert side_of(name) is None


@pytest.mark.parametrize("id2label", [{0: "AI", 1: "Real"}, {"0": "artificial", "1": "human"}])
def test_order_ai_first(id2label):
    assert map_classes(id2label).ai_index == 0


@pytest.mark.parametrize("id2label", [{0: "Real", 1: "Fake"}, {"1": "artificial", "0": "human"}])
def test_order_real_first(id2label):
    found = map_classes(id2label)
    assert (found.ai_index, found.real_index) == (1, 0)


@pytest.mark.parametrize(
    ("id2label", "says"),
    [
        ({0: "LABEL_0", 1: "LABEL_1"}, "--ai-class"),
        ({0: "AI", 1: "fake"}, "--ai-class"),
        ({0: "cat", 1: "dog", 2: "bird"}, "two-class"),
        ({0: "AI"}, "two-class"),
        ({"x": "AI", "y": "Real"}, "not numbers"),
    ],
)
def test_ambiguous_maps_are_refused(id2label, says):
    with pytest.raises(UsageError, match=says):
        map_classes(id2label)


def test_ai_class_settles_it():
    assert map_classes({0: "LABEL_0", 1: "LABEL_1"}, ai_class="label_1").ai_index == 1
    with pytest.raises(UsageError, match="names no single class"):
        map_classes({0: "LABEL_0", 1: "LABEL_1"}, ai_class="other")


@pytest.mark.parametrize(("value", "label"), [(0, 0), ("1", 1), (1.0, 1), ("ai", 0), (" Real ", 1), ("human", 1)])
def test_label_values(value, label):
    assert parse_label(value) == label


@pytest.mark.parametrize("value", ["2", "", "maybe", None, "nan"])
def test_unknown_label_values_are_refused(value):
    with pytest.raises(UsageError, match="is not a label"):
        parse_label(value)
