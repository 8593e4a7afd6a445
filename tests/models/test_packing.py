"""Packed linear layers compute what plain ones do, to the bit, and are used where a CPU scores in bf16."""

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from detector.models import devices, packing
from detector.models.checkpoint import inspect_checkpoint
from detector.models.devices import resolve_settings
from detector.models.packing import PackedLinear, pack_linear_layers
from detector.models.predictor import Predictor
from tests.checkpoints import save_swin

BF16 = {"avx512_bf16", "amx_bf16"}  # asked of the processor: packing that is gone by mistake must not skip its own tests
needs_bf16 = pytest.mark.skipif(not BF16 & devices._cpu_flags(), reason="this CPU does not multiply bf16")


@pytest.fixture(autouse=True)
def same_weights_every_time():
    torch.manual_seed(20261122)  # of the layers; inputs have generators of their own


def bits(tensor):
    return tensor.contiguous().view(torch.int16)


@needs_bf16
def test_packed_layers_have_the_bits_of_plain_ones_at_many_shapes():
    seed = 20261122
    print(f"seed {seed}")
    generator = torch.Generator().manual_seed(seed)
    for index in range(60):
        rows, out, inside = (int(torch.randint(1, top, (1,), generator=generator)) for top in (3000, 900, 900))
        layer = nn.Linear(inside, out, bias=index % 2 == 0).bfloat16()
        x = torch.randn(2, rows, inside, generator=generator).bfloat16()
        with torch.inference_mode():
            assert torch.equal(bits(PackedLinear(layer)(x)), bits(layer(x))), (rows, out, inside)


@needs_bf16
@pytest.mark.parametrize(("rows", "inside", "out"), [(16, 768, 2), (784, 3072, 768), (784, 768, 3072), (12544, 96, 288)])
def test_packed_layers_have_the_bits_of_plain_ones_at_a_swins_shapes(rows, inside, out):
    layer = nn.Linear(inside, out).bfloat16()
    x = torch.randn(rows, inside, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.inference_mode():
        assert torch.equal(bits(PackedLinear(layer)(x)), bits(layer(x)))


@needs_bf16
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(40, 64, 96), (3, 5, 64, 96)])
def test_packed_layers_have_the_bits_of_plain_ones_on_strided_inputs(shape, bias):
    layer = nn.Linear(shape[-1], 80, bias=bias).bfloat16()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2)).bfloat16()
    for strided in (x.transpose(0, 1), x[..., :1, :].squeeze(-2), x[:, ::2], x.transpose(0, 1).contiguous().transpose(0, 1)):
        with torch.inference_mode():
            assert torch.equal(bits(PackedLinear(layer)(strided)), bits(layer(strided))), strided.stride()


@needs_bf16
def test_a_swin_has_the_same_scores_with_and_without(tmp_path, monkeypatch):
    folder = save_swin(tmp_path / "model", seed=5, spread=3.0)
    checkpoint = inspect_checkpoint(folder)
    settings = resolve_settings(kind="cpu", batch_size=8, precision="bf16")
    pictures = np.random.default_rng(5).integers(0, 256, (21, 3, *checkpoint.transform.input_size), dtype=np.uint8)
    packed = Predictor.load(checkpoint, settings)
    assert any(isinstance(module, PackedLinear) for module in packed._model.modules()), "nothing was packed"
    assert not any(type(module) is nn.Linear for module in packed._model.modules())
    monkeypatch.setattr(packing, "_is_supported", lambda: False)
    plain = Predictor.load(checkpoint, settings)
    assert not any(isinstance(module, PackedLinear) for module in plain._model.modules())
    p_ai = packed.predict_all(pictures)
    assert p_ai.std() > 0
    assert (p_ai == plain.predict_all(pictures)).all()


def test_fp32_layers_stay(tmp_path):
    checkpoint = inspect_checkpoint(save_swin(tmp_path / "model"))
    predictor = Predictor.load(checkpoint, resolve_settings(kind="cpu", batch_size=2, precision="fp32"))
    assert not any(isinstance(module, PackedLinear) for module in predictor._model.modules())


@needs_bf16
def test_only_plain_layers_are_replaced_and_a_shared_one_stays_shared():
    class Own(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    shared, hooked = nn.Linear(4, 4), nn.Linear(4, 4)
    hooked.register_forward_hook(lambda module, inputs, output: output + 1)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.ReLU()), "own": Own(4, 4), "hooked": hooked}).bfloat16()
    model["mixed"] = nn.Linear(4, 4)  # float32
    kept = {name: model[name] for name in ("own", "hooked", "mixed")}
    assert pack_linear_layers(model) == 1
    assert isinstance(model["a"], PackedLinear)
    assert model["b"][0] is model["a"]
    twice = nn.Sequential(nn.Linear(4, 4)).bfloat16()
    assert pack_linear_layers(nn.ModuleList([twice, twice])) == 1
    assert all(model[name] is layer for name, layer in kept.items())


@needs_bf16
def test_the_plain_weights_are_let_go_one_by_one_but_can_be_looked_at(monkeypatch):
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 32)).bfloat16()
    state = torch.get_rng_state()
    expected, first, seen = model[0].weight.detach().clone(), weakref.ref(model[0]), []

    class Watched(PackedLinear):
        def __init__(self, layer):
            seen.append(first() is None)
            super().__init__(layer)

    monkeypatch.setattr(packing, "PackedLinear", Watched)
    assert pack_linear_layers(model) == 2
    gc.collect()
    assert seen[-2:] == [False, True], "all weights would lie in memory twice for a while"
    assert first() is None
    assert torch.equal(torch.get_rng_state(), state), "random numbers were drawn: seeded work after it would differ"
    assert torch.equal(model[0].weight, expected)
    assert model[0].weight.shape == (32, 64)


@needs_bf16
def test_an_input_that_is_not_bf16_is_refused():
    with pytest.raises(RuntimeError):
        PackedLinear(nn.Linear(8, 8).bfloat16())(torch.randn(2, 8))


@needs_bf16
@pytest.mark.parametrize("missing", range(len(packing._OPERATORS)))
def test_a_torch_without_one_of_the_operators_scores_with_plain_layers(monkeypatch, missing):
    names = list(packing._OPERATORS)
    names[missing] += "_of_another_version"
    monkeypatch.setattr(packing, "_OPERATORS", tuple(names))
    model = nn.Sequential(nn.Linear(4, 4)).bfloat16()
    assert pack_linear_layers(model) == 0
    assert type(model[0]) is nn.Linear


@needs_bf16
def test_layers_stay_plain_on_arm(monkeypatch):
    monkeypatch.setattr(packing.platform, "machine", lambda: "aarch64")
    assert pack_linear_layers(nn.Sequential(nn.Linear(4, 4)).bfloat16()) == 0


@needs_bf16
@pytest.mark.parametrize("failure", ["raises", "differs"])
def test_where_the_operators_refuse_or_differ_layers_stay_plain(monkeypatch, failure):
    class Unfit(PackedLinear):
        def forward(self, x):
            if failure == "raises":
                raise RuntimeError("could not create a primitive descriptor")
            return super().forward(x) * 1.01

    monkeypatch.setattr(packing, "PackedLinear", Unfit)
    model = nn.Sequential(nn.Linear(4, 4)).bfloat16()
    assert pack_linear_layers(model) == 0
    assert type(model[0]) is nn.Linear
