"""A checkpoint run by OpenVINO: the same seam as :class:`detector.models.predictor.Predictor`, without transformers.

One process has one inference thread, as with torch: a worker per core is the fastest way, and threads are not pinned, or the
first core would get every worker's.
"""

from typing import Any, Self

import numpy as np

from detector.errors import UsageError
from detector.images.transforms import EvaluationTransform
from detector.labels import LabelMap
from detector.models.checkpoint import Checkpoint
from detector.models.devices import DeviceSettings
from detector.models.openvino_cache import GRAPH, converted_or_raise, import_openvino
from detector.models.predictor import BatchPredictor, ModelError

_HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoPredictor(BatchPredictor):
    """A converted checkpoint that scores pictures of its input size."""

    def __init__(self, graph: str, *, transform: EvaluationTransform, label_map: LabelMap, settings: DeviceSettings) -> None:
        openvino = import_openvino()
        super().__init__(transform=transform, label_map=label_map, settings=settings)
        hint = _HINTS[settings.precision]
        compiled = openvino.Core().compile_model(graph, "CPU", {
            "INFERENCE_NUM_THREADS": 1,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": hint,
        })  # fmt: skip
        if compiled.get_property("INFERENCE_PRECISION_HINT").to_string() != hint:  # it falls back without a word
            raise UsageError(f"OpenVINO cannot do {settings.precision} on this CPU: add --precision fp32")
        self._buffer = np.zeros((settings.batch_size, 3, *transform.input_size), dtype=np.uint8)
        self._request: Any = compiled.create_infer_request()
        self._request.set_input_tensor(0, openvino.Tensor(self._buffer, shared_memory=True))

    @classmethod
    def load(cls, checkpoint: Checkpoint, settings: DeviceSettings) -> Self:
        """Load the conversion that :func:`detector.models.openvino_cache.ensure_converted` made.

        Raises:
            UsageError: there is none for this checkpoint, batch size and OpenVINO, or it does not load.
        """
        folder = converted_or_raise(checkpoint, settings)
        try:
            return cls(f"{folder}/{GRAPH}", transform=checkpoint.transform, label_map=checkpoint.label_map, settings=settings)
        except RuntimeError as error:
            raise UsageError(f"OpenVINO cannot load {checkpoint.name}: {_reason(error)}") from error

    @property
    def batch(self) -> np.ndarray:
        """The buffer that the next batch is written into: uint8 [batch_size, 3, h, w]."""
        return self._buffer

    def predict(self, count: int) -> np.ndarray:
        """Score the first ``count`` pictures of :attr:`batch`; what stands behind them is padding.

        Returns:
            float32 [count]: the softmax probability of AI.

        Raises:
            ModelError: the model raised.
        """
        try:
            self._request.infer()
        except RuntimeError as error:
            raise ModelError(f"the model raised: {_reason(error)}") from error
        logits = self._request.get_output_tensor(0).data[:count].astype(np.float32)
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return (powers / powers.sum(axis=-1, keepdims=True))[:, self._label_map.ai_index]


def _reason(error: Exception) -> str:
    """OpenVINO's own words, and what to do without it: its lines begin with the places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("Exception from", "Check "))]
    return (said or lines or [type(error).__name__])[-1][:300]
