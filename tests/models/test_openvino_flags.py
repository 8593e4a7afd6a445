"""Where ``--backend openvino`` cannot be: one line that says so, before anything is done. Needs no OpenVINO."""

import pytest

from detector.cli import run_job
from detector.errors import UsageError
from detector.models import devices
from detector.models.devices import resolve_settings
from detector.scoring.config import ScoreConfig


def config(**flags):
    return ScoreConfig(images=("pictures",), model="model", out="out", backend="openvino", **flags)


def test_without_the_package_it_is_one_line_and_exit_2(monkeypatch, capsys, tmp_path):
    def version(name):
        raise devices.metadata.PackageNotFoundError(name)

    from jobs.score import main

    monkeypatch.setattr(devices.metadata, "version", version)
    flags = ["--images", str(tmp_path), "--model", str(tmp_path), "--out", str(tmp_path / "out"), "--backend", "openvino"]
    assert run_job("score", ScoreConfig, main, flags) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1
    assert "pip install '.[openvino]'" in lines[0]


def test_gpus_are_refused_and_not_taken(monkeypatch):
    monkeypatch.setattr(devices.metadata, "version", lambda _name: "1.2.3")
    with pytest.raises(UsageError, match="--backend openvino scores on CPUs"):
        config(gpus_per_scorer=0.5).check()
    for flags in ({}, {"gpus_per_scorer": 0.0}):
        config(**flags).check()
        assert not config(**flags).wants_gpus
    assert ScoreConfig(images=("pictures",), model="model", out="out").wants_gpus
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        resolve_settings(kind="cpu", batch_size=None, precision="fp16", backend="openvino")
    with pytest.raises(UsageError, match="scores on CPUs"):
        resolve_settings(kind="cuda", batch_size=None, precision="auto", backend="openvino")
