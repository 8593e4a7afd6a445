"""What a comparison of backbones is asked to do: one recipe, several architectures, one test split."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from detector.errors import UsageError
from detector.models.backbones_table import BACKBONES, SCRATCH, SWINS, TINY
from detector.training.config import TrainConfig
from detector.uris import is_uri, local_path

ALL = "all"
MODELS_FOLDER = "backbones"
_PUBLISHED = {backbone.name: backbone.published_f1 for backbone in BACKBONES}
_BY_KEY = {name.lower(): name for name in (*_PUBLISHED, *SWINS, TINY)}


@dataclass(frozen=True, kw_only=True)
class CompareConfig(TrainConfig):
    """One comparison. The fields of the base class are the recipe that every backbone is trained with."""

    test_split: str
    """Split of the data folder that every trained backbone is judged on; never the training split."""
    backbones: tuple[str, ...]
    """all: the ten of the published comparison; or their names, swin-tiny, swin-small, swin-base, scratch:NAME."""
    from_scratch: bool = False
    """Start from random weights, where no hub can be reached."""
    model: str = ""
    """Left empty: every backbone is one."""

    def check(self) -> None:
        """Refuse values that cannot work.

        Raises:
            UsageError: a value out of its range; the message names the flag.
        """
        super().check()
        if self.test_split == self.train_split:
            raise UsageError(f"--test-split {self.test_split} is the split that is trained on: name another one")
        if is_uri(self.out) and is_uri(local_path(self.out)):
            raise UsageError(f"--out {self.out}: a comparison keeps its models in a folder; give a path that every node sees")

    @property
    def root(self) -> str:
        """Absolute path of the output folder."""
        return os.path.abspath(local_path(self.out))

    def training_of(self, candidate: "Candidate") -> TrainConfig:
        """The training of one backbone; what a killed one has finished of it is continued."""
        folder = os.path.join(self.root, candidate.folder)
        recipe = TrainConfig(**{field.name: getattr(self, field.name) for field in fields(TrainConfig)})
        return replace(recipe, model=candidate.model, out=folder, resume=os.path.isdir(folder))

    def shared_recipe(self) -> dict[str, object]:
        """What all backbones have in common of the recipe."""
        return {name: value for name, value in self.recipe().items() if name not in {"model", "ai_class"}}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One backbone of a comparison.

    Attributes:
        name: as its row and its bar are called.
        model: what jobs.train would be given as ``--model``.
        published_f1: F1 of AI in the published comparison; None where it had no such backbone.
    """

    name: str
    model: str
    published_f1: float | None

    @property
    def is_random(self) -> bool:
        """Whether it starts from random weights."""
        return self.model.startswith(SCRATCH)

    @property
    def folder(self) -> str:
        """Where its checkpoint and its result are kept, relative to the output folder."""
        return f"{MODELS_FOLDER}/{self.model.replace(':', '-')}"


def choose_candidates(names: Sequence[str], *, from_scratch: bool) -> tuple[Candidate, ...]:
    """The backbones that ``--backbones`` names, in its order, each once.

    Raises:
        UsageError: an unknown name, or none; the message lists those that there are.
    """
    chosen: dict[str, Candidate] = {}
    for given in names:
        for name in _PUBLISHED if given.lower() == ALL else (given,):
            candidate = _candidate(name, from_scratch=from_scratch)
            chosen.setdefault(candidate.model, candidate)
    if not chosen:
        raise UsageError(f"--backbones needs at least one name: {_known()}")
    return tuple(chosen.values())


def _candidate(given: str, *, from_scratch: bool) -> Candidate:
    is_random = from_scratch or given.lower().startswith(SCRATCH)
    name = _BY_KEY.get(given.lower().removeprefix(SCRATCH))
    if name is None:
        raise UsageError(f"--backbones {given}: there is no such backbone; take {_known()}")
    if name == TINY and not is_random:
        raise UsageError(f"--backbones {given}: it exists with random weights only, as {SCRATCH}{TINY}")
    shown = name if is_random == from_scratch else f"{SCRATCH}{name}"
    return Candidate(name=shown, model=f"{SCRATCH}{name}" if is_random else name, published_f1=_PUBLISHED.get(name))


def _known() -> str:
    return f"{ALL}, {', '.join((*_PUBLISHED, *SWINS))}, or {SCRATCH}NAME for random weights ({SCRATCH}{TINY} is for tests)"
