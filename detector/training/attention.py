"""How a Swin computes its attention while it trains on a CPU: in plain steps, and fused again for its evaluations."""

import contextlib
from collections.abc import Iterator

import torch

_FUSED, _PLAIN = "sdpa", "eager"


def unfuse_attention(model: torch.nn.Module) -> None:
    """Have transformers' Swin compute its attention in plain steps; any other model stays as it is.

    Torch's fused attention has no gradient for a learned position bias on a CPU: it takes plain steps itself, and looks through
    every row of scores for one that is all masked. Without that look a training step of Swin-tiny takes 0.977 of the CPU time
    (median of 15 pairs, one thread, fp32). Outputs differ by rounding. timm's Swin is not fused to begin with.
    """
    if _attention_of(model) == _FUSED:
        model.set_attn_implementation(_PLAIN)  # type: ignore[operator]


@contextlib.contextmanager
def fused_attention(model: torch.nn.Module) -> Iterator[None]:
    """Undo :func:`unfuse_attention` while no gradients are wanted, so that an evaluation computes what scoring computes."""
    if _attention_of(model) != _PLAIN:
        yield
        return
    model.set_attn_implementation(_FUSED)  # type: ignore[operator]
    try:
        yield
    finally:
        model.set_attn_implementation(_PLAIN)  # type: ignore[operator]


def _attention_of(model: torch.nn.Module) -> str | None:
    """A Swin's attention by transformers' name; None for every other model."""
    config = getattr(model, "config", None)
    return getattr(config, "_attn_implementation", None) if getattr(config, "model_type", None) == "swin" else None
