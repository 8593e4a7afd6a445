"""The bound: a hand-written loop, one process per core, without hashing, protection, resume or any error handling.

``python -m benchmarks.loop FOLDER MODEL OUT.csv``; bf16 where the CPU multiplies it in hardware, as the project does.
"""

import multiprocessing
import os
import sys

BATCH = 16


def work(job: tuple[list[str], str]) -> list[str]:
    """Score a share of the pictures."""
    import numpy as np
    import torch
    from PIL import Image

    from detector.models.checkpoint import inspect_checkpoint, load_model
    from detector.models.devices import local_device_kind, resolve_settings

    torch.set_num_threads(1)
    paths, folder = job
    checkpoint = inspect_checkpoint(folder)
    settings = resolve_settings(kind=local_device_kind(gpus=False), batch_size=BATCH, precision="auto")
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    model, transform = load_model(checkpoint).to(dtype), checkpoint.transform
    batch = torch.zeros((BATCH, 3, *transform.input_size), dtype=torch.uint8)
    lines = []
    for start in range(0, len(paths), BATCH):
        share = paths[start : start + BATCH]
        for slot, path in enumerate(share):
            batch[slot] = transform.resize(_decode(path, np, Image))
        with torch.inference_mode():
            logits = model(transform.normalize(batch).to(dtype)).logits.float()
        p_ai = torch.softmax(logits, dim=-1)[: len(share), checkpoint.label_map.ai_index].tolist()
        lines += [f"{max(p, 1 - p):.6f},{int(p < 0.5)},{os.path.basename(path)}\n" for p, path in zip(p_ai, share, strict=True)]
    return lines


def _decode(path: str, np, image):
    if path.endswith(".jpg"):
        import simplejpeg

        with open(path, "rb") as file:
            return simplejpeg.decode_jpeg(file.read(), "RGB")
    return np.asarray(image.open(path).convert("RGB"))


def main(folder: str, model: str, out: str) -> None:
    """Two lists of paths, one process each."""
    paths = sorted(os.path.join(folder, name) for name in os.listdir(folder))
    cores = len(os.sched_getaffinity(0))
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        lines = pool.map(work, [(paths[core::cores], model) for core in range(cores)])
    with open(out, "w", encoding="utf-8") as file:
        file.write("score,label,filename\n")
        file.writelines(sorted(line for part in lines for line in part))


if __name__ == "__main__":
    main(*sys.argv[1:4])
