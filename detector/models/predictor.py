"""A batch of uint8 pictures → the probability of AI. Every batch has one fixed shape; the last one is padded.

Measured: at a fixed shape a picture's score is bit-identical whatever its neighbours, its position, the padding or the number
of threads; at another batch size it moves by 5e-7 in fp32 and by up to 0.01 in bf16.
"""

import os
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from detector.images.transforms import EvaluationTransform
from detector.labels import LabelMap
from detector.models.checkpoint import Checkpoint, load_model
from detector.models.devices import DeviceSettings
from detector.models.lanes import NUM_LANES, CudaStreams, Lanes, Streams, Ticket

if TYPE_CHECKING:
    import torch


class ModelError(RuntimeError):
    """The model could not score a batch; the message says what to do. The rows become ``model_failed``."""


class BatchPredictor(ABC):
    """What scores pictures of a checkpoint's input size, in batches of one shape, whatever runs the model."""

    def __init__(self, *, transform: EvaluationTransform, label_map: LabelMap, settings: DeviceSettings) -> None:
        self.transform, self.settings, self._label_map = transform, settings, label_map
        self._lock = threading.Lock()  # threads may share a predictor: its one buffer is one thread's at a time

    @property
    @abstractmethod
    def batch(self) -> np.ndarray:
        """The buffer that the next batch is written into: uint8 [batch_size, 3, h, w]."""

    @abstractmethod
    def predict(self, count: int) -> np.ndarray:
        """Score the first ``count`` pictures of :attr:`batch`; what stands behind them is padding.

        Returns:
            float32 [count]: the softmax probability of AI.

        Raises:
            ModelError: the device ran out of memory or the model raised.
        """

    def stream(self, pixels: np.ndarray, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray | ModelError]]:
        """Score ``pixels[rows]``, uint8 [N, 3, h, w], batch by batch, in order.

        Returns an iterator over:
            The rows of one batch, and their p(AI) as float32, or why that batch could not be scored.
        """
        size = self.settings.batch_size
        return self.stream_batches((pixels, rows[start : start + size]) for start in range(0, len(rows), size))

    def stream_batches(
        self, batches: Iterable[tuple[np.ndarray, np.ndarray]]
    ) -> Iterator[tuple[np.ndarray, np.ndarray | ModelError]]:
        """Score batches that are chosen already: pixels and at most ``batch_size`` rows of them. Yields as :meth:`stream`.

        Pixels may be overwritten as soon as the next batch is drawn.
        """
        for pixels, rows in batches:
            with self._lock:
                outcome = self._outcome(pixels, rows)
            yield rows, outcome

    def _outcome(self, pixels: np.ndarray, rows: np.ndarray) -> np.ndarray | ModelError:
        np.take(pixels, rows, axis=0, out=self.batch[: len(rows)])
        try:
            return self.predict(len(rows))
        except ModelError as error:
            return error

    def predict_all(self, pictures: np.ndarray) -> np.ndarray:
        """Score uint8 [N, 3, h, w] in fixed batches → float32 [N], the probability of AI.

        Raises:
            ModelError: a batch could not be scored.
        """
        results = [np.empty(0, dtype=np.float32)]
        for _, outcome in self.stream(pictures, np.arange(len(pictures))):
            if isinstance(outcome, ModelError):
                raise outcome
            results.append(outcome)
        return np.concatenate(results)


class Predictor(BatchPredictor):
    """A checkpoint run by torch, one batch after the other."""

    def __init__(
        self, model: "torch.nn.Module", *, transform: EvaluationTransform, label_map: LabelMap, settings: DeviceSettings
    ) -> None:
        import torch

        super().__init__(transform=transform, label_map=label_map, settings=settings)
        self._dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[settings.precision]
        self._device = torch.device("cuda" if settings.is_cuda else "cpu")
        # One place decides on the layout: the model's, and with it that of its inputs in _p_ai.
        layout: dict[str, Any] = {"memory_format": torch.channels_last} if settings.channels_last else {}
        self._layout = layout.get("memory_format", torch.contiguous_format)
        self._model: Any = model.to(device=self._device, dtype=self._dtype, **layout).eval()
        if not settings.is_cuda:
            from detector.models.packing import pack_linear_layers

            pack_linear_layers(self._model)
        self._constants = transform.constants(self._device)
        self._batch = torch.zeros((settings.batch_size, 3, *transform.input_size), dtype=torch.uint8)

    @classmethod
    def load(cls, checkpoint: Checkpoint, settings: DeviceSettings) -> Self:
        """Load a checkpoint onto the device of ``settings``.

        Raises:
            UsageError: the checkpoint cannot be loaded.
        """
        prepare_torch(settings)
        return cls(load_model(checkpoint), transform=checkpoint.transform, label_map=checkpoint.label_map, settings=settings)

    @property
    def batch(self) -> np.ndarray:
        """The buffer that the next batch is written into: uint8 [batch_size, 3, h, w]."""
        return self._batch.numpy()

    def predict(self, count: int) -> np.ndarray:
        """Score the first ``count`` pictures of :attr:`batch`; see :meth:`BatchPredictor.predict`."""
        try:
            return self._p_ai(self._batch.to(self._device))[:count].cpu().numpy()
        except RuntimeError as error:
            raise self._model_error(error) from error

    def _p_ai(self, batch: "torch.Tensor") -> "torch.Tensor":
        """uint8 [batch_size, 3, h, w] → float32 [batch_size], both on the model's device."""
        import torch

        with torch.inference_mode():
            inputs = self.transform.normalize(batch, self._constants).to(self._dtype).contiguous(memory_format=self._layout)
            return torch.softmax(self._model(inputs).logits.float(), dim=-1)[:, self._label_map.ai_index]

    def _model_error(self, error: RuntimeError) -> ModelError:
        import torch

        if isinstance(error, torch.OutOfMemoryError):
            size = self.settings.batch_size
            return ModelError(f"the device ran out of memory at --batch-size {size}: try --batch-size {max(1, size // 2)}")
        return ModelError(f"the model raised: {next(iter(str(error).splitlines()), type(error).__name__)[:300]}")


class GpuPredictor(Predictor):
    """A checkpoint run by torch on a GPU, with several batches on their way (see :mod:`detector.models.lanes`).

    Threads may share it, each with a :meth:`stream` of its own: while one commits, another's batches keep the device busy.
    """

    def __init__(
        self,
        model: "torch.nn.Module",
        *,
        transform: EvaluationTransform,
        label_map: LabelMap,
        settings: DeviceSettings,
        streams: Streams | None = None,
    ) -> None:
        super().__init__(model, transform=transform, label_map=label_map, settings=settings)
        shape = (settings.batch_size, 3, *transform.input_size)
        self._lanes = Lanes(self._p_ai, shape=shape, device=self._device, streams=streams or CudaStreams())

    def predict(self, count: int) -> np.ndarray:
        """Score the first ``count`` pictures of :attr:`batch`; see :meth:`BatchPredictor.predict`."""
        return self.predict_all(self.batch[:count])

    def stream_batches(
        self, batches: Iterable[tuple[np.ndarray, np.ndarray]]
    ) -> Iterator[tuple[np.ndarray, np.ndarray | ModelError]]:
        """Score batches in order; a result is fetched when two more are on their way. See :class:`BatchPredictor`."""
        waiting: deque[tuple[np.ndarray, Ticket]] = deque()
        for pixels, rows in batches:
            waiting.append((rows, self._lanes.submit(pixels, rows)))
            if len(waiting) == NUM_LANES:
                yield self._settled(*waiting.popleft())
        while waiting:
            yield self._settled(*waiting.popleft())

    def _settled(self, rows: np.ndarray, ticket: Ticket) -> tuple[np.ndarray, np.ndarray | ModelError]:
        try:
            return rows, ticket.result()
        except RuntimeError as error:
            return rows, self._model_error(error)


def load_predictor(checkpoint: Checkpoint, settings: DeviceSettings) -> BatchPredictor:
    """Load a checkpoint with the back-end and onto the device of ``settings``.

    Raises:
        UsageError: the checkpoint cannot be loaded, or the back-end is not there.
    """
    if settings.backend == "openvino":
        from detector.models.openvino_predictor import OpenVinoPredictor

        return OpenVinoPredictor.load(checkpoint, settings)
    return (GpuPredictor if settings.is_cuda else Predictor).load(checkpoint, settings)


def prepare_torch(settings: DeviceSettings) -> None:
    """One thread a process on CPUs (one process per core is the fastest way), and no network for the libraries."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch

    if not settings.is_cuda:
        torch.set_num_threads(1)
    elif settings.precision == "fp32":  # TF32 keeps 10 bits of mantissa: not what was asked for
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
