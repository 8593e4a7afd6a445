import html.parser
import re

import pytest

from detector.evaluation.caveats import caveats_of
from detector.evaluation.judge import judge
from detector.evaluation.predictions import read_predictions
from detector.evaluation.report import draw_all, render_evaluation, render_overview, to_json, visible
from detector.evaluation.truth import read_truth
from tests.evaluation.conftest import row

HOSTILE = [
    "<script>alert(1)</script>.jpg", '"><img src=x onerror=alert(1)>.png', "gpj.\u202eexe", "new\nline\rand\ttab.jpg",
    "a" * 251 + ".jpg", "{{ 7 * 7 }}{% raw %}.jpg", "&lt;b&gt;.jpg", "$\\frac{a}{b}$.jpg", "\u2066zero\u200b.jpg", "=cmd|calc",
]  # fmt: skip


class Page(html.parser.HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.ids = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_data(self, data):
        self.text += data


def rendered(folder, csv):
    predictions, truth = read_predictions(folder), read_truth(csv)
    judgement = judge(predictions, truth, num_resamples=50)
    return render_evaluation(judgement, predictions, truth, draw_all(judgement)), judgement


def caveats(folder, csv):
    predictions = read_predictions(folder)
    found = caveats_of(judge(predictions, read_truth(csv), num_resamples=50), predictions)
    return " ".join(caveat.text for caveat in found if caveat.is_warning)


def test_a_page_shows_the_headline_the_figures_and_the_groups(corpus):
    text, judgement = rendered(*corpus)
    page = Page(text)
    assert f"{judgement.metrics['f1']:.3f}" in page.text
    low, high = judgement.metrics["intervals"]["f1"]
    assert f"{low:.3f} to {high:.3f}" in page.text
    assert page.tags.count("svg") == 5
    for word in ("north", "south", "gan", "JPEG", "PNG", "up to 256 px", "The surest mistakes"):
        assert word in page.text, word


def test_a_page_needs_nothing_from_outside_and_runs_nothing(corpus):
    text, _ = rendered(*corpus)
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "img"} & set(page.tags)
    assert not [name for name in page.attributes if name.startswith("on") or name in {"src", "action"}]
    addresses = re.findall(r"(?:url\(|href=\"|@import)([^)\"]*)", text)
    assert all(address.startswith("#") for address in addresses)
    assert len(page.ids) == len(set(page.ids))


@pytest.mark.parametrize("judged", [True, False])
def test_strangers_text_is_shown_and_never_becomes_markup(save, write_csv, judged):
    rows, lines = [], ["filename,label,source,generator"]
    for i, name in enumerate(HOSTILE):
        failed = i % 4 == 3
        more = {"error": "<b>odd", "message": "</td><script>\n"} if failed else {"format": "<i>", "model": "</dd><script>"}
        rows.append(row(f"./in/{name}", None if failed else 0.4 + 0.02 * i, **more))
        quoted = f"./in/{name}".replace('"', '""')
        lines.append(f'"{quoted}",{i % 2},"<script>\u202e$x$</script>","</td>"')
    folder = save(rows)
    text = rendered(folder, write_csv("\n".join(lines)))[0] if judged else render_overview(read_predictions(folder))
    page = Page(text)
    assert not {"script", "img", "b\u202e"} & set(page.tags)
    assert not set("\u202e\u2066\u200b\r") & set(text)
    for shown in ("<script>alert(1)</script>.jpg", "gpj.\\u202eexe", "{{ 7 * 7 }}", "&lt;b&gt;.jpg", "a" * 251, "<b>odd"):
        assert shown in page.text, shown


def test_without_truth_the_page_counts_and_does_not_judge(save):
    rows = [row("./a/1.jpg", 0.9), row("./a/2.jpg", 0.51), row("./a/3.jpg", 0.2), row("./a/4.jpg", error="timeout")]
    page = Page(render_overview(read_predictions(save(rows))))
    assert "No truth was given" in page.text
    assert "timeout" in page.text
    assert "F1" not in page.text
    order = [page.text.index(name) for name in ("./a/2.jpg", "./a/3.jpg", "./a/1.jpg")]
    assert order == sorted(order)  # least sure first


@pytest.mark.parametrize("rows", [[], [row("./a/1.jpg")], [row("./a/1.jpg", 0.5)]])
def test_a_page_can_be_made_of_next_to_nothing(save, rows):
    assert "<main>" in render_overview(read_predictions(save(rows)))


def test_one_class_makes_a_page_without_curves(save, write_csv):
    text, _ = rendered(save([row("./a/1.jpg", 0.9)]), write_csv("filename,label\n1.jpg,AI\n"))
    page = Page(text)
    assert page.tags.count("svg") == 2
    assert "not defined" in page.text


def test_warnings_name_what_could_mislead(save, write_csv, corpus):
    same = save([row(f"./a/{i}.jpg", 0.9) for i in range(8)], "same")
    csv = write_csv("filename,label,source\n" + "".join(f"{i}.jpg,{i % 2},Synthetic {i % 2}\n" for i in range(8)), "same.csv")
    told = caveats(same, csv)
    for words in ("Only 4 AI pictures", "synthetic", "calls every picture AI", "No source holds both classes"):
        assert words in told, words
    told = caveats(*corpus)
    assert "Only 60 human-made pictures" in told
    assert "synthetic" not in told
    assert "calls every picture" not in told


def test_a_weak_group_is_named(save, write_csv):
    rows = [row(f"./a/{i}.jpg", 0.9 if i % 2 else 0.1) for i in range(400)]
    lines = [f"{i}.jpg,{i % 2 if i < 40 else 1 - i % 2},{'odd' if i < 40 else 'even'}\n" for i in range(400)]
    assert "source odd (0% of 40 right)" in caveats(save(rows), write_csv("filename,label,source\n" + "".join(lines)))


def test_json_refuses_nan():
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"f1": float("nan")})


def test_visible_keeps_letters_of_every_script_and_shows_what_hides():
    assert visible("žluť 絵 🎨") == "žluť 絵 🎨"
    assert visible("a\u202eb\nc\x00") == "a\\u202eb\\nc\\x00"
