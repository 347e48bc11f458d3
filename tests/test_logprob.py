from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from holdfast.language import logprob
from holdfast.language.logprob import Head, chunk_tokens, kl_from, token_kl, token_logps, token_squares

HEADS = {
    "plain": dict(),
    "bias": dict(bias=True),
    "scale": dict(scale=0.3),
    "softcap": dict(softcap=1.7),
    "all": dict(bias=True, scale=2.5, softcap=3.0),
}


def _make(n=7, hidden=5, vocabulary=11, dtype=torch.float64, bias=False, scale=1.0, softcap=None):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    target = torch.randint(vocabulary, (n,), generator=generator)
    return draw(n, hidden), Head(draw(vocabulary, hidden), draw(vocabulary) if bias else None, scale, softcap), target


def test_by_hand():
    # logits (0, ln 3): p = 1/4, 3/4
    head = Head(torch.tensor([[0.0], [math.log(3)]]))
    got = token_logps(torch.ones(2, 1), head, torch.tensor([0, 1]))
    torch.testing.assert_close(got, torch.log(torch.tensor([0.25, 0.75])))
    # scale 2: p = 1/10, 9/10; softcap 1 on ln 3: tanh(ln 3) = 0.8, p = e^0.8 / (1 + e^0.8)
    got = token_logps(torch.ones(1, 1), Head(head.weight, scale=2.0), torch.tensor([1]))
    torch.testing.assert_close(got, torch.log(torch.tensor([0.9])))
    got = token_logps(torch.ones(1, 1), Head(head.weight, softcap=1.0), torch.tensor([1]))
    torch.testing.assert_close(got, torch.tensor([0.8 - math.log1p(math.exp(0.8))]))


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("chunk", [3, 100])
def test_a_head_that_is_not_trained_has_its_gradient_made_in_the_forward(kind, chunk):
    hidden, head, target = _make(**HEADS[kind])
    still = Head(head.weight.detach(), head.bias.detach() if head.bias is not None else None, head.scale, head.softcap)
    assert torch.autograd.gradcheck(lambda h: token_logps(h, still, target, chunk), [hidden])
    up = torch.linspace(-1, 2, len(target), dtype=torch.float64)
    (trained,) = torch.autograd.grad(token_logps(hidden, head, target, chunk), [hidden], up)
    logp = token_logps(hidden, still, target, chunk)
    made: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made.append(str(function))
            return function(*args, **(kwargs or {}))

    with Watch():
        (got,) = torch.autograd.grad(logp, [hidden], up)
    torch.testing.assert_close(got, trained, atol=1e-12, rtol=0)
    assert made and not any("mm" in name or "linear" in name for name in made)  # no second pass


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("chunk", [3, 100])
def test_kept_probabilities_give_the_same_without_a_second_pass(kind, chunk):
    hidden, head, target = _make(**HEADS[kind])
    inputs = [hidden, head.weight, *([head.bias] if head.bias is not None else [])]
    up = torch.linspace(-1, 2, len(target), dtype=torch.float64)
    plain, kept = (token_logps(hidden, head, target, chunk, keep) for keep in (False, True))
    torch.testing.assert_close(kept, plain, atol=0, rtol=0)
    expected = torch.autograd.grad(plain, inputs, up)
    products: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            products.append(str(function))
            return function(*args, **(kwargs or {}))

    with Watch():
        got = torch.autograd.grad(kept, inputs, up)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
    chunks = -(-len(target) // chunk)
    mm = sum("aten.mm" in name or "addmm" in name for name in products)
    assert mm == (3 if head.bias is not None else 2) * chunks  # for hidden, weight and bias; none for the logits


@pytest.mark.parametrize("kind", HEADS)
def test_a_direct_head_adds_to_its_parameters_gradient(kind):
    """Over two backwards, as over two micro-batches; other parameters' gradients come as ever."""
    found = []
    for direct in (False, True):
        hidden, head, target = _make(**HEADS[kind])
        for part in (slice(0, 3), slice(3, None)):
            up = torch.linspace(-1, 2, len(target), dtype=torch.float64)[part]
            (token_logps(hidden[part], replace(head, direct=direct), target[part], 2) * up).sum().backward()
        found.append([hidden.grad, head.weight.grad, *([head.bias.grad] if head.bias is not None else [])])
    for got, expected in zip(*reversed(found), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


def test_the_gradient_of_a_large_vocabulary_is_made_block_by_block(monkeypatch):
    hidden, head, target = _make(vocabulary=23)
    (whole,) = torch.autograd.grad(token_logps(hidden, head, target).sum(), [head.weight])
    monkeypatch.setattr(logprob, "BLOCK_TOKENS", 5)
    (blocks,) = torch.autograd.grad(token_logps(hidden, head, target).sum(), [head.weight])
    torch.testing.assert_close(blocks, whole, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("keep", [False, True])
def test_filled_up_tokens_change_nothing(kind, keep, monkeypatch):
    hidden, head, target = _make(**HEADS[kind])
    inputs = [hidden, head.weight, *([head.bias] if head.bias is not None else [])]
    up = torch.linspace(-1, 2, len(target), dtype=torch.float64)
    found = []
    for even in (1, 4):
        monkeypatch.setattr(logprob, "even", lambda x, even=even: even)
        logp = token_logps(hidden, head, target, 3, keep)
        found.append([logp, *torch.autograd.grad(logp, inputs, up)])
    for got, expected in zip(*reversed(found), strict=True):
        assert got.shape == expected.shape
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_value_and_gradient_in_float64(kind, chunk):
    hidden, head, target = _make(**HEADS[kind])
    inputs = [hidden, head.weight, *([head.bias] if head.bias is not None else [])]

    def ours(hidden, weight, bias=None):
        return token_logps(hidden, Head(weight, bias, head.scale, head.softcap), target, chunk)

    def plain(hidden, weight, bias=None):
        z = hidden @ weight.T + (0 if bias is None else bias)
        z = z * head.scale
        if head.softcap is not None:
            z = head.softcap * torch.tanh(z / head.softcap)
        return torch.log_softmax(z, -1)[torch.arange(len(target)), target]

    assert torch.autograd.gradcheck(ours, inputs)  # finite differences
    torch.testing.assert_close(ours(*inputs), plain(*inputs), atol=1e-12, rtol=0)
    upstream = torch.linspace(-1, 2, len(target), dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(ours(*inputs), inputs, upstream),
        torch.autograd.grad(plain(*inputs), inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)


def test_low_precision_adds_up_in_fp32():
    """bf16 hidden and weights: the log-sum-exp over 50,000 words, and a gradient over many chunks, keep fp32's sums."""
    hidden, head, target = _make(n=64, hidden=8, vocabulary=50_000, dtype=torch.bfloat16)
    got = token_logps(hidden, head, target, chunk=4)
    assert got.dtype == torch.float32
    wide = [hidden.detach().double().requires_grad_(), head.weight.detach().double().requires_grad_()]
    # the logits themselves come out of a bf16 product
    logits = (hidden.detach() @ head.weight.detach().T).double()
    expected = logits.log_softmax(-1)[torch.arange(64), target]
    torch.testing.assert_close(got.double(), expected, atol=1e-4, rtol=0)
    reference = (wide[0] @ wide[1].T).log_softmax(-1)[torch.arange(64), target]
    for a, b in zip(
        torch.autograd.grad(got.sum(), [hidden, head.weight]), torch.autograd.grad(reference.sum(), wide), strict=True
    ):
        assert a.dtype == torch.bfloat16
        assert (a.double() - b).norm() <= 2e-2 * b.norm()


def test_frozen_weights_get_no_gradient_and_cost_none():
    hidden, head, target = _make(bias=True)
    frozen = Head(head.weight.detach(), head.bias.detach())
    (gradient,) = torch.autograd.grad(token_logps(hidden, frozen, target).sum(), [hidden])
    (expected,) = torch.autograd.grad(token_logps(hidden, head, target).sum(), [hidden])
    torch.testing.assert_close(gradient, expected)
    with torch.no_grad():
        assert not token_logps(hidden, head, target).requires_grad


class _Largest(TorchDispatchMode):
    """The most numbers in any tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


@pytest.mark.parametrize("kind", HEADS)
def test_no_tensor_larger_than_a_chunk_of_logits(kind):
    n, hidden_size, vocabulary, chunk = 200, 4, 1000, 10
    hidden, head, target = _make(n, hidden_size, vocabulary, torch.float32, **HEADS[kind])
    with _Largest() as watch:
        token_logps(hidden, head, target, chunk).sum().backward()
    assert watch.largest == chunk * vocabulary
    with _Largest() as watch:  # the watch does see a full tensor of logits
        torch.nn.functional.linear(hidden, head.weight).log_softmax(-1)
    assert watch.largest == n * vocabulary
    with torch.no_grad(), _Largest() as watch:
        logits = lambda part: head.logits(hidden[part])  # noqa: E731
        token_kl(logits, logits, n, chunk)
    assert watch.largest == chunk * vocabulary


def test_default_chunk():
    assert chunk_tokens(49152) == 256
    assert chunk_tokens(1000) == (1 << 21) // 1000


def test_kl_by_hand_and_against_torch():
    p, q = torch.tensor([[0.25, 0.75]]), torch.tensor([[0.5, 0.5]])
    got = token_kl(lambda part: p.log()[part], lambda part: q.log()[part], 1, 4)
    torch.testing.assert_close(got, torch.tensor([0.25 * math.log(0.5) + 0.75 * math.log(1.5)]))
    a, b = torch.randn(9, 6, dtype=torch.float64), torch.randn(9, 6, dtype=torch.float64)
    expected = torch.nn.functional.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="none")
    torch.testing.assert_close(token_kl(lambda s: a[s], lambda s: b[s], 9, 2), expected.sum(-1))


def test_log_sum_of_squares_by_hand():
    p = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    got = token_squares(lambda part: p.log()[part] + 3.0, 2, 1)
    torch.testing.assert_close(got, torch.tensor([0.0625 + 0.5625, 0.5]).log())


@pytest.mark.parametrize("kind", HEADS)
def test_kl_from_a_reference_has_torchs_value_and_gradient(kind):
    """Against autograd through full logits, in float64, with every kind of head; and nothing larger than a chunk."""
    hidden, head, _ = _make(23, 5, 11, torch.float64, **HEADS[kind])
    theirs = torch.randn(23, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    leaves = [t for t in (hidden, head.weight, head.bias) if t is not None]
    some = torch.linspace(-1, 2, 23, dtype=torch.float64)
    got = kl_from(lambda part: theirs[part], hidden, head, 4)
    grads = torch.autograd.grad((got * some).sum(), leaves)
    logq = theirs.log_softmax(-1)
    expected = (logq.exp() * (logq - head.logits(hidden).log_softmax(-1))).sum(-1)
    torch.testing.assert_close(got, expected)
    for mine, own in zip(grads, torch.autograd.grad((expected * some).sum(), leaves), strict=True):
        torch.testing.assert_close(mine, own)


def test_kl_from_makes_no_tensor_larger_than_a_chunk_of_logits():
    hidden, head, _ = _make(200, 4, 1000, torch.float32)
    with _Largest() as watch:
        kl_from(lambda part: head.logits(hidden.detach()[part]).detach() / 2, hidden, head, 10).sum().backward()
    assert watch.largest == 10 * 1000
