"""pytorch_model.bin → model.safetensors, once, on request, in a limited child process.

A ``.bin`` checkpoint is a pickle. It is read with ``weights_only=True``, which builds tensors and nothing else, and in a
process of its own under a memory and a time limit: a damaged or hostile file then costs that process, not the job.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile

from detector import runs
from detector.errors import UsageError
from detector.models.checkpoint import CONFIG, PREPROCESSOR, WEIGHTS, find_folder, read_json, sha256_of
from detector.progress import log

PICKLE, ORIGIN = "pytorch_model.bin", "converted_from.json"
_TIMEOUT_S = 600
# What the child may take above its idle size: the file's tensors twice (as read, as made contiguous), and some air.
_SPARE_BYTES = 2**30


def convert_weights(model: str, folder: str) -> str:
    """Write a safetensors copy of a checkpoint that has only a pickle, and return its folder; an earlier copy is reused.

    Raises:
        UsageError: nothing to convert, an output that cannot be written, or weights that cannot be read safely.
    """
    source = find_folder(model, with_pickle=True)
    if os.path.exists(os.path.join(source, WEIGHTS)):
        raise UsageError(f"--model {model} has {WEIGHTS} already: leave --convert-weights out")
    if not os.path.isfile(os.path.join(source, PICKLE)):
        raise UsageError(f"--model {model} has no {PICKLE}: there is nothing to convert")
    origin = {"sha256": sha256_of(os.path.join(source, PICKLE)), "config": runs.digest(read_json(os.path.join(source, CONFIG)))}
    if os.path.exists(os.path.join(folder, WEIGHTS)):
        if not os.path.exists(os.path.join(folder, ORIGIN)) or read_json(os.path.join(folder, ORIGIN)) != origin:
            raise UsageError(f"--convert-weights {folder} holds another checkpoint: give an empty folder")
        log(f"convert: {folder} holds the converted weights already")
        return folder
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".convert-") as work:
            _run_child(os.path.join(source, PICKLE), os.path.join(work, WEIGHTS))
            for name in (CONFIG, PREPROCESSOR):
                if os.path.exists(os.path.join(source, name)):
                    shutil.copyfile(os.path.join(source, name), os.path.join(folder, name))
            with open(os.path.join(folder, ORIGIN), "w", encoding="utf-8") as file:
                json.dump(origin, file)
            os.replace(os.path.join(work, WEIGHTS), os.path.join(folder, WEIGHTS))
    except OSError as error:
        raise UsageError(f"--convert-weights {folder} cannot be written: {error.strerror or error}") from None
    log(f"convert: wrote {os.path.join(folder, WEIGHTS)}; from now on use --model {folder}")
    return folder


def is_converted(folder: str) -> bool:
    """Whether :func:`convert_weights` has written a checkpoint there."""
    return all(os.path.exists(os.path.join(folder, name)) for name in (ORIGIN, WEIGHTS))


def _run_child(pickle: str, target: str) -> None:
    """Convert in a child; its last line of stderr is the reason when it fails."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    command = [sys.executable, "-m", "detector.models.convert", pickle, target]
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, env=environment)
    except subprocess.TimeoutExpired:
        raise UsageError(f"{pickle} could not be read within {_TIMEOUT_S} s") from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        reason = lines[-1][:300] if lines else f"its reader ended with {done.returncode}"
        raise UsageError(f"{pickle} holds more than tensors, or is damaged ({reason}): it is not used")


def _convert(pickle: str, target: str) -> None:
    """The child's work: tensors only, under a memory limit set after torch is imported (3.4 GB of addresses)."""
    import torch
    from safetensors.torch import save_file

    with open("/proc/self/statm", encoding="ascii") as file:
        idle = int(file.read().split()[0]) * resource.getpagesize()
    limit = idle + 3 * os.path.getsize(pickle) + _SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    state = torch.load(pickle, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    tensors = {name: value.clone().contiguous() for name, value in state.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise SystemExit("it holds no tensors")
    save_file(tensors, target, metadata={"format": "pt"})


if __name__ == "__main__":
    _convert(sys.argv[1], sys.argv[2])
