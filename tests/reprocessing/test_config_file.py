"""The TOML file: every flag of jobs.score is a key; what is wrong is named; relative paths are the file's."""

import dataclasses
import json
import os
import typing
from typing import Literal

import pytest

from detector.errors import UsageError
from detector.reprocessing.config_file import read_collections
from detector.scoring.config import ScoreConfig

LEAST = '[[collection]]\nname = "art"\nimages = "art"\nmodel = "owner/name"\nout = "out"\n'


def read(tmp_path, text):
    file = tmp_path / "collections.toml"
    file.write_text(text, encoding="utf-8")
    return read_collections(str(file))


def example(kind):
    """(the text of a TOML value, what it becomes) for the type of a flag."""
    options = [option for option in typing.get_args(kind) if option is not type(None)]
    if typing.get_origin(kind) is Literal:
        return json.dumps(options[-1]), options[-1]
    if typing.get_origin(kind) is tuple:
        return '["a", "b"]', ("a", "b")
    if options:  # int | None and the like
        return example(options[0])
    return {bool: ("true", True), int: ("64", 64), float: ("1", 1.0), str: ('"x"', "x")}[kind]


@pytest.mark.parametrize("dash", ["-", "_"])
def test_every_flag_of_jobs_score_is_a_key_with_dash_or_underscore(tmp_path, dash):
    kinds = typing.get_type_hints(ScoreConfig)
    wanted = {name: example(kind) for name, kind in kinds.items() if name not in {"images", "model", "out"}}
    wanted["gpus_per_scorer"] = ("0.0", 0.0)  # with any other, the back-end that comes out above is refused
    assert len(wanted) >= 16
    lines = [f"{name.replace('_', dash)} = {text}\n" for name, (text, _) in wanted.items()]
    (only,) = read(tmp_path, LEAST + "".join(lines))
    found = dataclasses.asdict(only.config)
    for name, (_, value) in wanted.items():
        expected = str(tmp_path / value) if name == "convert_weights" else value  # a path: relative to the file
        assert found[name] == expected, name
        assert type(found[name]) is type(value), name


def test_a_single_text_does_for_a_list(tmp_path):
    (only,) = read(tmp_path, LEAST + 'exclude = "thumbs"\n')
    assert only.config.exclude == ("thumbs",)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "names no collection"),
        ("collection = 3\n", "names no collection"),
        ("[collection]\nname = 'x'\n", "names no collection"),
        ("colection = []\n" + LEAST, "colection"),
        ("[[collection]\n", "not TOML"),
        (LEAST.replace('name = "art"\n', ""), "name must be"),
        (LEAST.replace('"art"\nimages', "7\nimages"), "name must be"),
        (LEAST.replace('images = "art"\n', ""), "images is missing"),
        (LEAST.replace('images = "art"', "images = []"), "images is missing"),
        (LEAST.replace('model = "owner/name"\n', ""), "model is missing"),
        (LEAST.replace('out = "out"\n', ""), "out is missing"),
        (LEAST + "batchsize = 3\n", "unknown key 'batchsize'"),
        (LEAST + 'batch-size = "3"\n', "batch_size must be a whole number"),
        (LEAST + "batch-size = 3.0\n", "batch_size must be a whole number"),
        (LEAST + "limit = true\n", "limit must be a whole number"),
        (LEAST + "rescore = 1\n", "rescore must be true or false"),
        (LEAST + 'max-error-rate = "0.1"\n', "max_error_rate must be a number"),
        (LEAST + "precision = 'fp8'\n", "precision must be one of auto, fp32, bf16, fp16"),
        (LEAST + "include = [1]\n", "include must be a text or a list of texts"),
        (LEAST + "ai-class = 3\n", "ai_class must be a text"),
        (LEAST + "batch-size = 3\nbatch_size = 4\n", "given twice"),
        (LEAST + "batch-size = 0\n", "--batch-size must be at least 1"),
        (LEAST + LEAST.replace('out = "out"', 'out = "other"'), "two collections have the name 'art'"),
        (LEAST + LEAST.replace('"art"\nimages', '"b"\nimages').replace('"out"', '"./out/"'), "two collections have the out"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, says):
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere\.toml"):
        read_collections(str(tmp_path / "nowhere.toml"))


def test_relative_paths_are_relative_to_the_file(tmp_path, monkeypatch):
    (tmp_path / "models" / "swin").mkdir(parents=True)
    (tmp_path / "a=b").mkdir()
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", "/home/someone")
    images = '["art", "named=more", "a=b", "/abs", "~/pictures", "s3://bucket/key", "n=s3://b/k", "art/*.jpg", "file:///x"]'
    text = LEAST.replace('"art"\nmodel', f"{images}\nmodel").replace("owner/name", "models/swin")
    (only,) = read(tmp_path, text)
    here = str(tmp_path)
    assert only.config.images == (
        f"{here}/art", f"named={here}/more", f"{here}/a=b", "/abs", "/home/someone/pictures", "s3://bucket/key",
        "n=s3://b/k", f"{here}/art/*.jpg", "/x",
    )  # fmt: skip
    assert only.config.model == f"{here}/models/swin"
    assert only.config.out == f"{here}/out"


@pytest.mark.parametrize(("model", "kept"), [("owner/name", True), ("name", True), ("./name", False), ("a/b/c", False)])
def test_what_can_only_be_a_path_is_no_hub_id(tmp_path, model, kept):
    (only,) = read(tmp_path, LEAST.replace("owner/name", model))
    assert only.config.model == (model if kept else os.path.join(tmp_path, model))
