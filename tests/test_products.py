"""Matrix products: against float64, whichever library computes them; same bytes twice; models are as they were when saved."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import tiny_models
from holdfast.language.packing import pack, pad
from holdfast.language.policy import Policy
from holdfast.training import products

SHAPES = [(300, 96, 700), (2000, 64, 80), (70, 600, 3000)]  # rows, inputs, outputs: above products.LEAST


@pytest.fixture
def quick(monkeypatch):
    if products._onednn() is None:
        pytest.skip(
            "PyTorch's own product is the quickest here (an Intel processor, or no AVX-512): there is no other to test"
        )
    monkeypatch.setattr(products, "LEAST", 1)


def _draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows, inputs, outputs", SHAPES)
@pytest.mark.parametrize("a_turned", [False, True])
@pytest.mark.parametrize("b_turned", [False, True])
def test_a_product_of_any_strides(rows, inputs, outputs, a_turned, b_turned):
    a = _draw(inputs, rows).T if a_turned else _draw(rows, inputs)
    b = _draw(inputs, outputs, seed=1).T if b_turned else _draw(outputs, inputs, seed=1)
    exact = a.double() @ b.double().T
    got = products.product(a, b)
    assert got.shape == (rows, outputs) and got.is_contiguous()
    # float32 rounds each of the terms and sums to 2^-24 of the terms' size
    assert (got - exact).abs().max() < 2**-24 * 4 * inputs**0.5 * exact.abs().max()
    assert torch.equal(got, products.product(a, b))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows, inputs, outputs", SHAPES)
def test_linear_and_its_gradients(rows, inputs, outputs, bias):
    x, w, up = _draw(2, rows // 2, inputs), _draw(outputs, inputs, seed=1), _draw(2, rows // 2, outputs, seed=2)
    b = _draw(outputs, seed=3) if bias else None
    found = []
    for to, function in ((torch.float32, products.linear), (torch.float64, nn.functional.linear)):
        leaves = [t.to(to).requires_grad_() for t in (x, w, b) if t is not None]
        out = function(*leaves)
        found.append([out.detach(), *torch.autograd.grad(out, leaves, up.to(to))])
    for mine, exact in zip(*found, strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()))


def test_other_types_and_small_ones_are_pytorchs_own(monkeypatch):
    def never(*_):
        raise AssertionError("asked for a product that it should not compute")

    monkeypatch.setattr(products, "_onednn", lambda: never)
    x, w = _draw(2000, 80), _draw(90, 80, seed=1)
    for dtype in (torch.float64, torch.bfloat16):
        assert torch.equal(products.linear(x.to(dtype), w.to(dtype)), nn.functional.linear(x.to(dtype), w.to(dtype)))
    assert torch.equal(products.linear(x[:3], w), nn.functional.linear(x[:3], w))
    with pytest.raises(AssertionError):
        products.linear(x, w)


def test_a_quickened_model_packs_as_it_pads_and_is_saved_as_it_was(quick, tmp_path):
    some = tiny_models.tokens(([3, 5, 7, 2, 6], [4, 8, 1]), ([5, 9, 3], [7, 2, 2, 8], [6], [1, 1]))
    groups = [(0, [0, 1]), (1, [2, 3])]
    model = tiny_models.model("llama")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    kinds = {type(m) for m in model.modules() if isinstance(m, nn.Linear)}
    assert kinds == {nn.Linear}
    plain = Policy(model, "padded")
    assert {type(m) for m in model.modules() if isinstance(m, nn.Linear)} == {products.Linear}
    padded = plain.logps(pad(some, groups)).token_N
    padded.sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    packed = Policy(model, "packed").logps(pack(some, groups)).token_N
    packed.sum().backward()
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in saved.items())
