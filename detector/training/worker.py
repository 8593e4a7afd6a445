"""What every training process runs: transformers.Trainer on its share of each batch, from the last finished evaluation on.

How evaluations get to Ray, and why a killed worker loses none, is told in ``reporting.py``.
"""

import json
import os
import tempfile
from dataclasses import replace

import ray
import ray.train
import torch
import transformers

from detector.errors import JobError, UsageError
from detector.images.augmentation import TrainingAugmentation
from detector.models.backbones import Base, Classifier, find_base, load_base
from detector.training.attention import unfuse_attention
from detector.training.reporting import HISTORY_FILE, TRAINER_FOLDER, Reporter
from detector.training.samples import EpochSampler, PictureCache, TrainingPictures, ValidationPictures, class_weights, collate
from detector.training.task import Task
from detector.training.trainer import DetectorTrainer, DivergedError, evaluate_logits

_CPU_OUT_OF_MEMORY = "can't allocate memory"  # torch raises a bare RuntimeError where malloc fails


def train_worker(task: Task) -> None:
    """Train from the last committed evaluation, or from the start, to the end.

    Raises:
        JobError: it failed in a way that another attempt does not cure; the driver reads the reason from the board. It is
            raised all the same, since a worker that only returned would leave the others waiting for its gradients.
    """
    if task.board.fatal() is not None:
        return  # Ray Train starts the group again after any failure; this ends it at once
    try:
        _train(task)
    except Exception as error:
        reason = hopeless_reason(error, task)
        if reason is None:
            raise
        task.board.give_up(reason)
        raise JobError(reason) from error


def hopeless_reason(error: Exception, task: Task) -> str | None:
    """What to tell the user where another attempt would end the same way; None where it may help."""
    config = task.config
    if isinstance(error, (UsageError, JobError)):
        return str(error)
    if isinstance(error, DivergedError):
        return f"training diverged, its outputs are not numbers: try a --learning-rate below {config.learning_rate:g}"
    smaller = f"--batch-size {config.batch_size // 2} --gradient-accumulation {config.gradient_accumulation * 2}"
    if config.batch_size == 1:
        smaller = "a smaller --model, since --batch-size is 1 already"
    if isinstance(error, torch.OutOfMemoryError):
        return f"the GPU ran out of memory: try {smaller}"
    if isinstance(error, MemoryError) or _CPU_OUT_OF_MEMORY in str(error):
        return f"the machine ran out of memory: try {smaller}, fewer --workers or a smaller --cache-mb"
    return None


def _train(task: Task) -> None:
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if not task.use_gpu:
        torch.set_num_threads(1)  # training processes that each take all cores slow each other four times (measured)
    # With several GPUs in one process the Trainer would split batches among them, which --batch-size does not mean.
    if ray.train.get_context().get_world_size() == 1 and torch.cuda.device_count() <= 1:
        _leave_group()
    transformers.set_seed(task.config.seed)
    classifier = load_base(_base_here(task.base))
    with tempfile.TemporaryDirectory(prefix="training-") as scratch:
        trainer = build_trainer(task, classifier, scratch)
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            trainer.add_callback(Reporter(task, classifier, trainer, scratch, history=[]))
            trainer.train()
            return
        with checkpoint.as_directory() as folder:
            with open(os.path.join(folder, HISTORY_FILE), encoding="utf-8") as file:
                history = json.load(file)
            trainer.add_callback(Reporter(task, classifier, trainer, scratch, history=history))
            trainer.train(resume_from_checkpoint=os.path.join(folder, TRAINER_FOLDER))


def _leave_group() -> None:
    """Let the Trainer take a worker that is alone for a single process.

    Ray sets these for any number of workers, and with them one worker too would copy all gradients into buckets to add them up
    with nobody else's, in every step.
    """
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)


def _base_here(base: Base) -> Base:
    """The base as this node finds it: a hub id is in another node's cache only, so far."""
    if base.folder is None or os.path.isdir(base.folder):
        return base
    return replace(base, folder=find_base(base.name).folder)


def build_trainer(task: Task, classifier: Classifier, scratch: str) -> DetectorTrainer:
    """The Trainer of one worker; ``scratch`` is a folder of its own."""
    config, transform = task.config, classifier.transform
    augmentation = TrainingAugmentation(
        size=transform.input_size,
        resample=transform.resample,
        min_scale=config.crop_min_scale,
        robust=config.augment == "robust",
    )
    budget = config.cache_mb * 1_000_000 // max(1, config.loader_workers)  # each decoding process keeps its own
    at_least = transform.scaled_minimum if config.decode == "scaled" else None
    cache = PictureCache(budget_bytes=budget * 3 // 4, at_least=at_least)
    train = TrainingPictures(task.holdout.train, augmentation=augmentation, cache=cache, seed=config.seed)
    return DetectorTrainer(
        model=suited(classifier.model, on_cpu=not task.use_gpu, compiled=config.compile),
        args=_arguments(task, len(train), scratch),
        train_dataset=train,
        eval_dataset=ValidationPictures(
            task.holdout.validation, transform=transform, budget_bytes=budget // 4, at_least=at_least
        ),
        data_collator=collate,
        compute_metrics=evaluate_logits,
        transform=transform,
        sampler=EpochSampler(train.labels, seed=config.seed, balanced=config.class_balance == "sampler"),
        loss_weights=class_weights(train.labels) if config.class_balance == "weights" else None,
    )


def suited(model: torch.nn.Module, *, on_cpu: bool, compiled: bool) -> torch.nn.Module:
    """The same model, computed in the way that trains fastest."""
    if on_cpu and not compiled:
        unfuse_attention(model)
    return channels_last(model)


def channels_last(model: torch.nn.Module) -> torch.nn.Module:
    """Lay out a convolutional net's weights with the channels last. A transformer, whose one convolution cuts patches, stays.

    Measured on one CPU thread in fp32, training steps: MobileNetV2 × 1.7, EfficientNetV2B0 × 1.6, MobileNetV3Large × 1.4,
    ResNet50 × 1.1.
    """
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in model.modules())
    return model.to(memory_format=torch.channels_last) if convolutions > 1 else model


def _arguments(task: Task, num_train: int, scratch: str) -> transformers.TrainingArguments:
    config = task.config
    world = int(os.environ.get("WORLD_SIZE", "1"))
    updates = -(-num_train // (config.batch_size * world * config.gradient_accumulation)) * config.epochs
    return transformers.TrainingArguments(
        output_dir=scratch,
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        warmup_steps=round(config.warmup_ratio * updates),
        lr_scheduler_type="linear",
        optim="adamw_torch_fused",
        bf16=task.precision == "bf16",
        fp16=task.precision == "fp16",
        torch_compile=config.compile,
        use_cpu=not task.use_gpu,
        ddp_backend=("nccl" if task.use_gpu else "gloo") if world > 1 else None,
        ddp_find_unused_parameters=False,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="steps",
        logging_steps=max(1, updates // (config.epochs * 20)),
        logging_nan_inf_filter=False,  # a loss that is no number must be seen; and the filter waits for the GPU in every step
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=config.loader_workers,
        dataloader_persistent_workers=config.loader_workers > 0,
        dataloader_pin_memory=task.use_gpu,
        seed=config.seed,
        disable_tqdm=True,
        report_to=[],
    )
