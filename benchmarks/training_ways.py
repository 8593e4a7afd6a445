"""The two bounds of jobs.train: transformers.Trainer alone, and a plain PyTorch loop.

``python -m benchmarks.training_ways trainer|loop SETTINGS.json OUT.json``; the Trainer also under torchrun. Both have
jobs.train's model, pictures, decoding, augmentation, batch, optimizer and precision, and neither has Ray, evaluations,
checkpoints, recovery or progress. What each writes is one row per epoch: pictures, wall seconds and CPU-seconds of the process.
"""

import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass

import torch
import transformers
from torch.utils.data import DataLoader, Dataset

from detector.images.augmentation import TrainingAugmentation
from detector.models.backbones import build_backbone
from detector.training.dataset import read_split
from detector.training.samples import PictureCache, TrainingPictures, collate

WARMUP_RATIO = 0.1


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all ways have in common."""

    data: str
    model: str
    epochs: int
    batch_size: int
    gradient_accumulation: int
    learning_rate: float
    precision: str
    cache_mb: int


class Pictures(Dataset):
    """jobs.train's training pictures, by index alone; the augmentation is drawn anew in every epoch."""

    def __init__(self, settings: Settings, transform) -> None:
        samples = read_split(settings.data, "train")
        augmentation = TrainingAugmentation(size=transform.input_size, resample=transform.resample)
        cache = PictureCache(budget_bytes=settings.cache_mb * 1_000_000)
        self._pictures = TrainingPictures(samples, augmentation=augmentation, cache=cache, seed=0)
        self._drawn = 0

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> dict:
        self._drawn += 1
        return self._pictures[self._drawn, index]


class Clocks:
    """Wall time and this process's CPU time, epoch by epoch."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def start(self) -> None:
        self._begun = time.monotonic(), time.process_time()

    def stop(self, images: int) -> None:
        wall, cpu = time.monotonic() - self._begun[0], time.process_time() - self._begun[1]
        self.rows.append({"images": images, "wall_s": wall, "cpu_s": cpu})


def trainer(settings: Settings, clocks: Clocks) -> None:
    """The documented use: a collator that normalises, the Trainer's own loss and order."""
    classifier = build_backbone(settings.model, pretrained=False)
    pictures, transform = Pictures(settings, classifier.transform), classifier.transform

    def prepare(samples: list[dict]) -> dict:
        batch = collate(samples)
        return {"pixel_values": transform.normalize(batch["pixel_values"]), "labels": batch["labels"]}

    class Watch(transformers.TrainerCallback):
        def on_epoch_begin(self, *_, **__) -> None:
            clocks.start()

        def on_epoch_end(self, *_, **__) -> None:
            clocks.stop(len(pictures))

    world = int(os.environ.get("WORLD_SIZE", "1"))
    with tempfile.TemporaryDirectory() as scratch:
        arguments = transformers.TrainingArguments(
            output_dir=scratch, num_train_epochs=settings.epochs, learning_rate=settings.learning_rate,
            per_device_train_batch_size=settings.batch_size // world, ddp_backend="gloo" if world > 1 else None,
            gradient_accumulation_steps=settings.gradient_accumulation,
            warmup_steps=WARMUP_RATIO, optim="adamw_torch_fused", weight_decay=0.0, bf16=settings.precision == "bf16",
            use_cpu=True, remove_unused_columns=False, save_strategy="no", disable_tqdm=True, report_to=[],
        )  # fmt: skip
        transformers.Trainer(
            model=classifier.model, args=arguments, train_dataset=pictures, data_collator=prepare, callbacks=[Watch()]
        ).train()


def loop(settings: Settings, clocks: Clocks) -> None:
    """What one writes by hand: zip the loader, autocast, accumulate, clip, step."""
    classifier = build_backbone(settings.model, pretrained=False)
    model, transform = classifier.model.train(), classifier.transform
    pictures = Pictures(settings, transform)
    loader = DataLoader(pictures, batch_size=settings.batch_size, shuffle=True, collate_fn=collate)
    accumulation = settings.gradient_accumulation
    updates = -(-len(loader) // accumulation) * settings.epochs
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0, fused=True)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, round(WARMUP_RATIO * updates), updates)
    for _ in range(settings.epochs):
        clocks.start()
        for number, batch in enumerate(loader, start=1):
            inputs = transform.normalize(batch["pixel_values"])
            with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
                logits = model(pixel_values=inputs).logits
            loss = torch.nn.functional.cross_entropy(logits.float(), batch["labels"]) / accumulation
            loss.backward()
            if number % accumulation == 0 or number == len(loader):
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        clocks.stop(len(pictures))


def main(way: str, settings: str, out: str) -> None:
    """Run one way and write its clocks."""
    torch.manual_seed(0)
    with open(settings, encoding="utf-8") as file:
        chosen = Settings(**json.load(file))
    clocks = Clocks()
    {"trainer": trainer, "loop": loop}[way](chosen, clocks)
    if os.environ.get("RANK", "0") != "0":
        return
    with open(out, "w", encoding="utf-8") as file:
        json.dump(clocks.rows, file)


if __name__ == "__main__":
    main(*sys.argv[1:4])
