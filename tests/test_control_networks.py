"""Members in stacked weights: each is what plain torch computes, alone or together; formulas by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.control.actors import Critic, Gaussian, Squashed, Task
from holdfast.control.networks import MLP, Draw
from holdfast.losses import control as losses
from holdfast.training import products


def plain(net: MLP, k: int) -> nn.Sequential:
    layers = []
    for i, (w, b) in enumerate(zip(net.weights, net.biases, strict=True)):
        layer = nn.Linear(w.shape[2], w.shape[1])
        layer.weight.data.copy_(w[k])
        layer.bias.data.copy_(b[k, 0])
        layers += [layer, nn.ReLU()] if i < len(net.weights) - 1 else [layer]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("least", [1, 1 << 40])  # by the quicker library where there is one, and by PyTorch alone
@pytest.mark.parametrize("shared", [False, True])
def test_forward_and_gradients_are_plain_torchs(monkeypatch, least, shared):
    monkeypatch.setattr(products, "LEAST", least)
    net = MLP((5, 16, 12, 3), (1, 2, 3, 4), "q")
    x = torch.randn(2 if shared else 4, 7, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.randn(4, 7, 3, generator=torch.Generator().manual_seed(1))
    out = net(x)
    (out * weight).sum().backward()
    got, x.grad = x.grad, None
    each = [plain(net, k) for k in range(4)]
    theirs = torch.stack([each[k](x[k // 2 if shared else k]) for k in range(4)])
    (theirs * weight).sum().backward()
    assert torch.allclose(out, theirs, atol=1e-6) and torch.allclose(got, x.grad, atol=1e-5)
    for k in range(4):
        for i, layer in enumerate(m for m in each[k] if isinstance(m, nn.Linear)):
            assert torch.allclose(net.weights[i].grad[k], layer.weight.grad, atol=1e-5)
            assert torch.allclose(net.biases[i].grad[k, 0], layer.bias.grad, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(net(x), out, atol=1e-6)


def test_frozen_weights_get_no_gradient_but_the_input_does():
    net, x = MLP((3, 8, 1), (0, 1), "q"), torch.ones(2, 4, 3, requires_grad=True)
    net(x, frozen=True).sum().backward()
    assert x.grad.abs().sum() > 0 and all(p.grad is None for p in net.parameters())


def test_of_two_inputs_the_gradient_is_the_firsts():
    net, draw = MLP((3, 8, 2), (0, 1), "q"), torch.Generator().manual_seed(0)
    x, constant = torch.randn(2, 4, 3, generator=draw), torch.randn(2, 4, 3, generator=draw)
    one, two = net.both(x, constant)
    assert torch.allclose(one, net(x), atol=1e-6) and torch.allclose(two, net(constant), atol=1e-6)
    assert not two.requires_grad
    (one**2).sum().backward()
    got = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    (net(x) ** 2).sum().backward()
    assert all(torch.allclose(g, p.grad, atol=1e-6) for g, p in zip(got, net.parameters(), strict=True))


def test_a_members_first_weights_are_its_seeds_alone():
    one, many = MLP((3, 8, 1), (7,), "q"), MLP((3, 8, 1), (5, 7), "q")
    assert all(
        torch.equal(a[0], b[1]) for a, b in zip(one.weights + one.biases, many.weights + many.biases, strict=True)
    )
    assert not torch.equal(many.weights[0][0], many.weights[0][1])
    assert not torch.equal(one.weights[0], MLP((3, 8, 1), (7,), "v").weights[0])
    bound = 3**-0.5
    assert one.weights[0].abs().max() <= bound and one.weights[0].abs().max() > 0.8 * bound
    critic = Critic(Task(3, 2, 0, (7,), (8,)), 2)
    assert not torch.equal(critic.net.weights[0][0], critic.net.weights[0][1])


def test_draws_are_pure_functions():
    a, b = Draw((1, 2), 5).normal("x", 3, 2), Draw((2,), 5).normal("x", 3, 2)
    assert torch.equal(a[1], b[0]) and not torch.equal(a[0], a[1])
    assert not torch.equal(b, Draw((2,), 6).normal("x", 3, 2)) and not torch.equal(b, Draw((2,), 5).normal("y", 3, 2))
    u = Draw((1,), 0).uniform("u", 1000)
    assert u.min() >= -1 and u.max() < 1 and abs(float(u.mean())) < 0.1


def test_a_target_follows_and_is_state():
    net = MLP((2, 4, 1), (0,), "q")
    twin = net.copy()
    assert not list(twin.parameters()) and set(twin.state_dict()) == set(net.state_dict())
    before = [t.clone() for t in twin.weights]
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)
    twin.follow(net, 0.25)
    assert all(torch.allclose(b + 0.25, t, atol=1e-6) for b, t in zip(before, twin.weights, strict=True))
    twin.follow(net, 1.0)
    assert all(torch.equal(n, t) for n, t in zip(net.weights, twin.weights, strict=True))


def test_densities_against_torch_distributions():
    task = Task(3, None, 2, (1, 2), (8,))
    obs = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    action = torch.rand(2, 5, 2, generator=torch.Generator().manual_seed(1)) * 1.8 - 0.9
    gaussian = Gaussian(task)
    theirs = torch.distributions.Normal(gaussian.mode(obs), gaussian.log_std.exp())
    assert torch.allclose(gaussian.log_prob(obs, action), theirs.log_prob(action).sum(-1), atol=1e-5)
    squashed = Squashed(task)
    mean, log_std = squashed._of(obs)
    theirs = torch.distributions.TransformedDistribution(
        torch.distributions.Normal(mean, log_std.exp()), [torch.distributions.TanhTransform()]
    )
    assert torch.allclose(squashed.log_prob(obs, action), theirs.log_prob(action).sum(-1), atol=1e-4)
    noise = Draw((1, 2), 0).normal("n", 4, 5, 2)
    drawn, log_density = squashed.draw(obs, noise)
    assert drawn.shape == (2, 4, 5, 2)
    assert torch.allclose(log_density[:, 1], squashed.log_prob(obs, drawn[:, 1]), atol=1e-3)


# Formulas by hand.


def test_targets_mask_on_terminated_alone():
    y = losses.td_target(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1.0]), torch.tensor([10.0, 10.0]), 0.9)
    assert y.tolist() == pytest.approx([10.0, 1.0])


def test_values_by_hand():
    q, target = torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([[5.0, 0.5, 9.0]])
    assert losses.double_q_value(q, target).tolist() == [0.5]
    gap = math.log(math.exp(1) + math.exp(3) + math.exp(2)) - 2
    assert losses.cql_gap(q, torch.tensor([2])).tolist() == pytest.approx([gap])
    sampled = losses.cql_gap_sampled(
        torch.tensor([[1.0, 2.0]]), torch.log(torch.tensor([[0.5, 0.25]])), torch.tensor([3.0])
    )
    assert sampled.tolist() == pytest.approx([math.log(math.e / 0.5 + math.e**2 / 0.25) - 3])
    assert losses.td_error(torch.tensor([0.0, 0.0]), torch.tensor([0.5, 3.0]), how="huber").tolist() == pytest.approx(
        [0.125, 2.5]
    )
    assert losses.td_error(torch.tensor([0.0]), torch.tensor([3.0])).tolist() == [9.0]
    assert losses.expectile(torch.tensor([2.0, -2.0]), 0.7).tolist() == pytest.approx([2.8, 1.2])
    assert losses.advantage_weight(torch.tensor([0.5, 10.0]), 2.0).tolist() == pytest.approx([math.e, 100.0])
    several = torch.tensor([[[1.0, 4.0]], [[3.0, 2.0]]])  # two critics, one row, two samples
    assert losses.bcq_value(several, 0.75).tolist() == pytest.approx([max(0.75 * 1 + 0.25 * 3, 0.75 * 2 + 0.25 * 4)])


def test_bcq_allows_by_ratio():
    log_probs = torch.log(torch.tensor([[0.6, 0.3, 0.1]]))
    assert losses.bcq_allowed(log_probs, 0.3).tolist() == [[True, True, False]]
    assert losses.bcq_allowed(log_probs, 0.0).all()
    assert losses.bcq_allowed(log_probs, 1.0).tolist() == [[True, False, False]]
    assert losses.masked(torch.tensor([[1.0, 2.0]]), torch.tensor([[True, False]])).tolist() == [[1.0, -math.inf]]


def test_segments_by_hand():
    x, mask = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    assert losses.discounted(x, mask, 0.5).tolist() == [2.0]
    assert losses.discounted(x, mask, torch.tensor([0.5])).tolist() == [2.0]
    one, two, p = torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([0.75])
    s = 1 / (1 + math.exp(-1))
    expected = -0.75 * math.log(s) - 0.25 * math.log(1 - s)
    assert losses.segment_bradley_terry(one, two, p).tolist() == pytest.approx([expected])
    assert losses.cpl(one, two, p, lam=1.0).tolist() == pytest.approx([expected])
    sure = losses.cpl(one, two, torch.ones(1), lam=0.5)
    assert sure.tolist() == pytest.approx([-math.log(1 / (1 + math.exp(-1.5)))])
    assert np.isfinite(losses.segment_bradley_terry(torch.tensor([1e4]), torch.tensor([-1e4]), torch.ones(1)).item())
