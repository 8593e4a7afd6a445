"""Batch inference as Ray's documentation shows it: read_images, a preprocessing step, a class with the model, write_csv.

``python -m benchmarks.ray_recipe FOLDER MODEL OUT``
"""

import os
import sys

import numpy as np
import ray
import ray.data


def preprocess(row):
    """One picture to the model's input."""
    import torch
    from torchvision.transforms.v2.functional import normalize, resize, to_dtype

    picture = resize(torch.from_numpy(row["image"]).permute(2, 0, 1), [224, 224], interpolation=3, antialias=True)
    tensor = normalize(to_dtype(picture, torch.float32, scale=True), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return {"picture": tensor.numpy(), "filename": os.path.basename(row["path"])}


class Classify:
    """The model in an actor."""

    def __init__(self, model):
        from transformers import AutoModelForImageClassification

        self.model = AutoModelForImageClassification.from_pretrained(model).eval()
        self.ai = {name: index for index, name in self.model.config.id2label.items()}["AI"]

    def __call__(self, batch):
        import torch

        with torch.inference_mode():
            logits = self.model(torch.from_numpy(np.stack(batch["picture"]))).logits
        p_ai = torch.softmax(logits, dim=-1)[:, self.ai].numpy()
        return {"score": np.maximum(p_ai, 1 - p_ai), "label": (p_ai < 0.5).astype(np.int8), "filename": batch["filename"]}


def main(folder, model, out):
    """Score every picture of a folder and write score,label,filename."""
    ray.init(address="local", log_to_driver=False)
    pictures = ray.data.read_images(folder, mode="RGB", include_paths=True).map(preprocess)
    # One CPU stays free for reading: with both taken by actors the graph never starts.
    scored = pictures.map_batches(Classify, fn_constructor_args=(model,), batch_size=16, concurrency=1, num_cpus=1)
    scored.write_csv(out)


if __name__ == "__main__":
    main(*sys.argv[1:4])
