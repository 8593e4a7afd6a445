"""From the Trainer to Ray: progress to the board, every evaluation with its checkpoint to Ray Train.

Recovery. Ray's controller collects reports by polling its workers, every two seconds by default. A checkpoint that was
reported and not yet collected when a worker dies is forgotten, although its files are there, and the run starts again from its
beginning. So after every report each worker waits until the controller has committed it, and only then is the evaluation
announced and training goes on. A restarted group finds it with ``ray.train.get_checkpoint()``: the Trainer's state, each
worker's random generators, the history.
"""

import json
import math
import os
import shutil
import time
from typing import TYPE_CHECKING, Any

import ray
import ray.train
import transformers
from ray.train import CheckpointConsistencyMode

from detector.models.backbones import Classifier
from detector.models.backbones_files import write_configs
from detector.training.task import Task
from detector.training.trainer import EVALUATION_METRICS, DivergedError, selection_score

if TYPE_CHECKING:
    from detector.training.trainer import DetectorTrainer

TRAINER_FOLDER, HISTORY_FILE = "trainer", "history.json"
_PIN_EVERY_S = 0.5


class Reporter(transformers.TrainerCallback):
    """Reports one worker's training; only the first worker says how far it is."""

    def __init__(
        self,
        task: Task,
        classifier: Classifier,
        trainer: "DetectorTrainer",
        scratch: str,
        *,
        history: list[dict[str, Any]],
    ) -> None:
        self._task, self._classifier, self._trainer, self._scratch = task, classifier, trainer, scratch
        self._history = history
        self._is_first = ray.train.get_context().get_world_rank() == 0
        self._num_images = len(task.holdout.train)
        last = history[-1]["attempt"] if history else 0
        self._attempt = task.board.begin(last) if self._is_first else 0
        self._epoch_start = self._last_pin = time.monotonic()
        self._cpu_start = time.process_time()
        self._epoch: dict[str, float] = {}

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Start the driver's bar where this attempt starts."""
        if self._is_first:
            begun = f"attempt {self._attempt}: continuing after epoch {self._history[-1]['epoch']}" if self._history else None
            self._task.board.pin(done=round(state.epoch or 0) * self._num_images, line=begun)

    def on_epoch_begin(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        """Start the clocks."""
        self._epoch_start, self._cpu_start = time.monotonic(), time.process_time()

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Pin up how many pictures are done, not more often than twice a second."""
        now = time.monotonic()
        if self._is_first and now - self._last_pin >= _PIN_EVERY_S:
            self._last_pin = now
            self._task.board.pin(done=int(state.epoch * self._num_images))

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Pass training loss, learning rate and gradient norm on to TensorBoard.

        Raises:
            DivergedError: the loss is no number. In fp16 single steps may overflow, and are skipped: there the next evaluation
                decides.
        """
        if not math.isfinite((logs or {}).get("loss", 0.0)) and self._task.precision != "fp16":
            raise DivergedError
        wanted = {"loss", "learning_rate", "grad_norm"} & set(logs or {})
        if self._is_first and wanted:
            values = {f"train/{name}": float((logs or {})[name]) for name in wanted}
            self._task.board.pin(step=state.global_step, scalars=values)

    def on_epoch_end(self, _args: Any, _state: Any, _control: Any, lr_scheduler: Any = None, **_: Any) -> None:
        """Stop the clocks, and gather the epoch's loss from all workers."""
        import torch

        if torch.cuda.is_available():  # what is queued is not yet done
            torch.cuda.synchronize()
        self._epoch = {
            "train_seconds": time.monotonic() - self._epoch_start,
            "train_cpu_seconds": time.process_time() - self._cpu_start,
            "train_loss": self._trainer.epoch_loss(),
            "learning_rate": float(lr_scheduler.get_last_lr()[0]),
        }

    def on_evaluate(self, _args: Any, state: Any, _control: Any, metrics: dict[str, float] | None = None, **_: Any) -> None:
        """Add one row to the history."""
        found = metrics or {}
        values = {name: found[f"eval_{name}"] for name in (*EVALUATION_METRICS, "predicted_ai", "collapsed")}
        row: dict[str, Any] = {
            "epoch": round(state.epoch), "step": state.global_step, "attempt": self._attempt, **self._epoch,
            "images_per_second": self._num_images / max(self._epoch["train_seconds"], 1e-9),
            "validation_loss": found["eval_loss"], **values,
        }  # fmt: skip
        row["parameters"] = sum(parameter.numel() for parameter in self._trainer.model.parameters())
        row["selection"] = selection_score(row, self._task.config.metric)
        self._history.append(row)

    def on_save(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Hand the Trainer's checkpoint and the history to Ray Train, and wait until both are safe."""
        folder = os.path.join(self._scratch, f"report-{state.global_step}")
        trained = os.path.join(folder, TRAINER_FOLDER)
        os.makedirs(folder)
        os.rename(os.path.join(self._scratch, f"checkpoint-{state.global_step}"), trained)
        if self._is_first:
            write_configs(trained, self._classifier.transform, decode=self._task.config.decode)
            with open(os.path.join(folder, HISTORY_FILE), "w", encoding="utf-8") as file:
                json.dump(self._history, file)
        ray.train.report(self._history[-1], checkpoint=ray.train.Checkpoint.from_directory(folder))
        ray.train.get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED)
        shutil.rmtree(folder, ignore_errors=True)
        if self._is_first:  # only now: who reads of an evaluation may count on it
            self._announce(self._history[-1])

    def _announce(self, row: dict[str, Any]) -> None:
        line = (
            f"epoch {row['epoch']}: loss {row['train_loss']:.4f}, validation loss {row['validation_loss']:.4f}, "
            f"accuracy {row['accuracy']:.4f}, F1 of AI {row['f1']:.4f}, {row['images_per_second']:.1f} images/s"
        )
        if row["collapsed"]:
            line += f"; COLLAPSED: the same answer for every picture ({100 * row['predicted_ai']:.0f} % AI)"
        shown = (*EVALUATION_METRICS, "validation_loss", "predicted_ai")
        scalars = {f"validation/{name}": float(row[name]) for name in shown}
        self._task.board.pin(done=row["epoch"] * self._num_images, line=line, step=row["step"], scalars=scalars)
