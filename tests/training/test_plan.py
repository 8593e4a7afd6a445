"""What is refused before Ray starts, one clear line each; and what is dropped, counted and listed instead."""

import os
import shutil

import pytest

from detector.errors import UsageError
from detector.training.config import TrainConfig
from detector.training.dataset import class_counts, hold_out, read_split
from detector.training.plan import plan_training
from tests.training import corpora

SEED = 9


def config(data, out, **changes):
    return TrainConfig(**{"data": str(data), "out": str(out), "model": "scratch:tiny", **changes})


@pytest.fixture
def data(tmp_path):
    print(f"seed {SEED}")
    return corpora.tree(tmp_path / "data", 6, seed=SEED, side=32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "/nowhere"}, "no such folder"),
        ({"train_split": "test"}, "no split 'test': it has train"),
        ({"model": "scratch:none"}, "no such architecture"),
        ({"model": "/nowhere"}, "no such folder"),
        ({"epochs": 0}, "--epochs"),
        ({"learning_rate": 0.0}, "--learning-rate"),
        ({"validation_fraction": 0.9}, "--validation-fraction"),
        ({"gpus_per_worker": -1.0}, "--gpus-per-worker"),
        ({"data": "s3://bucket/data"}, "mounted folder"),
    ],
)
def test_wrong_use_is_one_clear_line(data, tmp_path, changes, message):
    with pytest.raises(UsageError, match=message) as caught:
        plan_training(config(**{"data": data, "out": tmp_path / "out", **changes}))
    assert "\n" not in str(caught.value)


def test_a_class_without_pictures_is_refused(data, tmp_path):
    shutil.rmtree(os.path.join(data, "train", "Real"))
    with pytest.raises(UsageError, match="train/Real has no pictures"):
        plan_training(config(data, tmp_path / "out"))


def test_one_picture_of_a_class_is_refused(data, tmp_path):
    for index in range(1, 6):
        os.unlink(os.path.join(data, "train", "AI", f"{index:04d}.jpg"))
    with pytest.raises(UsageError, match=r"class AI has 1 readable picture.*at least two"):
        plan_training(config(data, tmp_path / "out"))


def test_broken_pictures_are_dropped_and_listed(data, tmp_path):
    for index in range(3):
        with open(os.path.join(data, "train", "AI", f"{index:04d}.jpg"), "wb") as file:
            file.write(b"\xff\xd8\xff\xe0 broken")
    plan = plan_training(config(data, tmp_path / "out"))
    assert [name for name, _ in plan.dropped] == [f"train/AI/{index:04d}.jpg" for index in range(3)]
    assert len(plan.holdout.train) + len(plan.holdout.validation) == 9


def test_hidden_files_are_no_pictures(data):
    with open(os.path.join(data, "train", "AI", ".DS_Store"), "wb") as file:
        file.write(b"x")
    assert len(read_split(data, "train")) == 12


def test_the_held_out_share_is_drawn_per_class_and_source(tmp_path):
    """40 : 10 pictures of AI in two sources and 30 of Real: a tenth of each, rounded by class."""
    import pyarrow as pa

    rows = [(f"train/AI/{i:03d}", 0, "large" if i < 40 else "small") for i in range(50)]
    rows += [(f"train/Real/{i:03d}", 1, "large") for i in range(30)]
    table = pa.table({
        "filename": [row[0] for row in rows], "path": [row[0].encode() for row in rows],
        "label": pa.array([row[1] for row in rows], pa.int8()), "source": [row[2] for row in rows],
    })  # fmt: skip
    held = hold_out(table, fraction=0.1, seed=1)
    assert class_counts(held.validation) == {"AI": 5, "Real": 3}
    sources = held.validation.filter(pa.compute.equal(held.validation["label"], 0))["source"].to_pylist()
    assert sorted(sources) == ["large"] * 4 + ["small"]
    names = held.train["filename"].to_pylist() + held.validation["filename"].to_pylist()
    assert sorted(names) == [row[0] for row in rows]
    assert hold_out(table, fraction=0.1, seed=1).validation.equals(held.validation)
    assert not hold_out(table, fraction=0.1, seed=2).validation.equals(held.validation)


def test_planning_imports_neither_torch_nor_ray(data, tmp_path):
    """A wrong flag is told in a second, not after the engines have been loaded."""
    import subprocess
    import sys

    code = (
        "import sys; from detector.training.config import TrainConfig; from detector.training.plan import plan_training\n"
        f"plan_training(TrainConfig(data={str(data)!r}, model='scratch:tiny', out={str(tmp_path / 'out')!r}))\n"
        "sys.exit(bool({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=corpora.ROOT, check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("job", ["train", "prepare"])
def test_help_answers_without_the_engines(job):
    import subprocess
    import sys

    code = (
        f"import sys, runpy; sys.argv = ['x', '--help']\n"
        f"try:\n    runpy.run_module('jobs.{job}', run_name='__main__')\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'ray', 'transformers', 'pyarrow', 'pandas'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=corpora.ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--source" in done.stdout or "--learning-rate" in done.stdout
