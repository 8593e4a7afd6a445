"""Converted models: where they lie, how they are made once, and how a torn or foreign one is told.

A conversion takes half a minute, so it is kept beside the checkpoint, in ``CHECKPOINT/openvino/KEY/``, or in the user's cache
folder where that cannot be written. The key names the checkpoint's content, the batch size and the version of OpenVINO. What
is kept is data (an XML graph and its numbers), never a pickle, and is used only if its digests fit.
"""

import contextlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detector import runs
from detector.cli import EXIT_USAGE
from detector.errors import JobError, UsageError
from detector.models.checkpoint import Checkpoint, sha256_of
from detector.models.devices import DeviceSettings, openvino_version
from detector.progress import log

FOLDER = "openvino"
GRAPH, NUMBERS, ENTRY = "model.xml", "model.bin", "entry.json"
_FORM = 1  # raised when the same checkpoint must be converted in another way
_KEEP_TRIES = 3
_UNFINISHED = ".converting-"
_STALE_S = 3600.0  # a conversion takes a minute: what is older was left by one that was killed
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])


def import_openvino() -> Any:
    """The openvino package, which would make an identity of this machine and report each use of it to its maker: not here.

    Without the package of that name it does without; so an import of it is made to fail.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def key_of(checkpoint: Checkpoint, settings: DeviceSettings) -> str:
    """The name of a conversion: 16 hex digits over what it is made from and by."""
    facts = {"identity": checkpoint.identity, "batch": settings.batch_size, "openvino": openvino_version(), "form": _FORM}
    return runs.digest(facts)[:16]


def find_converted(checkpoint: Checkpoint, settings: DeviceSettings) -> str | None:
    """The folder of a whole conversion of this checkpoint for this batch size and OpenVINO, or None."""
    key = key_of(checkpoint, settings)
    return next((folder for folder in _places(checkpoint, key) if _is_whole(folder, key)), None)


def ensure_converted(checkpoint: Checkpoint, settings: DeviceSettings) -> str:
    """The folder of the conversion, made now, in a child process, if there is none. Imports neither torch nor openvino.

    Two jobs at once may both convert; the first to finish is kept.

    Raises:
        UsageError: OpenVINO cannot convert the checkpoint, or there is no folder to keep it in.
    """
    found = find_converted(checkpoint, settings)
    if found is not None:
        return found
    key = key_of(checkpoint, settings)
    parent = _writable(checkpoint, key)
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=parent, ignore_cleanup_errors=True) as work:
        made = os.path.join(work, key)  # the temporary folder itself is private: this one has the user's usual rights
        os.mkdir(made)
        _convert(checkpoint, settings, made)
        return _keep(made, os.path.join(parent, key), key)


def _writable(checkpoint: Checkpoint, key: str) -> str:
    """The first folder in which a conversion can be kept."""
    for folder in _places(checkpoint, key):
        parent = os.path.dirname(folder)
        with contextlib.suppress(OSError):
            os.makedirs(parent, exist_ok=True)
            _clean(parent)
            os.rmdir(tempfile.mkdtemp(prefix=_UNFINISHED, dir=parent))
            return parent
    raise UsageError(f"the converted model cannot be written, neither to {checkpoint.path} nor to {_user_cache()}")


def files_to_ship(checkpoint: Checkpoint, settings: DeviceSettings) -> dict[str, str]:
    """What a node needs that cannot see the conversion: name below a checkpoint's folder → path.

    Raises:
        UsageError: there is no conversion.
    """
    folder, key = converted_or_raise(checkpoint, settings), key_of(checkpoint, settings)
    return {f"{FOLDER}/{key}/{name}": os.path.join(folder, name) for name in (GRAPH, NUMBERS, ENTRY)}


def converted_or_raise(checkpoint: Checkpoint, settings: DeviceSettings) -> str:
    """The folder of the conversion that :func:`ensure_converted` made.

    Raises:
        UsageError: it is gone, or this machine has another version of OpenVINO than the one that started the run.
    """
    folder = find_converted(checkpoint, settings)
    if folder is None:
        raise UsageError(
            f"the checkpoint {checkpoint.name} has no conversion for OpenVINO {openvino_version()}: every node needs the same "
            "version, and a folder that it can read; run the same command again"
        )
    return folder


def _places(checkpoint: Checkpoint, key: str) -> Iterator[str]:
    yield os.path.join(checkpoint.path, FOLDER, key)
    yield os.path.join(_user_cache(), key)


def _user_cache() -> str:
    """By the XDG base directory specification: a relative or empty ``XDG_CACHE_HOME`` counts as unset."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return os.path.join(base if os.path.isabs(base) else os.path.expanduser("~/.cache"), "artwork-detector", FOLDER)


def _is_whole(folder: str, key: str) -> bool:
    try:
        with open(os.path.join(folder, ENTRY), encoding="utf-8") as file:
            entry = json.load(file)
        digests = entry["sha256"]
        return entry["key"] == key and all(sha256_of(os.path.join(folder, name)) == digests[name] for name in (GRAPH, NUMBERS))
    except (OSError, ValueError, KeyError, TypeError, UsageError):
        return False


def _convert(checkpoint: Checkpoint, settings: DeviceSettings, folder: str) -> None:
    """Run :mod:`detector.models.openvino_convert`: torch and its memory go with the child."""
    log(f"converting {checkpoint.name} for OpenVINO (once; about half a minute) ...")
    begun = time.monotonic()
    path = os.pathsep.join(filter(None, (_PACKAGE_ROOT, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        # -P: the working directory may be a folder of strangers' files; no module is to be found there.
        [sys.executable, "-P", "-m", "detector.models.openvino_convert"],
        input=pickle.dumps((checkpoint, settings, folder)), capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    if done.returncode:
        lines = done.stdout.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"its process ended with {done.returncode}; is there enough memory?"
        if done.returncode == EXIT_USAGE:  # torch could not load it either
            raise UsageError(reason)
        if done.returncode < 0:
            raise JobError(f"the conversion for OpenVINO failed: {reason}")
        raise UsageError(f"OpenVINO cannot convert {checkpoint.name}: {reason}; leave out --backend openvino")
    log(f"converted in {time.monotonic() - begun:.0f} s")


def _keep(made: str, folder: str, key: str) -> str:
    """Move a finished conversion into its place; another job's that came first stays."""
    digests = {name: sha256_of(os.path.join(made, name)) for name in (GRAPH, NUMBERS)}
    with open(os.path.join(made, ENTRY), "w", encoding="utf-8") as file:
        json.dump({"key": key, "openvino": openvino_version(), "sha256": digests}, file)
    for _ in range(_KEEP_TRIES):
        try:
            os.rename(made, folder)
        except OSError:
            if _is_whole(folder, key):
                return folder
            with contextlib.suppress(OSError):  # torn, and out of the way by one rename: another job may look at it too
                os.rename(folder, os.path.join(os.path.dirname(made), "torn"))
        else:
            return folder
    raise JobError(f"the converted model cannot be moved to {folder}: delete that folder and run the same command again")


def _clean(parent: str) -> None:
    """Delete what killed conversions left."""
    for name in os.listdir(parent):
        path = os.path.join(parent, name)
        with contextlib.suppress(OSError):
            if name.startswith(_UNFINISHED) and time.time() - os.stat(path).st_mtime > _STALE_S:
                shutil.rmtree(path)
