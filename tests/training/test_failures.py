"""Trainings that cannot succeed, as a user sees them: one line that names the flag to change, exit 1, no second try."""

import contextlib
import os
import resource
import subprocess
from types import SimpleNamespace

import pytest
import torch

from detector.errors import UsageError
from detector.training.reporting import Reporter
from detector.training.trainer import DivergedError
from detector.training.worker import hopeless_reason
from tests.training import corpora

SEED = 13
# What one process may allocate. Imports and the optimizer's state take about half of it; 32 pictures in a Swin-tiny take more.
DATA_BYTES = 2_560_000_000


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    print(f"seed {SEED}")
    return corpora.tree(tmp_path_factory.mktemp("failures"), 20, seed=SEED)


def train(data, out, *flags, limit_bytes=None):
    """jobs.train with one worker: (exit code, stderr); ``limit_bytes`` holds for each of its processes."""

    def limit():
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))

    command = corpora.command("train", "--data", data, "--out", out, "--epochs", 1, "--workers", 1, "--seed", SEED, *flags)
    done = subprocess.run(
        command, cwd=corpora.ROOT, capture_output=True, text=True, check=False, preexec_fn=limit if limit_bytes else None
    )
    return done.returncode, done.stderr


def assert_one_line(code, stderr, *words):
    assert code == 1, stderr
    assert "Traceback" not in stderr
    last = stderr.strip().splitlines()[-1]
    assert all(word in last for word in words), last


@pytest.mark.ray
def test_running_out_of_memory_says_which_flags_to_change(data, tmp_path):
    """A real allocation that the system refuses."""
    code, stderr = train(data, tmp_path / "out", "--model", "scratch:swin-tiny", limit_bytes=DATA_BYTES)
    assert_one_line(code, stderr, "ran out of memory", "--batch-size 16 --gradient-accumulation 8")
    assert not os.path.exists(tmp_path / "out" / "run.json")


@pytest.mark.ray
@pytest.mark.soak  # its pieces are below
def test_a_training_that_diverges_says_which_flag_to_change(data, tmp_path):
    """A decay that throws the weights further out in every step: soon the loss is no number."""
    flags = (
        "--learning-rate",
        0.9,
        "--weight-decay",
        1e12,
        "--warmup-ratio",
        0,
        "--batch-size",
        2,
        "--gradient-accumulation",
        1,
    )
    code, stderr = train(data, tmp_path / "out", "--model", "scratch:tiny", *flags)
    assert_one_line(code, stderr, "diverged", "--learning-rate below 0.9")
    assert "epoch 1:" not in stderr, "no model of these weights is worth an evaluation"
    assert not os.path.exists(tmp_path / "out" / "run.json")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "--batch-size 1 --gradient-accumulation 8"),
        (MemoryError(), "--batch-size 1 --gradient-accumulation 8"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "--cache-mb"),
        (DivergedError(), "--learning-rate below 0.5"),
        (UsageError("the checkpoint x cannot be loaded"), "the checkpoint x cannot be loaded"),
    ],
)
def test_what_another_attempt_would_not_cure_is_told_with_the_flag(error, words):
    assert words in hopeless_reason(error, asked(batch_size=2))


def test_what_another_attempt_may_cure_is_tried_again():
    assert hopeless_reason(ConnectionError("the other worker died"), asked(batch_size=2)) is None


def test_a_loss_that_is_no_number_ends_the_training_at_the_next_logging_step():
    """Hours before the evaluation that would tell; only fp16 skips steps that overflow."""
    reporter = object.__new__(Reporter)
    reporter._is_first = False
    for precision in ("fp32", "bf16", "fp16"):
        reporter._task = SimpleNamespace(precision=precision)
        reporter.on_log(None, None, None, logs={"loss": 0.3})
        with pytest.raises(DivergedError) if precision != "fp16" else contextlib.nullcontext():
            reporter.on_log(None, None, None, logs={"loss": float("nan")})


def test_a_batch_of_one_picture_is_not_halved():
    assert "a smaller --model" in hopeless_reason(MemoryError(), asked(batch_size=1))


def asked(*, batch_size):
    return SimpleNamespace(config=SimpleNamespace(batch_size=batch_size, gradient_accumulation=4, learning_rate=0.5))
