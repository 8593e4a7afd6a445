"""What a user would write first: transformers' pipeline, fp32; one picture at a time or in batches.

``python -m benchmarks.naive FOLDER MODEL OUT.csv [BATCH]``
"""

import csv
import os
import sys

import torch
from transformers import pipeline


def main(folder: str, model: str, out: str, batch: int = 1) -> None:
    """Score every picture of a folder and write score,label,filename."""
    torch.set_num_threads(os.cpu_count() or 1)
    classify = pipeline("image-classification", model=model, dtype=torch.float32)
    paths = sorted(os.path.join(folder, name) for name in os.listdir(folder))
    with open(out, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["score", "label", "filename"])
        for path, answer in zip(paths, classify(paths, batch_size=batch, top_k=1), strict=True):
            rows.writerow([f"{answer[0]['score']:.6f}", 0 if answer[0]["label"] == "AI" else 1, os.path.basename(path)])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]) if len(sys.argv) > 4 else 1)
