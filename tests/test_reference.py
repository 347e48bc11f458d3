"""References: a live one is another model, to the float, without a copy; a moving one follows by the paper's rule; each kind where it can be."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import tiny_models as tiny
from holdfast.data.ragged import Ragged
from holdfast.errors import IntegrityError, RecipeError
from holdfast.language.policy import Policy
from holdfast.language.reference import Cached, Live, Moving, choose, frozen, token_logps, with_weights
from holdfast.recipe import ReferenceTable, load_recipe

TOKENS = tiny.random_tokens(0, [4, 6], [3, 5, 2, 4])
GROUPS = [(0, [0, 1]), (1, [2, 3])]


def policy_of(family="llama", compute="packed", seed=0):
    torch.set_num_threads(1)
    model = tiny.model(family, seed).train()
    return Policy(model, compute)


# --- TR-DPO, by hand


class Two(nn.Module):
    """Two parameters, and nothing to do with language."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor([float(a)])), nn.Parameter(torch.tensor([float(b)]))

    def set(self, a, b):
        with torch.no_grad():
            self.a.fill_(a)
            self.b.fill_(b)


def followed(moving):
    return [float(t) for t in moving.state().values()]


def test_soft_updates_by_hand():
    model = Two(1, 2)
    moving = Moving(SimpleNamespace(model=model), "", alpha=0.25, tau=2)
    assert followed(moving) == [1, 2]
    model.set(9, 9)
    assert moving.after_step(1) == {} and followed(moving) == [1, 2]
    model.set(3, 6)
    said = moving.after_step(2)
    assert followed(moving) == [1.5, 3.0]  # 3/4 of (1, 2) and 1/4 of (3, 6)
    assert set(said) == {"reference"} and len(said["reference"]) == 64
    model.set(100, 100)
    assert moving.after_step(3) == {}
    model.set(5, -1)
    moving.after_step(4)
    assert followed(moving) == [2.375, 2.0]  # 3/4 of (1.5, 3) and 1/4 of (5, -1)
    assert model.a.item() == 5  # the policy is left alone


def test_hard_updates_by_hand():
    model = Two(1, 2)
    moving = Moving(SimpleNamespace(model=model), "", alpha=1.0, tau=3)
    for step, (a, b) in enumerate([(3, 4), (5, 6), (7, 8), (9, 10), (11, 12)], 1):
        model.set(a, b)
        moving.after_step(step)
    assert followed(moving) == [7, 8]  # as the policy was after step 3


def test_a_moving_reference_goes_on_from_its_state():
    model = Two(1, 2)
    whole = Moving(SimpleNamespace(model=model), "", alpha=0.5, tau=1)
    model.set(3, 3)
    whole.after_step(1)
    kept = {name: tensor.clone() for name, tensor in whole.state().items()}
    assert set(kept) == {"reference/a", "reference/b"}
    again = Two(1, 2)
    resumed = Moving(SimpleNamespace(model=again), "", alpha=0.5, tau=1)
    resumed.load_state(kept)
    model.set(8, 0)
    again.set(8, 0)
    assert whole.after_step(2) == resumed.after_step(2)
    assert followed(whole) == followed(resumed) == [5.0, 1.25]


def test_a_slow_reference_of_a_bfloat16_policy_does_not_stand_still():
    model = Two(1, 1).bfloat16()
    moving = Moving(SimpleNamespace(model=model), "", alpha=1e-3, tau=1)
    with torch.no_grad():
        model.a.fill_(2)
    for step in range(1, 101):  # each update is less than half of bfloat16's last place at 1
        moving.after_step(step)
    assert float(moving.state()["reference/a"]) == pytest.approx(2 - 0.999**100, rel=1e-5)
    assert moving.state()["reference/a"].dtype == torch.float32


# --- live references


@pytest.mark.parametrize("compute", ["packed", "padded"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])  # gpt2: head and embedding are one tensor
def test_other_weights_are_another_model_without_a_copy(family, compute):
    policy, other = policy_of(family, compute), tiny.model(family, 7).eval()
    batch = policy.batch(TOKENS, GROUPS)
    parameters = dict(policy.model.named_parameters())
    values = [dict(other.named_parameters())[name].detach() for name in parameters]
    reference = Live(with_weights(policy, list(parameters.values()), values), "w")

    torch.testing.assert_close(
        reference.logps(batch).token_N, Policy(other, compute).logps(batch).token_N.detach(), atol=1e-6, rtol=0
    )
    # In between a forward and its backward, nothing of the policy changes.
    alone = policy_of(family, compute)
    alone.logps(batch).sum_R.sum().backward()
    out = policy.logps(batch)
    assert not reference.logps(batch).token_N.requires_grad
    out.sum_R.sum().backward()
    for (name, p), q in zip(policy.model.named_parameters(), alone.model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=0, rtol=0, msg=name)
    # The whole distribution, in both directions.
    torch.testing.assert_close(
        policy.token_kl(batch, reference.policy), policy.token_kl(batch, Policy(other, compute)), atol=1e-6, rtol=1e-5
    )
    assert policy.model.training


def test_frozen_stays_and_moving_follows_while_the_policy_trains():
    policy = policy_of()
    still, moving = frozen(policy), Moving(policy, "w", alpha=0.5, tau=1)
    start = copy.deepcopy(policy.model).eval()
    with torch.no_grad():
        for p in policy.model.parameters():
            p.add_(0.01)
    batch = policy.batch(TOKENS, GROUPS)
    wanted = Policy(start, "packed").logps(batch).token_N.detach()
    with torch.no_grad():
        torch.testing.assert_close(still.logps(batch).token_N, wanted, atol=0, rtol=0)
        moving.after_step(1)
        for p in start.parameters():
            p.add_(0.005)
    torch.testing.assert_close(
        moving.logps(batch).token_N, Policy(start, "packed").logps(batch).token_N.detach(), atol=2e-5, rtol=0
    )
    assert [p.requires_grad for p in policy.model.parameters()] == [True] * len(list(policy.model.parameters()))


def test_cached_and_live_say_the_same():
    policy = policy_of()
    token = token_logps(policy, TOKENS, GROUPS)
    batch = policy.batch(TOKENS, [(1, [3, 2]), (0, [1])])
    cached, live = Cached(token, "", "").logps(batch), Live(policy, "").logps(batch)
    torch.testing.assert_close(cached.token_N, live.token_N, atol=2e-6, rtol=0)
    torch.testing.assert_close(cached.sum_R, live.sum_R, atol=2e-6, rtol=1e-6)
    assert torch.equal(cached.length_R, live.length_R)
    short = Cached(Ragged.of([np.zeros(n, np.float32) for n in (3, 5, 2, 0)]), "", "")
    with pytest.raises(IntegrityError, match="not computed for these responses"):
        short.logps(batch)


# --- which kind


def test_the_loss_decides_where_the_recipe_does_not():
    assert choose(None, "simpo", ratio=False, distribution=False, adapter=False) == "none"
    assert choose(None, "dpo", ratio=True, distribution=False, adapter=True) == "cached"
    assert choose(None, "tdpo2", ratio=True, distribution=True, adapter=False) == "frozen"
    assert choose(ReferenceTable(kind="none"), "simpo", ratio=False, distribution=False, adapter=False) == "none"
    assert choose(ReferenceTable(path="x"), "dpo", ratio=True, distribution=False, adapter=False) == "cached"


@pytest.mark.parametrize(
    "table, ratio, distribution, adapter, words",
    [
        ({"kind": "cached"}, False, False, False, "compares to no reference"),
        ({"path": "x"}, False, False, False, "compares to no reference"),
        ({"kind": "none"}, True, False, False, "compares to a reference"),
        ({"kind": "cached"}, True, True, False, "whole distribution"),
        ({"kind": "adapter-off"}, True, False, False, "needs an \\[adapter\\]"),
    ],
)
def test_a_kind_that_cannot_be_is_refused(table, ratio, distribution, adapter, words):
    with pytest.raises(RecipeError, match=words):
        choose(ReferenceTable(**table), "loss", ratio=ratio, distribution=distribution, adapter=adapter)


@pytest.mark.parametrize(
    "table, words",
    [
        ({"kind": "moving"}, "needs tau"),
        ({"kind": "cached", "tau": 3}, "go with kind = 'moving'"),
        ({"kind": "moving", "tau": 3, "alpha": 0.0}, "alpha"),
        ({"kind": "moving", "tau": 3, "path": "x"}, "starts from the base"),
        ({"kind": "adapter-off", "path": "x"}, "starts from the base"),
        ({"path": "x", "hub": "a/b"}, "give one"),
        ({"revision": "x"}, "revision goes with hub"),
        ({"kind": "frosen"}, "kind = 'frosen'"),
        ({"kid": "frozen"}, "unknown key 'kid'; did you mean 'kind'"),
    ],
)
def test_a_table_that_says_nothing_that_can_be_is_refused(table, words):
    said = {"data": {"dataset": "d"}, "model": {"path": "m"}, "objective": {"kind": "dpo"}, "reference": table}
    with pytest.raises(RecipeError, match=words):
        load_recipe(said)
