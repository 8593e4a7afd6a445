"""A Hugging Face image-classification folder: what is in it, whether it can be used, and its model.

:func:`inspect_checkpoint` imports neither torch nor transformers, so that a scoring job's driver stays small and a wrong
checkpoint is refused in a second. :func:`load_model` is called where the model runs. Weights are safetensors only: a pickle
in a checkpoint is never opened, and code in it is never run.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from detector import runs
from detector.errors import UsageError
from detector.images.pixels import DECODERS
from detector.images.transforms import EvaluationTransform
from detector.labels import LabelMap, map_classes

if TYPE_CHECKING:
    import torch

CONFIG, PREPROCESSOR, WEIGHTS, INDEX = (
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
)
DECODE_MODES = "decode_modes"  # our own key in the preprocessor's file; transformers passes over it
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Keys of config.json that say where a file came from, not what the model computes.
_PROVENANCE = frozenset({"_name_or_path", "transformers_version", "architectures", "torch_dtype", "dtype", "auto_map"})


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checked checkpoint folder.

    Attributes:
        path: absolute path of the folder.
        name: what the user called it.
        label_map: which output is AI.
        transform: the evaluation transform of its preprocessor config.
        identity: digest over weights, architecture, label map and preprocessing; the fingerprint adds how it is run.
        decode_modes: the ways to decode (:data:`detector.images.pixels.DECODERS`) that it was validated with.
    """

    path: str
    name: str
    label_map: LabelMap
    transform: EvaluationTransform
    identity: str
    decode_modes: tuple[str, ...] = ("full",)

    def fingerprint(self, **how: object) -> str:
        """16 hex digits over everything that can change a score: this checkpoint, and ``how`` it is run."""
        return runs.digest({"checkpoint": self.identity, **how})[:16]

    def require_decode_mode(self, mode: str) -> None:
        """Refuse pixels that this checkpoint was not validated with. A GPU's decoder decodes in full.

        Raises:
            UsageError: it does not name ``mode`` in its preprocessor config.
        """
        if ("full" if mode == "gpu" else mode) not in self.decode_modes:
            other = " or ".join(f"--decode {known}" for known in self.decode_modes)
            raise UsageError(
                f"--decode {mode}: the checkpoint {self.name} was validated with {other} only: use that, or train one with "
                f"jobs.train --decode {'full' if mode == 'gpu' else mode}"
            )


def inspect_checkpoint(model: str, *, ai_class: str | None = None) -> Checkpoint:
    """Find a checkpoint by folder or hub id and check all that can be checked without loading it.

    Raises:
        UsageError: missing or broken files, no two-class classifier, an ambiguous label map, a hub that cannot be reached.
    """
    folder = find_folder(model)
    config = read_json(os.path.join(folder, CONFIG))
    label_map = map_classes(id2label_of(config, folder), ai_class=ai_class)
    transform = transform_of(folder, config)
    weights = weight_files(folder)
    for file in weights:
        _check_safetensors(os.path.join(folder, file))
    identity = runs.digest({
        "weights": {file: sha256_of(os.path.join(folder, file)) for file in weights},
        "config": {k: v for k, v in config.items() if k not in _PROVENANCE},
        "transform": transform.to_dict(),
        "ai_index": label_map.ai_index,
    })  # fmt: skip
    return Checkpoint(
        path=folder,
        name=model,
        label_map=label_map,
        transform=transform,
        identity=identity,
        decode_modes=decode_modes_of(folder),
    )


def load_model(checkpoint: Checkpoint) -> "torch.nn.Module":
    """The model in evaluation mode, float32, on the CPU.

    Raises:
        UsageError: transformers cannot build it, or its weights do not fit its config.
    """
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        model, info = transformers.AutoModelForImageClassification.from_pretrained(
            checkpoint.path,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises what its many parsers raise; all of it means this folder
        raise UsageError(f"the checkpoint {checkpoint.name} cannot be loaded: {_first_line(error)}") from error
    wrong = sorted(map(str, [*info["missing_keys"], *info.get("mismatched_keys", ())]))
    if wrong:
        raise UsageError(
            f"the checkpoint {checkpoint.name} lacks or misfits {len(wrong)} weights of its config, first {wrong[0]}"
        )
    return model.eval()


def read_json(path: str) -> dict[str, Any]:
    """Read one of a checkpoint's JSON files.

    Raises:
        UsageError: missing, unreadable, or no JSON object.
    """
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except FileNotFoundError:
        raise UsageError(f"{os.path.dirname(path)} is no checkpoint: {os.path.basename(path)} is missing") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {_first_line(error)}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path} must hold a JSON object")
    return value


def weight_files(folder: str) -> list[str]:
    """Names of the safetensors files that hold the weights.

    Raises:
        UsageError: there are none, or the index names files that are not there.
    """
    if os.path.isfile(os.path.join(folder, WEIGHTS)):
        return [WEIGHTS]
    if os.path.isfile(os.path.join(folder, INDEX)):
        weight_map = read_json(os.path.join(folder, INDEX)).get("weight_map")
        files = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
        if not files or any(os.path.basename(name) != name for name in files):
            raise UsageError(f"{folder}/{INDEX} names no weight files")
        return files
    if os.path.isfile(os.path.join(folder, "pytorch_model.bin")):
        raise UsageError(
            f"{folder} has only pytorch_model.bin, a pickle that could run code: add --convert-weights DIR, which writes a "
            "safetensors copy to DIR and uses that"
        )
    raise UsageError(
        f"{folder} is no checkpoint: {WEIGHTS} is missing (a hub's pytorch_model.bin is fetched with --convert-weights DIR)"
    )


def find_folder(model: str, *, with_pickle: bool = False) -> str:
    """The folder of a checkpoint that is named by path or hub id; a hub's pickle is fetched only where it is asked for.

    Raises:
        UsageError: there is no such folder, and no such model on the hub, or no hub.
    """
    if os.path.isdir(model):
        return os.path.realpath(model)
    if os.path.exists(model):
        raise UsageError(f"--model {model} is a file: give the checkpoint's folder")
    if not _HUB_ID.fullmatch(model) or model.startswith("."):
        raise UsageError(f"--model {model}: there is no such folder")
    return _download(model, ["*.json", "*.safetensors", *(["pytorch_model.bin"] if with_pickle else [])])


def _download(hub_id: str, patterns: list[str]) -> str:
    """Fetch a checkpoint by its hub id, or find it in the local cache."""
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(hub_id, allow_patterns=patterns, etag_timeout=5)
    except Exception as error:  # the library's network, cache and permission errors share no base class
        raise UsageError(
            f"--model {hub_id}: there is no such folder, and it could not be had from the model hub "
            f"({type(error).__name__}); check the name, or copy the checkpoint's folder here and give its path"
        ) from error


def id2label_of(config: Mapping[str, Any], folder: str) -> Mapping[object, object]:
    """Class index → class name, from whichever key of ``config.json`` has it.

    Raises:
        UsageError: the config names no classes.
    """
    labels = config.get("id2label")
    if isinstance(labels, dict) and labels:
        return labels
    names = config.get("label2id")
    if isinstance(names, dict) and names:
        return {index: name for name, index in names.items()}
    timm_names = config.get("label_names")
    if isinstance(timm_names, list) and timm_names:
        return dict(enumerate(timm_names))
    raise UsageError(f"{folder}/{CONFIG} names no classes (id2label): this is no image classifier")


def transform_of(folder: str, config: Mapping[str, Any]) -> EvaluationTransform:
    """The evaluation transform of a checkpoint's folder, from its preprocessor file or its timm config.

    Raises:
        UsageError: missing, or not understood.
    """
    path = os.path.join(folder, PREPROCESSOR)
    pretrained = config.get("pretrained_cfg")
    if isinstance(pretrained, dict) and not os.path.exists(path):
        return EvaluationTransform.from_timm(pretrained)
    try:
        return EvaluationTransform.from_config(read_json(path))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path} is not understood: {_first_line(error)}") from None


def decode_modes_of(folder: str) -> tuple[str, ...]:
    """The ways to decode that a checkpoint names in its preprocessor file; full decoding where it names none.

    Raises:
        UsageError: it names something else than ways to decode.
    """
    path = os.path.join(folder, PREPROCESSOR)
    modes = read_json(path).get(DECODE_MODES) if os.path.exists(path) else None
    if modes is None:
        return ("full",)
    if not isinstance(modes, list) or not modes or not set(map(str, modes)) <= set(DECODERS):
        raise UsageError(f"{path}: {DECODE_MODES} must be a list of {', '.join(DECODERS)}, not {modes!r}")
    return tuple(map(str, modes))


def _check_safetensors(path: str) -> None:
    """Read the header: a torn copy or another kind of file is noticed before any worker starts."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            file.keys()
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"{path} is no readable safetensors file ({_first_line(error)}): copy the checkpoint again") from None


def sha256_of(path: str) -> str:
    """SHA-256 of a file, in hex.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
