"""transformers.Trainer with this project's inputs, loss weights and order; and what is measured at an evaluation."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import transformers
from torch.utils.data import Sampler

from detector import metrics
from detector.images.transforms import EvaluationTransform
from detector.labels import Label
from detector.training.attention import fused_attention
from detector.training.collapse import is_constant

# History columns that an evaluation fills, beside its loss.
EVALUATION_METRICS = ("accuracy", "f1", "precision", "recall", "balanced_accuracy", "roc_auc")


class DivergedError(RuntimeError):
    """The model's outputs are no numbers any more."""


class DetectorTrainer(transformers.Trainer):
    """A Trainer whose batches are uint8 until they are on the device, and whose order comes from our sampler."""

    def __init__(
        self,
        *,
        transform: EvaluationTransform,
        sampler: Sampler[tuple[int, int]],
        loss_weights: list[float] | None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._transform, self._sampler = transform, sampler
        self._loss_weights = torch.tensor(loss_weights) if loss_weights else None
        self.model_accepts_loss_kwargs = False  # our loss is a mean per batch; the Trainer divides it by the accumulation
        self._loss_sum = torch.zeros(2, dtype=torch.float64)

    def epoch_loss(self) -> float:
        """Mean training loss of all workers since the last call."""
        total = self.accelerator.reduce(self._loss_sum.to(self.args.device, torch.float32), reduction="sum")
        self._loss_sum.zero_()
        return float(total[0] / total[1]) if total[1] else float("nan")

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ARG002  the Trainer passes it by name
    ) -> Any:
        """Cross entropy, weighted by class while training if that was asked for. Weights have mean 1 over the data."""
        labels = inputs["labels"]
        outputs = model(pixel_values=inputs["pixel_values"])
        losses = torch.nn.functional.cross_entropy(outputs.logits.float(), labels, reduction="none")
        if model.training:
            if self._loss_weights is not None:
                losses = losses * self._loss_weights.to(losses.device)[labels]
            self._loss_sum = self._loss_sum.to(losses.device)  # added up there: reading it in every step would stall a GPU
            self._loss_sum[0] += losses.detach().sum()
            self._loss_sum[1] += len(losses)
        loss = losses.mean()
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, *args: Any, **options: Any) -> Any:
        """The Trainer's own, with the attention that scoring has."""
        with fused_attention(self.model):
            return super().evaluation_loop(*args, **options)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        return {**inputs, "pixel_values": self._transform.normalize(inputs["pixel_values"])}

    def _load_from_checkpoint(
        self,
        resume_from_checkpoint: str,
        model: torch.nn.Module | None = None,  # noqa: ARG002  a wrapped model, which only sharded training hands over
    ) -> None:
        """Load every weight of a checkpoint, or fail.

        The Trainer's own way leaves weights out without a word where transformers saves them under other names than the
        model has: 52 of 82 of a Swin's in 5.23, which then went on from its first random attention weights.
        """
        saved = type(self.model).from_pretrained(resume_from_checkpoint, local_files_only=True, dtype=torch.float32)
        self.model.load_state_dict(saved.state_dict(), strict=True)

    def _get_train_sampler(self, _train_dataset: Any = None) -> Sampler[tuple[int, int]]:
        return self._sampler


def evaluate_logits(prediction: Any) -> dict[str, Any]:
    """Metrics of one evaluation, from logits float [N, 2] (AI, Real) and labels int [N]; undefined ones are NaN.

    Raises:
        DivergedError: the logits are not finite.
    """
    logits, labels = np.asarray(prediction.predictions, dtype=np.float64), np.asarray(prediction.label_ids)
    if not np.isfinite(logits).all():
        raise DivergedError
    p_ai = 1.0 / (1.0 + np.exp(np.clip(logits[:, Label.REAL] - logits[:, Label.AI], -700, 700)))
    found = metrics.compute_metrics(labels, p_ai)
    values = {name: float("nan") if found[name] is None else float(found[name]) for name in EVALUATION_METRICS}
    return {
        **values,
        "predicted_ai": float((metrics.predict(p_ai) == Label.AI).mean()),
        "collapsed": is_constant(p_ai),
    }


def selection_score(values: Mapping[str, Any], metric: str) -> float:
    """What the best evaluation has most of: the metric, an undefined one counting as 0; ties go to the lower loss.

    The loss enters at a millionth, below the smallest step that the metric can take on 100,000 pictures.
    """
    main = float(values[metric])
    loss = min(float(values["validation_loss"]), 9.0)
    return (0.0 if np.isnan(main) else main) - 1e-6 * (9.0 if np.isnan(loss) else loss)
