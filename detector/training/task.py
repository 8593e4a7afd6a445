"""What the driver hands to its workers. Imports neither torch nor Ray."""

from dataclasses import dataclass

from detector.models.backbones import Base
from detector.training.board import Board
from detector.training.config import TrainConfig
from detector.training.dataset import Holdout


@dataclass(frozen=True, kw_only=True)
class Task:
    """One training, as every worker gets it.

    Attributes:
        config: what was asked for.
        base: the model it starts from.
        holdout: training and validation pictures.
        precision: fp32, bf16 or fp16.
        use_gpu: whether each worker has a GPU, or a share of one.
        board: where it says how far it is.
    """

    config: TrainConfig
    base: Base
    holdout: Holdout
    precision: str
    use_gpu: bool
    board: Board
