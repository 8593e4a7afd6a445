"""A scoring process starts without packages that it has no use for; nothing else is different for it."""

import gc
import importlib
import importlib.util
import subprocess
import sys

import pytest

from detector.images.pixels import DecodeLimits
from detector.models.checkpoint import inspect_checkpoint
from detector.models.devices import resolve_settings
from detector.scoring.lean import UNNEEDED, lean_start
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


def test_a_scoring_process_has_none_of_their_libraries_in_memory(model, tmp_path):
    """The compiled parts of scipy and triton are files, which the kernel lists."""
    plan = ScorePlan(
        store=open_store(str(tmp_path / "out")), run="r", fingerprint="f" * 16, checkpoint=inspect_checkpoint(model),
        settings=resolve_settings(kind="cpu", batch_size=4, precision="fp32"), limits=DecodeLimits(),
    )  # fmt: skip
    worker = Worker(plan, environment={})
    try:
        assert worker.pipe.poll(120)
        assert worker.pipe.recv() == ("ready", None)
        with open(f"/proc/{worker._process.pid}/maps", encoding="utf-8") as lines:
            mapped = lines.read()
    finally:
        worker.ask_to_stop()
        worker.end(10)
    assert "libtorch_cpu" in mapped
    assert not [name for name in UNNEEDED if f"/site-packages/{name}/" in mapped]
