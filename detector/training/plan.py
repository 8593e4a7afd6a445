"""Everything about a training run that can be checked and decided before Ray is started."""

import hashlib
import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from detector import runs
from detector.errors import UsageError
from detector.images.decoding import Decoder
from detector.images.pixels import DecodeLimits
from detector.models.backbones import Base, find_base
from detector.progress import Progress, log
from detector.storage import Store, open_store
from detector.training.config import TrainConfig
from detector.training.dataset import MANIFEST, Holdout, balance_lines, hold_out, in_manifest, read_split

WORK_FOLDER, STATE_FILE, RUN_FILE = ".training", ".training/state.json", "run.json"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One training run, ready to start or to be continued.

    Attributes:
        config: what was asked for.
        base: the model it starts from.
        holdout: training and validation pictures.
        dropped: (filename, message) of pictures that do not decode.
        store: the output folder.
        run: its name, under which Ray Train keeps its state.
        identity: digests of the recipe and the data, to compare a resumed run with.
        finished: summary of the run record, where ``--resume`` finds the training already finished.
    """

    config: TrainConfig
    base: Base
    holdout: Holdout
    dropped: tuple[tuple[str, str], ...]
    store: Store
    run: str
    identity: dict[str, Any]
    finished: dict[str, Any] | None = None


def plan_training(config: TrainConfig) -> Plan:
    """Check the flags, find the base, list and divide the data, and decide whether this is a new run.

    Raises:
        UsageError: whatever the user can put right.
    """
    config.check()
    base = find_base(config.model, ai_class=config.ai_class)
    samples, dropped = _without_broken(config.data, read_split(config.data, config.train_split))
    holdout = hold_out(samples, fraction=config.validation_fraction, seed=config.seed)
    store = open_store(config.out_root)
    identity = {"recipe": config.recipe(), "data": data_digest(holdout), "manifest": manifest_digest(config.data)}
    run, finished = _choose_run(config, store, identity)
    for line in balance_lines(samples):
        log(f"train: {line}")
    log(f"train: {len(holdout.train):,} pictures to train on, {len(holdout.validation):,} to validate with")
    return Plan(
        config=config, base=base, holdout=holdout, dropped=dropped, store=store, run=run, identity=identity, finished=finished
    )


def data_digest(holdout: Holdout) -> str:
    """SHA-256 over names, labels and sources of the training and the validation pictures."""
    parts = [part.select(["filename", "label", "source"]).to_pydict() for part in (holdout.train, holdout.validation)]
    return runs.digest(parts)


def manifest_digest(data: str) -> str | None:
    """SHA-256 of the data folder's manifest, or None where there is none."""
    try:
        with open(os.path.join(data, MANIFEST), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _without_broken(data: str, samples: pa.Table) -> tuple[pa.Table, tuple[tuple[str, str], ...]]:
    """Leave out what does not decode. What stands in the manifest has been decoded by jobs.prepare already."""
    unchecked = np.flatnonzero(~in_manifest(data, samples))
    if not len(unchecked):
        return samples, ()
    names, paths = samples["filename"].to_pylist(), samples["path"].to_pylist()
    keep, dropped = np.ones(len(samples), dtype=bool), []
    with Decoder(DecodeLimits()) as decoder, Progress(total=len(unchecked), label="checking pictures") as progress:
        for index, decoded in zip(unchecked, decoder.decode(paths[i] for i in unchecked), strict=True):
            if decoded.error is not None:
                keep[index] = False
                dropped.append((names[index], f"{decoded.error}: {decoded.message}"))
            progress.advance(1)
    if dropped:
        log(
            f"train: {len(dropped):,} of {len(samples):,} pictures do not decode and are left out (dropped.csv), "
            f"first {dropped[0][0]}"
        )
    return samples.filter(pa.array(keep)), tuple(dropped)


def _choose_run(config: TrainConfig, store: Store, identity: dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
    """The name of the run to start or continue, and the summary of a finished one that needs no continuing."""
    unfinished = read_json(store, STATE_FILE)
    if not config.resume:
        if unfinished is not None:
            log(
                f"train: the unfinished training in {config.out} is left aside and a new one begins; "
                "--resume would have continued it"
            )
        return runs.new_run_id(), None
    if unfinished is not None:
        _check_same(unfinished.get("identity", {}), identity)
        return str(unfinished["run"]), None
    record = read_json(store, RUN_FILE)
    if record is not None and record.get("status") == "complete":
        _check_same(record.get("identity", {}), identity)
        return str(record.get("run")), dict(record.get("summary", {}))
    log(f"train: nothing to continue in {config.out}: a new training begins")
    return runs.new_run_id(), None


def read_json(store: Store, name: str) -> dict[str, Any] | None:
    """A JSON object from the output folder, or None where there is none that can be read."""
    try:
        value = json.loads(store.read(name)) if store.exists(name) else None
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(store: Store, name: str, value: dict[str, Any]) -> None:
    """Write a JSON object to the output folder, all of it or nothing."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    store.write(name, lambda file: file.write(text.encode()))


def _check_same(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to continue a training with another recipe or other data.

    Raises:
        UsageError: they differ; the message names the flags.
    """
    old, new = before.get("recipe", {}), json.loads(json.dumps(now["recipe"]))
    different = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if different:
        flags = ", ".join(f"--{name.replace('_', '-')} (was {old.get(name)}, is {new.get(name)})" for name in different)
        raise UsageError(f"--resume continues a training with the flags it began with; different here: {flags}")
    if before.get("data") != now["data"]:
        raise UsageError(
            "--resume: the training pictures are no longer those the training began with; start anew without --resume"
        )
