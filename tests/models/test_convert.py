"""A pickle is converted once, on request, as tensors only; a hostile one does nothing."""

import os
import pickle

import pytest
import torch
from safetensors.torch import load_file

from detector.errors import UsageError
from detector.models.checkpoint import inspect_checkpoint, load_model
from detector.models.convert import convert_weights, is_converted
from tests.checkpoints import save_swin


@pytest.fixture
def pickled(tmp_path):
    """A checkpoint as published in 2022: only pytorch_model.bin."""
    folder = save_swin(tmp_path / "pickled", old_form=True, names=("artificial", "human"))
    weights = os.path.join(folder, "model.safetensors")
    torch.save(load_file(weights), os.path.join(folder, "pytorch_model.bin"))
    os.unlink(weights)
    return folder


def test_the_copy_holds_the_same_tensors(pickled, tmp_path):
    expected = torch.load(os.path.join(pickled, "pytorch_model.bin"), weights_only=True)
    assert not is_converted(str(tmp_path / "converted"))
    folder = convert_weights(pickled, str(tmp_path / "converted"))
    assert is_converted(folder)
    found = load_file(os.path.join(folder, "model.safetensors"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    load_model(inspect_checkpoint(folder))
    assert sorted(os.listdir(folder)) == ["config.json", "converted_from.json", "model.safetensors", "preprocessor_config.json"]


def test_a_hostile_pickle_does_nothing(pickled, tmp_path):
    bait = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return (open, (str(bait), "w"))

    for data in (pickle.dumps(Bomb()), b"\x80\x04garbage"):
        with open(os.path.join(pickled, "pytorch_model.bin"), "wb") as file:
            file.write(data)
        with pytest.raises(UsageError, match="it is not used"):
            convert_weights(pickled, str(tmp_path / "converted"))
    torch.save({"weight": Bomb()}, os.path.join(pickled, "pytorch_model.bin"))
    bait.unlink(missing_ok=True)
    with pytest.raises(UsageError, match="it is not used"):
        convert_weights(pickled, str(tmp_path / "converted"))
    assert not bait.exists()
    assert not os.path.exists(tmp_path / "converted" / "model.safetensors")


def test_nothing_to_convert_is_said(tmp_path):
    with pytest.raises(UsageError, match="leave --convert-weights out"):
        convert_weights(save_swin(tmp_path / "model"), str(tmp_path / "converted"))


def test_a_folder_with_another_checkpoint_is_not_taken_for_the_copy(pickled, tmp_path):
    with pytest.raises(UsageError, match="holds another checkpoint"):
        convert_weights(pickled, save_swin(tmp_path / "other", seed=4))
    first = convert_weights(pickled, str(tmp_path / "converted"))
    assert convert_weights(pickled, first) == first
