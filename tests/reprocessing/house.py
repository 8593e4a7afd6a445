"""A folder with a collections file, and what jobs.reprocess leaves in it."""

import csv
import json
import os
import subprocess
import sys

import numpy as np

from detector.reprocessing.reprocess import reprocess
from detector.scoring import local
from tests import pictures

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
HEADER = "filename,change,old_label,new_label,old_score,new_score,old_model,new_model\n"


class House:
    """A folder with collections.toml and one collection "art" beside it."""

    def __init__(self, path, model):
        self.path, self.models = path, {"art": model}
        self.images, self.out, self.file = path / "art", path / "out", path / "collections.toml"
        pictures.folder(self.images, 12, seed=5, kinds=("jpg", "png", "bmp"))
        self.write()

    def write(self, *more, **keys):
        """One collection "art" with extra keys, and ``more`` tables as they stand."""
        extra = "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
        first = (
            f'[[collection]]\nname = "art"\nimages = "art"\nout = "out"\nmodel = {json.dumps(self.models["art"])}\n'
            f'engine = "local"\nscorers = 1\n{extra}'
        )
        self.file.write_text("\n".join([first, *more]), encoding="utf-8")

    def run(self, slot=None):
        return reprocess(str(self.file), slot=slot)

    def changes(self):
        with open(self.out / "changes.csv", encoding="utf-8", newline="") as file:
            return {line["filename"]: line for line in csv.DictReader(file)}

    def kinds(self):
        return {name.removeprefix("./art/"): line["change"] for name, line in self.changes().items()}

    def errors(self):
        with open(self.out / "errors.csv", encoding="utf-8", newline="") as file:
            return {line["filename"]: line["error"] for line in csv.DictReader(file)}

    def read(self, name):
        return (self.out / name).read_bytes()

    def records(self):
        records = [json.loads(file.read_bytes()) for file in (self.out / "history").iterdir()]
        return sorted(records, key=lambda record: record["started"])


def replaced(path, seed):
    """Another picture under the same name, of the same size to the byte."""
    size = path.stat().st_size
    with_ = np.random.default_rng(seed).integers(0, 256, size - 54, dtype=np.uint8).tobytes()
    path.write_bytes(path.read_bytes()[:54] + with_)  # a BMP's header is 54 bytes
    assert path.stat().st_size == size


def forbid_scoring(monkeypatch):
    def fail(*_args, **_kwargs):
        raise AssertionError("something was decoded though nothing had changed")

    monkeypatch.setattr(local, "score_blocks", fail)


def rows(house):
    with open(house.out / "predictions.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def job(house, *flags, code=""):
    """Run the job as its own process, with some code before it."""
    program = f"import sys\nfrom jobs.reprocess import Flags, main\nfrom detector.cli import run_job\n{code}\n"
    program += "sys.exit(run_job('reprocess', Flags, main))"
    command = [sys.executable, "-c", program, "--config", str(house.file), *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


def other(name, out, images="art", model="nowhere/at-all/model"):
    return f'[[collection]]\nname = "{name}"\nimages = "{images}"\nout = "{out}"\nmodel = "{model}"\nengine = "local"\n'
