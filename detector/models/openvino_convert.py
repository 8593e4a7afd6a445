"""torch → OpenVINO, in a process of its own: ``python -m detector.models.openvino_convert``, no command for people.

It reads (checkpoint, settings, folder) from its standard input, pickled by its parent, and writes ``model.xml`` and
``model.bin`` to the folder. A failure is one line on its standard output.
"""

import pickle
import sys
import warnings
from typing import TYPE_CHECKING, Any

from detector.cli import EXIT_DONE, EXIT_FAILED, EXIT_USAGE
from detector.errors import UsageError
from detector.images.transforms import EvaluationTransform
from detector.models.checkpoint import Checkpoint, load_model
from detector.models.devices import DeviceSettings
from detector.models.openvino_cache import GRAPH, import_openvino
from detector.models.predictor import prepare_torch

if TYPE_CHECKING:
    import torch


def convert(checkpoint: Checkpoint, settings: DeviceSettings, folder: str) -> None:
    """Write a graph from uint8 [batch_size, 3, h, w] to float32 logits [batch_size, 2]; the normalisation is part of it.

    Its shape is fixed, as every batch's is. Weights are kept in float32: the precision is chosen where it runs.

    Raises:
        UsageError: the checkpoint cannot be loaded.
        Exception: whatever torch or OpenVINO raise for a model that they cannot trace.
    """
    import torch

    openvino = import_openvino()
    prepare_torch(settings)
    shape = [settings.batch_size, 3, *checkpoint.transform.input_size]
    # Not zeros: nothing in the trace may depend on values, and if something did, a picture is nearer to the truth.
    example = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = _wrap(load_model(checkpoint), checkpoint.transform)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns about every branch on a shape, and the shape is fixed
        graph = openvino.convert_model(model, example_input=example, input=shape)
    openvino.save_model(graph, f"{folder}/{GRAPH}", compress_to_fp16=False)


def _wrap(model: "torch.nn.Module", transform: EvaluationTransform) -> "torch.nn.Module":
    import torch

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, batch: "torch.Tensor") -> Any:
            return self.model(transform.normalize(batch)).logits

    return Whole().eval()


def main() -> int:
    """Convert what standard input names; the exit code, after one line on why not."""
    try:
        convert(*pickle.load(sys.stdin.buffer))  # noqa: S301  our parent wrote it
    except UsageError as error:
        print(error)
        return EXIT_USAGE
    except Exception as error:  # the converters raise what their parsers raise; the user can only do without them
        text = str(error).strip().splitlines()
        print(f"{type(error).__name__}: {text[0][:300] if text else ''}")
        return EXIT_FAILED
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
