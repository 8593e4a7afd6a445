"""Small labelled folders that a tiny Swin learns in seconds, and jobs run as a user runs them."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
from PIL import Image

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FAST = ["--model", "scratch:tiny", "--learning-rate", "1e-3", "--batch-size", "16", "--gradient-accumulation", "1",
        "--crop-min-scale", "0.5"]  # fmt: skip


def draw(rng, label, side=64):
    """Noise; AI has a ripple of eight pixels on it: uint8 [side, side, 3]."""
    pixels = rng.normal(128, 30, (side, side, 3)) + rng.uniform(-40, 40, 3)
    if label == "AI":
        pixels += 20 * np.sin(np.arange(side) / 8 * 2 * np.pi + rng.uniform(0, 6))[None, :, None]
    return pixels.clip(0, 255).astype(np.uint8)


def tree(data, count, *, split="train", seed=0, side=64):
    """Write ``count`` pictures of each class as ``data/split/{AI,Real}/NNNN.jpg``."""
    rng = np.random.default_rng(seed)
    for label in ("AI", "Real"):
        folder = os.path.join(data, split, label)
        os.makedirs(folder, exist_ok=True)
        for index in range(count):
            Image.fromarray(draw(rng, label, side)).save(os.path.join(folder, f"{index:04d}.jpg"), quality=92)
    return str(data)


def pictures(folder, count, *, seed=0, label="Real", side=64, prefix=""):
    """Write ``count`` pictures into one folder; their names."""
    rng = np.random.default_rng(seed)
    os.makedirs(folder, exist_ok=True)
    names = [f"{prefix}{index:04d}.png" for index in range(count)]
    for name in names:
        Image.fromarray(draw(rng, label, side)).save(os.path.join(folder, name))
    return names


def command(job, *flags):
    """The command line of a job."""
    return [sys.executable, "-m", f"jobs.{job}", *map(str, flags)]


def start(job, *flags, stderr):
    """Start a job in a process group of its own, stderr going to a file."""
    return subprocess.Popen(
        command(job, *flags), cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True
    )


def run(job, *flags):
    """Run a job to its end: (exit code, summary, stderr)."""
    done = subprocess.run(command(job, *flags), cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    return done.returncode, json.loads(lines[-1]) if lines else {}, done.stderr


def history(out):
    """The rows of ``history.csv`` as dictionaries of strings."""
    with open(os.path.join(out, "history.csv"), encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
