"""A checkpoint is understood in every form that exists, or refused with one clear line."""

import json
import os
import pickle
import subprocess
import sys

import pytest

from detector.errors import UsageError
from detector.models.checkpoint import inspect_checkpoint, load_model
from tests.checkpoints import save_swin


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_swin(tmp_path_factory.mktemp("checkpoint"))


def edited(folder, tmp_path, file, **changes):
    """A copy of the checkpoint with one JSON file changed; None removes a key."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in os.listdir(folder):
        (copy / name).write_bytes((open(os.path.join(folder, name), "rb")).read())
    value = json.loads((copy / file).read_text()) | changes
    (copy / file).write_text(json.dumps({k: v for k, v in value.items() if v is not None}))
    return str(copy)


def test_old_and_new_forms_give_the_same_model(tmp_path):
    new = inspect_checkpoint(save_swin(tmp_path / "new", names=("human", "artificial")))
    old = inspect_checkpoint(save_swin(tmp_path / "old", names=("human", "artificial"), old_form=True))
    assert new.transform == old.transform
    assert new.label_map == old.label_map
    assert old.label_map.ai_index == 1
    load_model(old)


def test_fingerprint_changes_with_everything_that_changes_a_score(folder, tmp_path):
    base = inspect_checkpoint(folder)
    how = {"batch_size": 16, "precision": "fp32", "device": "cpu"}
    prints = {
        base.fingerprint(**how),
        base.fingerprint(**{**how, "batch_size": 8}),
        base.fingerprint(**{**how, "precision": "bf16"}),
    }
    prints.add(inspect_checkpoint(save_swin(tmp_path / "other", seed=5)).fingerprint(**how))
    prints.add(inspect_checkpoint(edited(folder, tmp_path, "preprocessor_config.json", resample=2)).fingerprint(**how))
    assert len(prints) == 5
    moved = edited(folder, tmp_path / "..", "config.json", _name_or_path="elsewhere", transformers_version="9.9")
    assert inspect_checkpoint(moved).fingerprint(**how) == base.fingerprint(**how)


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        ("config.json", {"id2label": {"0": "a", "1": "b", "2": "c"}}, "two-class"),
        ("config.json", {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, "--ai-class"),
        ("config.json", {"id2label": None, "label2id": None}, "names no classes"),
        ("preprocessor_config.json", {"resample": 1}, "resample"),
        ("preprocessor_config.json", {"size": "big"}, "size"),
        ("preprocessor_config.json", {"image_processor_type": "NewKind", "image_mean": None}, "image_mean"),
    ],
)
def test_unusable_configs_are_refused(folder, tmp_path, file, changes, says):
    with pytest.raises(UsageError, match=says):
        inspect_checkpoint(edited(folder, tmp_path, file, **changes))


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "torn"])
def test_missing_and_damaged_files_are_refused(folder, tmp_path, file, damage):
    copy = edited(folder, tmp_path, "config.json")
    path = os.path.join(copy, file)
    data = open(path, "rb").read()
    os.unlink(path)
    if damage != "missing":
        open(path, "wb").write(b"" if damage == "empty" else data[: len(data) // 2])
    with pytest.raises(UsageError, match=file.split(".", maxsplit=1)[0]):
        inspect_checkpoint(copy)


def test_weights_that_do_not_fit_the_config_are_refused(folder, tmp_path):
    wrong = inspect_checkpoint(edited(folder, tmp_path, "config.json", embed_dim=32))
    with pytest.raises(UsageError, match="weights|cannot be loaded"):
        load_model(wrong)


@pytest.mark.parametrize("model", ["no/such-model", "./missing", "/missing/folder"])
def test_a_missing_model_is_refused_in_seconds(model):
    with pytest.raises(UsageError, match="no such folder"):
        inspect_checkpoint(model)


def test_a_pickle_is_never_opened_and_code_never_run(folder, tmp_path):
    bait = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return (open, (str(bait), "w"))

    copy = edited(folder, tmp_path, "config.json", auto_map={"AutoModelForImageClassification": "evil.Model"})
    open(os.path.join(copy, "evil.py"), "w").write(f"open({str(bait)!r}, 'w')\nclass Model: pass\n")
    open(os.path.join(copy, "pytorch_model.bin"), "wb").write(pickle.dumps(Bomb()))
    load_model(inspect_checkpoint(copy))
    os.unlink(os.path.join(copy, "model.safetensors"))
    with pytest.raises(UsageError, match="--convert-weights"):
        inspect_checkpoint(copy)
    assert not bait.exists()


def test_inspecting_imports_neither_torch_nor_transformers(folder):
    code = (
        "import sys; from detector.models.checkpoint import inspect_checkpoint as i; i(sys.argv[1]);"
        "sys.exit(len({'torch', 'transformers', 'ray'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code, folder], check=False).returncode == 0
