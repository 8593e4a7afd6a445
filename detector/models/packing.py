"""Linear layers whose bf16 weights lie as the CPU's matrix kernels read them, arranged once instead of in every batch.

The sums are the same, by another of oneDNN's primitives, and so are the bits (``tests/models/test_packing.py``; measured on
AVX-512 bf16, torch 2.14, for layers of more than 4,096 products: below, torch takes another way). A Swin-tiny's forward pass
takes 0.95 of its CPU time. The operators are those that ``torch.compile`` turns a frozen linear layer into, here without the
minute that compiling takes; they belong to torch's inside, so where one is missing, refuses or differs the layers stay plain.
"""

import platform
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

_MACHINES = ("x86_64", "AMD64")
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
        multiply = getattr(torch.ops.mkldnn, _MULTIPLY)
        if self.bias is not None and x.dim() > 2 and not x.is_contiguous():  # here torch adds the bias after rounding
            return multiply(x, self._packed, None, "none", [], "").add_(self.bias)
        return multiply(x, self._packed, self.bias, "none", [], "")


def pack_linear_layers(model: nn.Module) -> int:
    """Replace, in place, every plain bf16 ``nn.Linear`` of a model that will only be evaluated on the CPU.

    Subclasses and layers with hooks stay as they are: their calls may mean more than the multiplication.

    Returns:
        The number of layers replaced; 0 where torch or the processor cannot do it.
    """
    names = [name for name, layer in model.named_modules(remove_duplicate=False) if name and _is_plain(layer)]
    if not names or not _is_supported():
        return 0
    # A layer used in two places stays one; one that is used no more goes at once, or all weights would lie in memory twice.
    packed: WeakKeyDictionary[nn.Module, PackedLinear] = WeakKeyDictionary()
    for name in names:
        layer: Any = model.get_submodule(name)
        if isinstance(layer, PackedLinear):  # the same parent under another name
            continue
        if layer not in packed:
            packed[layer] = PackedLinear(layer)
        model.set_submodule(name, packed[layer])
    return len({id(model.get_submodule(name)) for name in names})


def _is_plain(layer: nn.Module) -> bool:
    if type(layer) is not nn.Linear or layer.weight.dtype != torch.bfloat16:
        return False
    return not (layer._forward_hooks or layer._forward_pre_hooks)  # noqa: SLF001  torch has no public way to ask


def _is_supported() -> bool:
    """Whether torch has the operators, oneDNN takes bf16 here, and a trial layer has the bits of a plain one.

    Not on ARM, where some versions of torch fall back to a kernel a hundred times slower (pytorch/pytorch#180447).
    """
    operators = torch.ops.mkldnn
    if platform.machine() not in _MACHINES or not torch.backends.mkldnn.is_available():
        return False
    if not all(hasattr(operators, name) for name in _OPERATORS):
        return False
    try:
        return bool(getattr(operators, _SUPPORTED)()) and _trial()
    except RuntimeError:
        return False


@torch.inference_mode()
def _trial() -> bool:
    """A layer large enough for the kernels that real ones take; it draws no random numbers, which would be missed elsewhere."""
    layer = nn.utils.skip_init(nn.Linear, 1100, 80, dtype=torch.bfloat16)
    for parameter in layer.parameters():
        parameter.copy_(torch.arange(parameter.numel()).sin().view(parameter.shape))
    x = torch.arange(64 * 1100).cos().view(64, 1100).to(torch.bfloat16)
    return torch.equal(PackedLinear(layer)(x), layer(x))
