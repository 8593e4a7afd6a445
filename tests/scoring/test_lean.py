"""A scoring process starts without packages that it has no use for; nothing else is different for it."""

import gc
import importlib
import importlib.util
import subprocess
import sys
import types
from multiprocessing import Pipe

import pytest

from detector.images.pixels import DecodeLimits
from detector.models.checkpoint import inspect_checkpoint
from detector.models.devices import resolve_settings
from detector.scoring import worker
from detector.scoring.lean import lean_start
from detector.scoring.stages import ScorePlan
from detector.scoring.worker import Worker
from detector.storage import open_store

PACKAGE = "lean_test_package"
SCORE = """
import contextlib, sys
import numpy as np
from detector.scoring.lean import UNNEEDED, lean_start

folder, how = sys.argv[1:]
with lean_start() if how == "lean" else contextlib.nullcontext():
    from detector.models.checkpoint import inspect_checkpoint
    from detector.models.devices import resolve_settings
    from detector.models.predictor import load_predictor

    settings = resolve_settings(kind="cpu", batch_size=4, precision="fp32")
    predictor = load_predictor(inspect_checkpoint(folder), settings)
if how == "lean":
    assert not set(UNNEEDED) & set(sys.modules), "imported nevertheless"
pictures = np.random.default_rng(6).integers(0, 256, (9, 3, *predictor.transform.input_size), dtype=np.uint8)
print(predictor.predict_all(pictures).tobytes().hex())
if how == "lean":
    import accelerate, scipy.optimize
"""
NEEDS_SCIPY = """
import sys

class Needy:
    def find_spec(self, name, path=None, target=None):
        if name == "transformers.models.swin.modeling_swin":
            import scipy.optimize

sys.meta_path.insert(0, Needy())
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that can be imported, and is not yet."""
    (tmp_path / f"{PACKAGE}.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield PACKAGE
    sys.modules.pop(PACKAGE, None)


@pytest.fixture(autouse=True)
def collector():
    """The garbage collector as it was."""
    yield
    gc.unfreeze()
    gc.enable()


def test_inside_a_package_is_not_installed_and_afterwards_it_is(package):
    with lean_start((package,)):
        assert importlib.util.find_spec(package) is None
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(package)
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    assert package not in sys.modules
    assert importlib.import_module(package).value == 1


def test_what_is_imported_already_stays(package):
    module = importlib.import_module(package)
    with lean_start((package,)):
        assert importlib.import_module(package) is module
    assert sys.modules[package] is module


def test_an_error_inside_leaves_nothing_hidden(package):
    gc.disable()
    with pytest.raises(RuntimeError), lean_start((package,)):
        raise RuntimeError
    assert importlib.import_module(package).value == 1
    assert not gc.isenabled(), "it was off before"


def test_the_scores_are_the_same_bits(model):
    lean, plain = (
        subprocess.run([sys.executable, "-c", SCORE, model, how], capture_output=True, text=True, check=False)
        for how in ("lean", "plain")
    )
    assert (lean.returncode, plain.returncode) == (0, 0), lean.stderr + plain.stderr
    assert len(bytes.fromhex(lean.stdout)) == 9 * 4
    assert lean.stdout == plain.stdout


def test_what_comes_in_meanwhile_stays(package):
    module = types.ModuleType(package)
    with lean_start((package,)):
        sys.modules[package] = module
    assert sys.modules[package] is module


@pytest.fixture
def started(model, tmp_path):
    """Start a scoring process; once it is ready, the files that it has in memory, as the kernel lists them."""
    plan = ScorePlan(
        store=open_store(str(tmp_path / "out")), run="r", fingerprint="f" * 16, checkpoint=inspect_checkpoint(model),
        settings=resolve_settings(kind="cpu", batch_size=4, precision="fp32"), limits=DecodeLimits(),
    )  # fmt: skip

    def start():
        worker = Worker(plan, environment={})
        try:
            assert worker.pipe.poll(120)
            assert worker.pipe.recv() == ("ready", None)
            with open(f"/proc/{worker._process.pid}/maps", encoding="utf-8") as lines:
                return lines.read()
        finally:
            worker.ask_to_stop()
            worker.end(10)

    return start


def test_a_scoring_process_has_no_library_of_scipy_or_triton_in_memory(started):
    mapped = started()
    assert "libtorch_cpu" in mapped
    assert "/scipy/" not in mapped
    assert "/triton/" not in mapped


def test_a_checkpoint_that_needs_what_is_hidden_is_loaded_with_it(started, tmp_path, monkeypatch):
    """As transformers 5.20 does, whose models need sklearn, and with it scipy, where that is installed."""
    (tmp_path / "sitecustomize.py").write_text(NEEDS_SCIPY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "/scipy/" in started()


def test_without_room_for_a_file_there_is_no_second_start(monkeypatch):
    def no_room():
        raise OSError(28, "No space left on device")

    ours, _theirs = Pipe()
    monkeypatch.setattr(worker.tempfile, "TemporaryFile", no_room)
    monkeypatch.setattr(worker.os, "execv", lambda *_args: pytest.fail("started again"))
    worker._start_again(ours, "the plan")  # comes back, for the caller to say what went wrong with the checkpoint
