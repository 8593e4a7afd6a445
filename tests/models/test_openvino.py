"""The OpenVINO back-end: the scores of torch, a conversion that is made once and never trusted blindly, a fingerprint of its own."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from detector import runs
from detector.errors import UsageError
from detector.images.decoding import Decoder
from detector.images.pixels import DecodeLimits
from detector.models import devices, openvino_cache
from detector.models.checkpoint import inspect_checkpoint
from detector.models.devices import resolve_settings
from detector.models.openvino_cache import ENTRY, GRAPH, NUMBERS, ensure_converted, find_converted, import_openvino
from detector.models.predictor import load_predictor
from tests import pictures
from tests.checkpoints import save_swin
from tests.models.test_parity import SIZE, files

try:
    openvino = import_openvino()
except ImportError:
    pytest.skip("the extra openvino is not installed", allow_module_level=True)
BATCH = 8


def settings(precision="fp32", backend="openvino"):
    return resolve_settings(kind="cpu", batch_size=BATCH, precision=precision, backend=backend)


def needs(precision):
    if precision == "bf16" and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("OpenVINO does no bf16 on this CPU")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint with its conversion beside it."""
    folder = save_swin(tmp_path_factory.mktemp("converted") / "model", names=("Real", "AI"), seed=3, spread=6.3, **SIZE)
    found = inspect_checkpoint(folder)
    ensure_converted(found, settings())
    return found


@pytest.fixture
def copy(checkpoint, tmp_path, monkeypatch):
    """The same content in a folder of the test's own, without a conversion, and a user cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    shutil.copytree(checkpoint.path, folder, ignore=shutil.ignore_patterns("openvino"))
    return inspect_checkpoint(str(folder))


@pytest.fixture
def conversions(checkpoint, monkeypatch):
    """Conversions that were asked for; each is a copy of the real one."""
    made = []

    def convert(_checkpoint, _settings, folder):
        made.append(folder)
        for name in (GRAPH, NUMBERS):
            shutil.copy(os.path.join(find_converted(checkpoint, settings()), name), folder)

    monkeypatch.setattr(openvino_cache, "_convert", convert)
    return made


@pytest.fixture(scope="module")
def inputs(checkpoint, tmp_path_factory):
    """Generated pictures and real artworks (where they are at hand) as the model's input."""
    generated = tmp_path_factory.mktemp("generated")
    paths = [str(generated / name) for name in pictures.folder(generated, 36, seed=7)] + [str(path) for path in files()]
    with Decoder(DecodeLimits()) as decoder:
        decoded = decoder.decode(map(os.fsencode, paths))
        return np.stack([checkpoint.transform.resize(picture.pixels).numpy() for picture in decoded])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_scores_are_those_of_torch_in_fp32(checkpoint, inputs, precision):
    needs(precision)
    expected = load_predictor(checkpoint, settings(backend="torch")).predict_all(inputs)
    found = load_predictor(checkpoint, settings(precision)).predict_all(inputs)
    difference, spread = np.abs(found - expected), np.log(expected / (1 - expected)).std()
    print(
        f"{len(inputs)} pictures, logit spread {spread:.2f}; {precision}: mean |Δp| {difference.mean():.1e} max {difference.max():.1e}"
    )
    assert found.dtype == np.float32
    assert 2.5 < spread < 4.0, "the pictures must spread by about 3, or agreement proves nothing"
    if precision == "fp32":
        assert difference.max() <= 1e-5
    assert difference.mean() <= 0.01
    clear = np.abs(expected - 0.5) >= 0.05
    assert ((found >= 0.5) == (expected >= 0.5))[clear].all()
    if precision == "bf16":
        assert difference.max() > 1e-5, "this is not bf16"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_score_does_not_depend_on_its_neighbours(checkpoint, precision):
    needs(precision)
    predictor = load_predictor(checkpoint, settings(precision))
    rng = np.random.default_rng(11)
    batch = rng.integers(0, 256, (21, 3, 96, 96), dtype=np.uint8)
    together = predictor.predict_all(batch)
    order = rng.permutation(len(batch))
    alone = np.concatenate([predictor.predict_all(batch[i : i + 1]) for i in range(len(batch))])
    assert (predictor.predict_all(batch[order]) == together[order]).all()
    assert (alone == together).all()
    assert (load_predictor(checkpoint, settings(precision)).predict_all(batch) == together).all()


def test_a_second_job_does_not_convert(checkpoint, conversions):
    folder = find_converted(checkpoint, settings())
    assert folder.startswith(os.path.join(checkpoint.path, "openvino"))
    before = {name: os.stat(os.path.join(folder, name)).st_mtime_ns for name in os.listdir(folder)}
    assert ensure_converted(checkpoint, settings("bf16")) == folder, "the precision is chosen where it runs"
    assert {name: os.stat(os.path.join(folder, name)).st_mtime_ns for name in os.listdir(folder)} == before
    assert conversions == []


def test_another_batch_size_or_version_is_another_conversion(checkpoint, monkeypatch):
    other = replace(settings(), batch_size=BATCH + 1)
    assert find_converted(checkpoint, other) is None
    monkeypatch.setattr(openvino_cache, "openvino_version", lambda: "1.2.3")
    assert find_converted(checkpoint, settings()) is None
    with pytest.raises(UsageError, match=r"OpenVINO 1\.2\.3"):
        load_predictor(checkpoint, settings())


def test_a_conversion_changes_nothing_about_the_checkpoint(checkpoint, copy):
    assert inspect_checkpoint(checkpoint.path).identity == copy.identity


def cut(folder):
    with open(os.path.join(folder, NUMBERS), "r+b") as file:
        file.truncate(1000)


def other_byte(folder):
    with open(os.path.join(folder, NUMBERS), "r+b") as file:
        file.seek(5000)
        byte = file.read(1)[0]
        file.seek(5000)
        file.write(bytes([byte ^ 1]))


def other_graph(folder):
    with open(os.path.join(folder, GRAPH), "a", encoding="utf-8") as file:
        file.write("<!-- -->")


def no_entry(folder):
    os.unlink(os.path.join(folder, ENTRY))


def half_entry(folder):
    with open(os.path.join(folder, ENTRY), "w", encoding="utf-8") as file:
        file.write('{"key": ')


def another_key(folder):
    path = os.path.join(folder, ENTRY)
    with open(path, encoding="utf-8") as file:
        entry = json.load(file)
    with open(path, "w", encoding="utf-8") as file:
        json.dump({**entry, "key": "0" * 16}, file)


@pytest.mark.parametrize("damage", [cut, other_byte, other_graph, no_entry, half_entry, another_key])
def test_a_torn_or_foreign_conversion_is_made_again(copy, conversions, damage):
    folder = ensure_converted(copy, settings())
    damage(folder)
    assert find_converted(copy, settings()) is None
    assert ensure_converted(copy, settings()) == folder
    assert find_converted(copy, settings()) == folder
    assert len(conversions) == 2
    assert [name for name in os.listdir(os.path.dirname(folder)) if name.startswith(".")] == []


def test_a_checkpoint_that_cannot_be_written_uses_the_users_cache(copy, conversions, tmp_path):
    with open(os.path.join(copy.path, "openvino"), "w", encoding="utf-8"):  # no folder can be made there, whoever asks
        pass
    folder = ensure_converted(copy, settings())
    assert folder.startswith(str(tmp_path / "cache"))
    assert ensure_converted(copy, settings()) == folder
    assert len(conversions) == 1
    load_predictor(copy, settings()).predict(1)


def test_nowhere_to_write_is_said_in_one_line(copy, conversions, tmp_path):
    for path in (os.path.join(copy.path, "openvino"), tmp_path / "cache"):
        with open(path, "w", encoding="utf-8"):
            pass
    with pytest.raises(UsageError, match="cannot be written"):
        ensure_converted(copy, settings())
    assert conversions == []


def test_what_a_killed_conversion_left_is_deleted_later(copy, conversions):
    parent = os.path.join(copy.path, "openvino")
    for name, age_s in ((".converting-old", 7200), (".converting-now", 0)):
        os.makedirs(os.path.join(parent, name))
        then = runs.now_utc().timestamp() - age_s
        os.utime(os.path.join(parent, name), (then, then))
    ensure_converted(copy, settings())
    assert not os.path.exists(os.path.join(parent, ".converting-old"))
    assert os.path.exists(os.path.join(parent, ".converting-now"))


def test_nobody_is_told(copy, tmp_path):
    """OpenVINO would make an identity of this machine in the home folder, and report each use and conversion to its maker."""
    home = tmp_path / "home"
    home.mkdir()
    program = (
        "import pickle, sys\n"
        "from detector.models.openvino_cache import ensure_converted\n"
        "from detector.models.predictor import load_predictor\n"
        "checkpoint, settings = pickle.load(sys.stdin.buffer)\n"
        "ensure_converted(checkpoint, settings)\n"
        "load_predictor(checkpoint, settings).predict(1)\n"
    )
    without_ci = {name: value for name, value in os.environ.items() if name != "CI"}  # there it would be quiet anyway
    done = subprocess.run(
        [sys.executable, "-c", program], input=pickle.dumps((copy, settings())), capture_output=True, check=False,
        env={**without_ci, "HOME": str(home)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert [path.name for path in home.iterdir() if path.name == "intel"] == []


def test_a_checkpoint_that_does_not_load_is_a_users_mistake(copy):
    path = os.path.join(copy.path, "config.json")
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    with open(path, "w", encoding="utf-8") as file:
        json.dump({**config, "embed_dim": 16}, file)
    with pytest.raises(UsageError, match="cannot be loaded"):
        ensure_converted(inspect_checkpoint(copy.path), settings())
    assert os.listdir(os.path.join(copy.path, "openvino")) == []


def test_neither_driver_nor_worker_pays_for_what_it_does_not_use(checkpoint):
    """The driver imports neither torch nor OpenVINO, the worker not transformers."""
    program = (
        "import pickle, sys\n"
        "from detector.models.openvino_cache import ensure_converted\n"
        "from detector.models.predictor import load_predictor\n"
        "checkpoint, settings = pickle.load(sys.stdin.buffer)\n"
        "ensure_converted(checkpoint, settings)\n"
        "assert not {'torch', 'openvino'} & set(sys.modules), 'driver'\n"
        "load_predictor(checkpoint, settings).predict(1)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'worker'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=pickle.dumps((checkpoint, settings())), capture_output=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()


def test_torchs_fingerprint_is_what_it_was_and_openvinos_is_its_own(checkpoint, monkeypatch):
    """Parts of earlier versions stay valid: the facts of torch are those of the first version, to the letter."""
    torch_facts = settings(backend="torch").facts()
    assert torch_facts == {"precision": "fp32", "batch_size": BATCH, "device": "cpu", "backend": "torch"}
    before = runs.digest({"checkpoint": checkpoint.identity, "precision": "fp32", "batch_size": BATCH, "device": "cpu",
                          "decoder": "exact", "backend": "torch"})[:16]  # fmt: skip
    assert checkpoint.fingerprint(**torch_facts, decoder="exact") == before
    ours = checkpoint.fingerprint(**settings().facts(), decoder="exact")
    assert ours != before
    monkeypatch.setattr(devices.metadata, "version", lambda _name: "1.2.3")
    assert settings().facts()["openvino"] == "1.2.3"
    assert checkpoint.fingerprint(**settings().facts(), decoder="exact") not in {ours, before}


def test_a_precision_that_the_cpu_does_not_do_is_refused(checkpoint, monkeypatch):
    """OpenVINO falls back without a word; then the fingerprint would name a precision that was not used."""
    real = openvino.Core

    class Core:
        def compile_model(self, graph, device, options):
            return real().compile_model(graph, device, {**options, "INFERENCE_PRECISION_HINT": "f32"})

    monkeypatch.setattr(openvino, "Core", Core)
    load_predictor(checkpoint, settings("fp32"))
    with pytest.raises(UsageError, match="--precision fp32"):
        load_predictor(checkpoint, settings("bf16"))
