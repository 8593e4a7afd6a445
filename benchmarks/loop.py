"""The bound: a hand-written loop, one process per core, without hashing, protection, resume or any error handling.

``python -m benchmarks.loop FOLDER MODEL OUT.csv torch|openvino``; bf16 where the CPU multiplies it in hardware, as the project
does. With OpenVINO it runs the graph that the project has converted before.
"""

import multiprocessing
import os
import sys

BATCH = 16


def work(job: tuple[list[str], str, str]) -> list[str]:
    """Score a share of the pictures."""
    import numpy as np
    import torch
    from PIL import Image

    from detector.models.checkpoint import inspect_checkpoint

    torch.set_num_threads(1)
    paths, folder, backend = job
    checkpoint = inspect_checkpoint(folder)
    transform = checkpoint.transform
    forward = {"torch": with_torch, "openvino": with_openvino}[backend](checkpoint)
    batch = torch.zeros((BATCH, 3, *transform.input_size), dtype=torch.uint8)
    lines = []
    for start in range(0, len(paths), BATCH):
        share = paths[start : start + BATCH]
        for slot, path in enumerate(share):
            batch[slot] = transform.resize(_decode(path, np, Image))
        p_ai = torch.softmax(forward(batch), dim=-1)[: len(share), checkpoint.label_map.ai_index].tolist()
        lines += [f"{max(p, 1 - p):.6f},{int(p < 0.5)},{os.path.basename(path)}\n" for p, path in zip(p_ai, share, strict=True)]
    return lines


def settings_of(backend):
    from detector.models.devices import local_device_kind, resolve_settings

    return resolve_settings(kind=local_device_kind(gpus=False), batch_size=BATCH, precision="auto", backend=backend)


def with_torch(checkpoint):
    """uint8 batch → float32 logits."""
    import torch

    from detector.models.checkpoint import load_model

    dtype = torch.bfloat16 if settings_of("torch").precision == "bf16" else torch.float32
    model = load_model(checkpoint).to(dtype)

    def forward(batch):
        with torch.inference_mode():
            return model(checkpoint.transform.normalize(batch).to(dtype)).logits.float()

    return forward


def with_openvino(checkpoint):
    """uint8 batch → float32 logits."""
    import openvino
    import torch

    from detector.models.openvino_cache import GRAPH, converted_or_raise

    settings = settings_of("openvino")
    options = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
    hint = {"fp32": "f32", "bf16": "bf16"}[settings.precision]
    graph = os.path.join(converted_or_raise(checkpoint, settings), GRAPH)
    model = openvino.Core().compile_model(graph, "CPU", {**options, "INFERENCE_PRECISION_HINT": hint})
    return lambda batch: torch.from_numpy(model(batch.numpy())[0]).float()


def _decode(path: str, np, image):
    if path.endswith(".jpg"):
        import simplejpeg

        with open(path, "rb") as file:
            return simplejpeg.decode_jpeg(file.read(), "RGB")
    return np.asarray(image.open(path).convert("RGB"))


def main(folder: str, model: str, out: str, backend: str) -> None:
    """Two lists of paths, one process each."""
    paths = sorted(os.path.join(folder, name) for name in os.listdir(folder))
    cores = len(os.sched_getaffinity(0))
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        lines = pool.map(work, [(paths[core::cores], model, backend) for core in range(cores)])
    with open(out, "w", encoding="utf-8") as file:
        file.write("score,label,filename\n")
        file.writelines(sorted(line for part in lines for line in part))


if __name__ == "__main__":
    main(*sys.argv[1:5])
