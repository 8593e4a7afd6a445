"""What a practised user would write: a PyTorch DataLoader with two workers and a loop over its batches.

``python -m benchmarks.dataloader FOLDER MODEL OUT.csv pillow|torchvision fp32|bf16``
"""

import csv
import os
import sys

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, read_image
from torchvision.transforms.v2 import Compose, Normalize, PILToTensor, Resize, ToDtype
from transformers import AutoModelForImageClassification

BATCH, WORKERS = 16, 2


class Pictures(Dataset):
    """The files of a folder as normalised tensors."""

    def __init__(self, folder, *, decoder):
        self.paths = sorted(os.path.join(folder, name) for name in os.listdir(folder))
        self.decoder = decoder
        steps = [Resize((224, 224), interpolation=3, antialias=True)]
        to_tensor = [PILToTensor()] if decoder == "pillow" else []
        scale = [ToDtype(torch.float32, scale=True), Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
        self.transform = Compose([*steps, *to_tensor, *scale])

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        path = self.paths[index]
        picture = Image.open(path).convert("RGB") if self.decoder == "pillow" else read_image(path, ImageReadMode.RGB)
        return self.transform(picture)


def main(folder, model, out, decoder, precision):
    """Score every picture of a folder and write score,label,filename."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    pictures = Pictures(folder, decoder=decoder)
    network = AutoModelForImageClassification.from_pretrained(model, dtype=dtype).eval()
    ai = {name: index for index, name in network.config.id2label.items()}["AI"]
    results = []
    for batch in DataLoader(pictures, batch_size=BATCH, num_workers=WORKERS):
        with torch.inference_mode():
            logits = network(batch.to(dtype)).logits.float()
        results += torch.softmax(logits, dim=-1)[:, ai].tolist()
    with open(out, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["score", "label", "filename"])
        for path, p in zip(pictures.paths, results, strict=True):
            rows.writerow([f"{max(p, 1 - p):.6f}", int(p < 0.5), os.path.basename(path)])


if __name__ == "__main__":
    main(*sys.argv[1:6])
