"""Every loss: its value by plain arithmetic, its gradient by finite differences, and its behaviour far out.

The expected values are written from the papers' formulas with `math` on single numbers, in their naive form, and typed
out beside it; nothing here calls the code that it checks to get them.
"""

import itertools
import math
from math import exp, expm1, log, log1p
from pathlib import Path

import pytest
import torch

from holdfast.errors import RecipeError
from holdfast.losses import LOSSES, QUANTITIES, bco_delta, dry_run, kto_z0, pessimistic, soft
from holdfast.losses.__main__ import table
from holdfast.losses.registry import pair_loss
from holdfast.recipe import bind


def s(x):
    """The logistic function."""
    return 1 / (1 + exp(-x))


# Two rows each: the winner ahead, and behind. d = 3, -1.5.
R = {"r_w": [2.0, -1.0], "r_l": [-1.0, 0.5]}
LOGP = {"logp_w": [-12.0, -9.0], "logp_l": [-14.0, -6.0]}
N = {"n_w": [8.0, 5.0], "n_l": [7.0, 10.0]}
ALIGNED = {"aligned_w": [-0.4, 0.3], "aligned_l": [-0.5, 0.2]}
PAST = {
    "past_logp_w": [-2.0, 0.0],
    "past_logp_l": [0.0, -3.0],
    "past_ref_logp_w": [-2.5, 0.0],
    "past_ref_logp_l": [0.0, -2.2],
}
B = {"beta": 0.5}
ODDS_W, ODDS_L = exp(-12 / 8) / (1 - exp(-12 / 8)), exp(-14 / 7) / (1 - exp(-14 / 7))
ODDS_W2, ODDS_L2 = exp(-9 / 5) / (1 - exp(-9 / 5)), exp(-6 / 10) / (1 - exp(-6 / 10))


def exo_by_hand(z, e):
    q = s(z)
    return q * log(q / (1 - e)) + (1 - q) * log((1 - q) / e)


def discopop_by_hand(z, tau):
    m = s(z / tau)
    return (1 - m) * log(1 + exp(-z)) + m * exp(-z)


# (loss, quantities, hyper-parameters, the formula in naive arithmetic, the same typed)
VALUES = [
    ("sft_nll", {"logp": [-3.5, -0.25]}, {}, [3.5, 0.25], [3.5, 0.25]),
    ("dpo", R, B, [-log(s(1.5)), -log(s(-0.75))], [0.201413, 1.136871]),
    (
        "cdpo",
        R,
        {**B, "e": 0.2},
        [-0.8 * log(s(1.5)) - 0.2 * log(s(-1.5)), -0.8 * log(s(-0.75)) - 0.2 * log(s(0.75))],
        [0.501413, 0.986871],
    ),
    (
        "rdpo",
        R,
        {**B, "e": 0.2},
        [(-0.8 * log(s(1.5)) + 0.2 * log(s(-1.5))) / 0.6, (-0.8 * log(s(-0.75)) + 0.2 * log(s(0.75))) / 0.6],
        [-0.298587, 1.386871],
    ),
    ("ipo", R, {"tau": 0.25}, [(3 - 2) ** 2, (-1.5 - 2) ** 2], [1.0, 12.25]),
    (
        "ipo_avg",
        {**R, **N},
        {"tau": 1.0},
        [(2 / 8 + 1 / 7 - 0.5) ** 2, (-1 / 5 - 0.5 / 10 - 0.5) ** 2],
        [0.011480, 0.5625],
    ),
    ("hinge", R, B, [0.0, 1.75], [0.0, 1.75]),
    ("slic", LOGP, {"gap": 1.0, "lam": 0.5}, [0 + 6.0, 1 + 9 - 6 + 4.5], [6.0, 8.5]),
    ("exo", R, {**B, "e": 0.01}, [exo_by_hand(1.5, 0.01), exo_by_hand(-0.75, 0.01)], [0.373266, 2.503471]),
    (
        "nca",
        R,
        B,
        [
            -log(s(1)) - 0.5 * log(s(-1)) - 0.5 * log(s(0.5)),
            -log(s(-0.5)) - 0.5 * log(s(0.5)) - 0.5 * log(s(-0.25)),
        ],
        [1.206931, 1.624085],
    ),
    ("sppo", R, {"beta": 0.25}, [(2 - 2) ** 2 + (-1 + 2) ** 2, (-1 - 2) ** 2 + (0.5 + 2) ** 2], [1.0, 15.25]),
    ("apo_zero", R, B, [1 - s(1) + s(-0.5), 1 - s(-0.5) + s(0.25)], [0.646482, 1.184636]),
    ("apo_down", R, B, [s(1) + 1 - s(1.5), s(-0.5) + 1 - s(-0.75)], [0.913484, 1.056720]),
    (
        "bco",
        {**R, "delta": 0.3},
        B,
        [-log(s(1 - 0.3)) - log(s(-(-0.5 - 0.3))), -log(s(-0.5 - 0.3)) - log(s(-(0.25 - 0.3)))],
        [0.774287, 1.839561],
    ),
    # gaps of the policy sort to (-3, 2, 7), of the reference to (-1, 0.5, 1)
    (
        "aot",
        {
            "logp_w": [-12.0, -9.0, -3.0],
            "logp_l": [-14.0, -6.0, -10.0],
            "ref_logp_w": [-11.0, -8.0, -7.5],
            "ref_logp_l": [-10.0, -9.0, -8.0],
        },
        B,
        [-log(s(0.5 * (-3 + 1))), -log(s(0.5 * (2 - 0.5))), -log(s(0.5 * (7 - 1)))],
        [1.313262, 0.386871, 0.048587],
    ),
    # winners sort to (-1, 0, 2), losers to (-1, 0.5, 3)
    (
        "aot_unpaired",
        {"r_w": [2.0, -1.0, 0.0], "r_l": [-1.0, 3.0, 0.5]},
        B,
        [-log(s(0.0)), -log(s(-0.25)), -log(s(-0.5))],
        [0.693147, 0.825939, 0.974077],
    ),
    (
        "discopop",
        {"r_w": [0.2, -0.3], "r_l": [-0.1, 0.1]},
        {"beta": 0.5, "tau": 0.1},
        [discopop_by_hand(0.15, 0.1), discopop_by_hand(-0.2, 0.1)],
        [0.816971, 0.848593],
    ),
    ("f_dpo", R, {**B, "divergence": "reverse_kl"}, [-log(s(1.5)), -log(s(-0.75))], [0.201413, 1.136871]),
    (
        "f_dpo",
        R,
        {**B, "divergence": "forward_kl"},
        [-log(s(0.5 * (-exp(-2) + exp(1)))), -log(s(0.5 * (-exp(1) + exp(-0.5))))],
        [0.242841, 1.354414],
    ),
    (
        "f_dpo",
        R,
        {**B, "divergence": "js"},
        [
            -log(s(0.5 * (log(2 * exp(2) / (1 + exp(2))) - log(2 * exp(-1) / (1 + exp(-1)))))),
            -log(s(0.5 * (log(2 * exp(-1) / (1 + exp(-1))) - log(2 * exp(0.5) / (1 + exp(0.5)))))),
        ],
        [0.439915, 0.924791],
    ),
    (
        "f_dpo",
        R,
        {**B, "divergence": "alpha", "alpha": 0.3},
        [
            -log(s(0.5 * ((1 - exp(2) ** -0.3) - (1 - exp(-1) ** -0.3)) / 0.3)),
            -log(s(0.5 * ((1 - exp(-1) ** -0.3) - (1 - exp(0.5) ** -0.3)) / 0.3)),
        ],
        [0.233599, 1.181649],
    ),
    (
        "chipo",
        R,
        {"beta": 0.1, "r_max": 2.0},
        [-log(s(0.1 * (exp(2) + 2 - exp(-1) + 1))), -log(s(0.1 * (exp(-1) - 1 - exp(0.5) - 0.5)))],
        [0.312693, 0.841825],
    ),
    # beta phi differences of 10.5 and -10.5, beyond the clip at 3
    (
        "chipo",
        {"r_w": [log(10), 0.0], "r_l": [0.0, log(10)]},
        {"beta": 1.0, "r_max": 1.5},
        [-log(s(3.0)), -log(s(-3.0))],
        [0.048587, 3.048587],
    ),
    ("dpop", R, {**B, "lam": 5.0}, [-log(s(1.5)), -log(s(0.5 * (-1.5 - 5)))], [0.201413, 3.288041]),
    (
        "rpo",
        {**R, "logp_w": LOGP["logp_w"], "n_w": N["n_w"]},
        {**B, "eta": 0.1},
        [-log(s(1.5)) + 1.2, -log(s(-0.75)) + 0.9],
        [1.401413, 2.036871],
    ),
    (
        "rpo",
        {**R, "logp_w": LOGP["logp_w"], "n_w": N["n_w"]},
        {**B, "eta": 0.1, "nll": "mean"},
        [-log(s(1.5)) + 0.15, -log(s(-0.75)) + 0.18],
        [0.351413, 1.316871],
    ),
    (
        "tdpo2",
        {**R, "kl_w": [0.8, 0.2], "kl_l": [0.5, 1.0]},
        {**B, "alpha": 0.5},
        [-log(s(0.5 * (3 - 0.5 * (0.5 - 0.8)))), -log(s(0.5 * (-1.5 - 0.5 * (1.0 - 0.2))))],
        [0.188144, 1.276956],
    ),
    (
        "simpo",
        {**LOGP, **N},
        {"beta": 2.0, "gamma": 0.6},
        [-log(s(2 * (-1.5 + 2) - 0.6)), -log(s(2 * (-1.8 + 0.6) - 0.6))],
        [0.513015, 3.048587],
    ),
    (
        "simpo",
        {**LOGP, **N},
        {"beta": 2.0, "gamma": 0.6, "gamma_is": "ratio"},
        [-log(s(2 * (-1.5 + 2 - 0.6))), -log(s(2 * (-1.8 + 0.6 - 0.6)))],
        [0.798139, 3.626957],
    ),
    (
        "cpo",
        {**LOGP, "n_w": N["n_w"]},
        {**B, "lam": 0.5},
        [-log(s(1.0)) + 6, -log(s(-1.5)) + 4.5],
        [6.313262, 6.201413],
    ),
    (
        "cpo",
        {**LOGP, "n_w": N["n_w"]},
        {**B, "lam": 0.5, "nll": "mean"},
        [-log(s(1.0)) + 0.75, -log(s(-1.5)) + 0.9],
        [1.063262, 2.601413],
    ),
    (
        "orpo",
        {**LOGP, **N},
        {"lam": 0.4},
        [1.5 - 0.4 * log(s(log(ODDS_W / ODDS_L))), 1.8 - 0.4 * log(s(log(ODDS_W2 / ODDS_L2)))],
        [1.673996, 2.586410],
    ),
    (
        "ln_dpo",
        {**R, **N},
        {"beta": 5.0},
        [-log(s(5 * (2 / 8 + 1 / 7))), -log(s(5 * (-1 / 5 - 0.5 / 10)))],
        [0.131253, 1.501929],
    ),
    # r less (1 - alpha) of what lies past the shorter response: 2 - 0.7 * 0.5, and 0.5 - 0.7 * (-0.8)
    (
        "ld_dpo",
        {**R, **PAST},
        {**B, "alpha": 0.3},
        [-log(s(0.5 * (2 - 0.35 + 1))), -log(s(0.5 * (-1 - (0.5 + 0.56))))],
        [0.235707, 1.335282],
    ),
    (
        "ld_dpo",
        {**R, **PAST},
        {**B, "alpha": 0.3, "reference": "plain"},
        [-log(s(0.5 * (2 + 1.4 + 1))), -log(s(0.5 * (-1 - (0.5 + 2.1))))],
        [0.105083, 1.952978],
    ),
    ("wpo", {**R, **ALIGNED}, B, [-exp(-0.9) * log(s(1.5)), -1.0 * log(s(-0.75))], [0.081888, 1.136871]),
    (
        "wpo",
        {**R, **ALIGNED},
        {**B, "cap": math.inf},
        [-exp(-0.9) * log(s(1.5)), -exp(0.5) * log(s(-0.75))],
        [0.081888, 1.874384],
    ),
    (
        "dr_dpo",
        R,
        {**B, "beta_prime": 0.5},
        [-0.5 * log((s(1.5) ** 2 + s(-0.75) ** 2) / 2)] * 2,
        [0.476377, 0.476377],
    ),
    (
        "rao_kupper",
        {**R, "tie": [0.0, 1.0]},
        {**B, "nu": 3.0},
        [-log(s(1.5 - log(3))), -log(8 * s(-0.75 - log(3)) * s(0.75 - log(3)))],
        [0.512459, 0.797963],
    ),
    (
        "davidson",
        {**R, "tie": [0.0, 1.0]},
        {**B, "nu": 1.0},
        [
            -log(1 / (1 + exp(-1.5) + 2 * exp(-0.75))),
            -log(2 * exp(0.375) / (1 + exp(0.75) + 2 * exp(0.375))),
        ],
        [0.773742, 0.728099],
    ),
    # Two rankings in one tensor, their responses interleaved: 0: (1.0 > 0.2 > -0.5), 1: (0.7 > 0.9)
    (
        "plackett_luce",
        {"r": [0.2, 0.7, 1.0, 0.9, -0.5], "rank": [1.0, 0.0, 0.0, 1.0, 2.0], "owner": [0, 1, 0, 1, 0]},
        {"beta": 2.0},
        [
            -log(exp(2) / (exp(2) + exp(0.4) + exp(-1))) - log(exp(0.4) / (exp(0.4) + exp(-1))),
            -log(exp(1.4) / (exp(1.4) + exp(1.8))),
        ],
        [0.444907, 0.913015],
    ),
    (
        "kto",
        {"r": [2.0, -1.0], "good": [1.0, 0.0], "z0": 0.4},
        {**B, "lam_good": 1.5, "lam_bad": 0.8},
        [1.5 * (1 - s(0.5 * 1.6)), 0.8 * (1 - s(0.5 * 1.4))],
        [0.465038, 0.265450],
    ),
    (
        "bradley_terry",
        {"R_w": [1.2, -0.3], "R_l": [0.2, 0.9], "margin": [0.5, 0.0]},
        {"centre": 0.01},
        [-log(s(0.5)) + 0.01 * 1.96, -log(s(-1.2)) + 0.01 * 0.36],
        [0.493677, 1.466882],
    ),
    (
        "reward_plackett_luce",
        {"R": [0.2, 1.0, -0.5], "rank": [2.0, 1.0, 3.0], "owner": [0, 0, 0]},
        {},
        [-log(exp(1) / (exp(1) + exp(0.2) + exp(-0.5))) - log(exp(0.2) / (exp(0.2) + exp(-0.5)))],
        [0.917481],
    ),
    (
        "reward_rao_kupper",
        {"R_w": [1.2, -0.3], "R_l": [0.2, 0.9], "tie": [0.0, 1.0]},
        {"nu": 2.0},
        [-log(s(1 - log(2))), -log(3 * s(-1.2 - log(2)) * s(1.2 - log(2)))],
        [0.551445, 1.406311],
    ),
]
IDS = [f"{name}-{'-'.join(str(v) for v in hyper.values())}" for name, _, hyper, _, _ in VALUES]


def given(quantities, dtype=torch.float64):
    return {
        name: torch.tensor(value, dtype=torch.long if name == "owner" else dtype) for name, value in quantities.items()
    }


@pytest.mark.parametrize(("name", "quantities", "hyper", "naive", "typed"), VALUES, ids=IDS)
def test_value(name, quantities, hyper, naive, typed):
    assert naive == pytest.approx(typed, abs=1e-6)
    loss = LOSSES[name]
    found = loss(*(given(quantities)[n] for n in loss.takes), **hyper)
    assert found.tolist() == pytest.approx(naive, rel=1e-12, abs=1e-14)
    found = loss(*(given(quantities, torch.float32)[n] for n in loss.takes), **hyper)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(naive, rel=2e-6, abs=1e-7)


def test_every_loss_has_a_value():
    assert {name for name, *_ in VALUES} == set(LOSSES)


# Quantities through which no gradient flows: data, reference, state, and where the paper stops it.
CONSTANT = {"n_w", "n_l", "margin", "tie", "good", "rank", "owner", "delta", "z0", "ref_logp_w", "ref_logp_l"}
CONSTANT |= {"past_ref_logp_w", "past_ref_logp_l", "aligned_w", "aligned_l", "kl_w"}


@pytest.mark.parametrize(("name", "quantities", "hyper", "naive", "typed"), VALUES, ids=IDS)
def test_gradient_by_finite_differences(name, quantities, hyper, naive, typed):
    loss, h = LOSSES[name], 1e-6
    values = given(quantities)
    free = [n for n in loss.takes if n not in CONSTANT]
    leaves = {n: v.clone().requires_grad_() if n in free else v for n, v in values.items()}
    loss(*(leaves[n] for n in loss.takes), **hyper).sum().backward()

    def at(changed, i, step):
        moved = {n: v.clone() for n, v in values.items()}
        moved[changed].view(-1)[i] += step
        return float(loss(*(moved[n] for n in loss.takes), **hyper).sum())

    for n in free:
        for i in range(values[n].numel()):
            slope = (at(n, i, h) - at(n, i, -h)) / (2 * h)
            grad = leaves[n].grad
            assert float(grad.view(-1)[i]) == pytest.approx(slope, rel=1e-6, abs=1e-8), (n, i)


@pytest.mark.parametrize(("name", "stopped"), [("tdpo2", "kl_w"), ("wpo", "aligned_w"), ("wpo", "aligned_l")])
def test_stopped_gradients(name, stopped):
    """These move the value, and yet no gradient flows through them."""
    quantities, hyper = next((q, h) for n, q, h, _, _ in VALUES if n == name)
    values = given(quantities)
    leaves = {n: v.clone().requires_grad_() for n, v in values.items()}
    found = LOSSES[name](*(leaves[n] for n in LOSSES[name].takes), **hyper)
    found.sum().backward()
    assert leaves[stopped].grad is None and leaves["r_w"].grad is not None
    values[stopped] = values[stopped] - 0.1
    assert not torch.equal(found, LOSSES[name](*(values[n] for n in LOSSES[name].takes), **hyper))


FAR = [0.0, 1e-4, 1.0, -30.0, 30.0, -100.0, 100.0, -1e3, 1e3, -1e4, 1e4]
EXTREME_HYPER = {
    "f_dpo": [
        {"divergence": d, **({"alpha": a} if d == "alpha" else {})}
        for d, a in [("reverse_kl", 0), ("forward_kl", 0), ("js", 0), ("alpha", 0.0), ("alpha", 0.01), ("alpha", 1.0)]
    ],
    "discopop": [{}, {"tau": 1.0}, {"tau": 0.001}],
    "exo": [{}, {"e": 1e-30}],
    "chipo": [{}, {"r_max": 1e4}],
    "dr_dpo": [{}, {"beta_prime": 0.01}, {"beta_prime": 1e5}],
    "davidson": [{}, {"nu": 1e-9}],
    "rao_kupper": [{}, {"nu": 1 + 1e-9}],
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("beta", [None, 1.0])
def test_finite_far_out(name, beta):
    """float32, log ratios and scores to +-1e4 in every combination: finite values, finite gradients."""
    loss = LOSSES[name]
    w, l = (torch.tensor(v) for v in zip(*itertools.product(FAR, FAR), strict=True))
    e, odd = len(w), (torch.arange(len(w)) % 2).float()
    values = {
        "logp_w": -w.abs() - 1e-3, "logp_l": -l.abs() - 1e-3, "n_w": torch.ones(e), "n_l": torch.full((e,), 300.0),
        "ref_logp_w": -l.abs(), "ref_logp_l": -w.abs(), "kl_w": w.abs(), "kl_l": l.abs(),
        "aligned_w": -w.abs(), "aligned_l": -l.abs(), "margin": torch.ones(e), "delta": torch.tensor(3.0),
        "good": odd, "tie": odd, "z0": torch.tensor(2.0), "rank": l, "owner": torch.arange(e) // 7,
        "logp": -w.abs(), "r": w, "r_w": w, "r_l": l, "R_w": w, "R_l": l, "R": w,
        "past_logp_w": -w.abs(), "past_logp_l": -l.abs(), "past_ref_logp_w": -l.abs(), "past_ref_logp_l": -w.abs(),
    }  # fmt: skip
    for hyper in EXTREME_HYPER.get(name, [{}]):
        if beta is not None and "beta" in bind(loss, {}, ""):
            hyper = {**hyper, "beta": beta}
        leaves = {n: values[n].clone().requires_grad_(n not in CONSTANT) for n in loss.takes}
        found = loss(*(leaves[n] for n in loss.takes), **hyper)
        assert torch.isfinite(found).all(), hyper
        found.sum().backward()
        for n, leaf in leaves.items():
            assert leaf.grad is None or torch.isfinite(leaf.grad).all(), (n, hyper)


def test_certain_responses_stay_finite():
    """orpo's odds at probability one, exactly and nearly: the log-odds is large, its gradient finite."""
    logp_w = torch.tensor([0.0, -1e-12, -1e-30], requires_grad=True)
    n = torch.ones(3)
    found = LOSSES["orpo"](logp_w, torch.tensor([0.0, -1.0, 0.0]), n, n)
    found.sum().backward()
    assert torch.isfinite(found).all() and torch.isfinite(logp_w.grad).all()


@pytest.mark.parametrize("x", [-1e-6, -1e-3, -0.1, -0.69, -0.70, -5.0, -16.0])
def test_orpo_odds_keep_their_digits_in_float32(x):
    """1 - exp(x) loses digits near 0; log(1 + y) loses them far out."""
    exact = x - (log(-expm1(x)) if x > -0.5 else log1p(-exp(x)))
    one = torch.ones(1)
    logp_w, logp_l = torch.tensor([x]), torch.tensor([-1.0])
    found = LOSSES["orpo"](logp_w, logp_l, one, one, lam=1.0) + logp_w
    by_hand = log1p(exp(-(exact - (-1.0 - log(-expm1(-1.0))))))
    assert float(found) == pytest.approx(by_hand, rel=1e-5)


def test_f_dpo_pulls_a_lost_winner_back():
    """Beyond e^30 the exponential goes on as its tangent: still decreasing in r_w, and no jump where they meet."""
    r_w = torch.tensor([-29.999, -30.001, -200.0, -1e4], dtype=torch.float64, requires_grad=True)
    found = LOSSES["f_dpo"](r_w, torch.zeros(4, dtype=torch.float64), divergence="forward_kl")
    found.sum().backward()
    assert (r_w.grad < 0).all() and (found[1:] > found[:-1]).all()
    assert float(r_w.grad[0]) == pytest.approx(float(r_w.grad[1]), rel=0.01)
    # the tangent at 30 is e^30 (x - 29): twice e^30 at 31, and -log sigma(-x) is x this far out
    assert float(found[1]) == pytest.approx(0.1 * exp(30) * 1.001, rel=1e-9)
    at_31 = LOSSES["f_dpo"](torch.tensor([-31.0]).double(), torch.tensor([0.0]).double(), divergence="forward_kl")
    assert float(at_31) == pytest.approx(0.1 * 2 * exp(30), rel=1e-9)


def test_dr_dpo_repeats_one_value_for_the_batch():
    r_w, r_l = torch.tensor([2.0, -1.0, 0.3]), torch.tensor([-1.0, 0.5, 0.1])
    whole = LOSSES["dr_dpo"](r_w, r_l)
    assert len(set(whole.tolist())) == 1
    assert float(whole[0]) != pytest.approx(float(LOSSES["dr_dpo"](r_w[:2], r_l[:2])[0]), rel=1e-3)


@pytest.mark.parametrize("name", [n for n, f in LOSSES.items() if not f.couples_rows and "owner" not in f.takes])
def test_rows_are_independent_unless_said(name):
    """A loss without `couples_rows` gives each row the value it has alone."""
    quantities, hyper = next((q, h) for n, q, h, _, _ in VALUES if n == name)
    values, loss = given(quantities), LOSSES[name]
    whole = loss(*(values[n] for n in loss.takes), **hyper)
    for i in range(len(whole)):
        alone = loss(*(values[n][i : i + 1] if values[n].ndim else values[n] for n in loss.takes), **hyper)
        assert torch.equal(alone, whole[i : i + 1])


def test_soft_by_hand():
    """p L(w, l) + (1 - p) L(l, w): every quantity of the two responses changes place, that of the pair stays."""
    p = torch.tensor([0.7, 0.0], dtype=torch.float64)
    found = soft(LOSSES["dpo"], p, **given(R), beta=0.5)
    assert found.tolist() == pytest.approx([-0.7 * log(s(1.5)) - 0.3 * log(s(-1.5)), -log(s(0.75))], rel=1e-12)
    found = soft(LOSSES["ipo_avg"], p, **given({**R, **N}), tau=1.0)
    first = 0.7 * (2 / 8 + 1 / 7 - 0.5) ** 2 + 0.3 * (-1 / 7 - 2 / 8 - 0.5) ** 2
    assert found.tolist() == pytest.approx([first, (0.5 / 10 + 1 / 5 - 0.5) ** 2], rel=1e-12)
    scores = given({"R_w": [1.2, -0.3], "R_l": [0.2, 0.9], "margin": [0.5, 0.0]})
    found = soft(LOSSES["bradley_terry"], p, **scores, centre=0.01)
    first = -0.7 * log(s(0.5)) - 0.3 * log(s(-1.5)) + 0.01 * 1.96
    assert found.tolist() == pytest.approx([first, -log(s(1.2)) + 0.01 * 0.36], rel=1e-12)


@pytest.mark.parametrize("name", [n for n, f in LOSSES.items() if f.family in ("pair", "reward")])
def test_soft_everywhere_or_refused(name):
    """Sure labels give the loss itself, for every loss; unsure ones the mixture of the exchanged pair, or a refusal."""
    loss = LOSSES[name]
    quantities, hyper = next((q, h) for n, q, h, _, _ in VALUES if n == name)
    values = given({**{n: {**LOGP, **N}[n] for n in loss.needs if n not in quantities}, **quantities})
    plain = loss(*(values[n] for n in loss.takes), **hyper)
    assert torch.equal(soft(loss, torch.ones_like(plain), **values, **hyper), plain)
    p = torch.full_like(plain, 0.25)
    if loss.why_not_soft:
        with pytest.raises(RecipeError, match=rf"{name} takes no probability .* {len(p)} of {len(p)} comparisons"):
            soft(loss, p, **values, **hyper)
        return
    flipped = {n[:-1] + {"w": "l", "l": "w"}[n[-1]] if n[-2:] in ("_w", "_l") else n: v for n, v in values.items()}
    other = loss(*(flipped[n] for n in loss.takes), **hyper)
    assert torch.allclose(soft(loss, p, **values, **hyper), 0.25 * plain + 0.75 * other, rtol=1e-14)
    assert not torch.allclose(plain, other)


REFUSE_SOFT = {
    "cdpo",
    "rdpo",
    "exo",
    "aot",
    "aot_unpaired",
    "dr_dpo",
    "plackett_luce",
    "reward_plackett_luce",
    "kto",
    "sft_nll",
}


def test_which_losses_take_no_probability():
    assert {n for n, f in LOSSES.items() if f.why_not_soft} == REFUSE_SOFT
    assert {n for n, f in LOSSES.items() if f.couples_rows} == {"aot", "aot_unpaired", "dr_dpo"}
    assert {n for n, f in LOSSES.items() if f.per_token} == {"ipo_avg", "simpo", "orpo", "ln_dpo"}
    free = {"slic", "simpo", "cpo", "orpo", "sft_nll", "bradley_terry", "reward_plackett_luce", "reward_rao_kupper"}
    assert {n for n, f in LOSSES.items() if not f.needs_reference} == free


def test_what_a_loss_needs_is_what_soft_uses():
    """rpo takes the winner's log-probability; under a label that may be wrong it needs the loser's as well."""
    assert LOSSES["rpo"].takes == ("r_w", "r_l", "logp_w", "n_w")
    assert LOSSES["rpo"].needs == ("r_w", "r_l", "logp_w", "n_w", "logp_l", "n_l")
    assert LOSSES["bco"].needs == LOSSES["bco"].takes == ("r_w", "r_l", "delta")


def test_bco_delta_by_hand():
    r_w, r_l = (torch.tensor(x, requires_grad=True) for x in ([2.0, 4.0], [-1.0, 0.0]))
    # mean rewards 0.5 * 3 and 0.5 * -0.5, their middle 0.625
    new = bco_delta(torch.tensor(1.0), r_w, r_l, beta=0.5, decay=0.8)
    assert float(new) == pytest.approx(0.8 * 1.0 + 0.2 * 0.625) and not new.requires_grad
    delta = torch.tensor(0.0)
    for _ in range(200):
        delta = bco_delta(delta, r_w, r_l, beta=0.5)
    assert float(delta) == pytest.approx(0.625, rel=1e-5)
    assert bind(bco_delta, {}, "")["beta"] == bind(LOSSES["bco"], {}, "")["beta"]
    assert LOSSES["bco"].updates == {"delta": bco_delta}


def test_kto_z0_by_hand():
    r = torch.tensor([1.0, -0.5, 0.4], requires_grad=True)
    assert float(kto_z0(r)) == pytest.approx(0.3) and not kto_z0(r).requires_grad
    assert float(kto_z0(-r)) == 0.0
    assert float(kto_z0(r[:0])) == 0.0
    # one estimate for the step is not the mean of the micro-batches' estimates
    assert (float(kto_z0(r[:1])) + float(kto_z0(r[1:]))) / 2 != pytest.approx(0.3)


def test_pessimistic_by_hand():
    R_HE = torch.tensor([[1.0, 5.0], [2.0, 5.0], [6.0, 5.0]])  # mean 3, variance (4 + 1 + 9) / 3
    assert pessimistic(R_HE).tolist() == pytest.approx([3 - 14 / 3, 5.0])
    assert pessimistic(R_HE, how="mean-sd", k=0.5).tolist() == pytest.approx([3 - 0.5 * math.sqrt(14 / 3), 5.0])
    assert pessimistic(R_HE, how="min").tolist() == [1.0, 5.0]
    with pytest.raises(RecipeError, match=r"k = 2\.0: pessimistic needs no k with how = 'min'"):
        pessimistic(R_HE, how="min", k=2.0)


@pytest.mark.parametrize(
    ("name", "hyper", "message"),
    [
        ("dpo", {"beta": 0.0}, "beta = 0.0: dpo needs beta > 0"),
        ("dpo", {"beta": math.nan}, "beta = nan"),
        ("cdpo", {"e": 0.5}, "e = 0.5: cdpo needs 0 <= e < 0.5"),
        ("rdpo", {"e": -0.1}, "e = -0.1"),
        ("exo", {"e": 0.0}, "e = 0.0: exo needs 0 < e < 0.5"),
        ("ipo", {"tau": 0.0}, "tau = 0.0"),
        ("f_dpo", {"divergence": "js", "alpha": 0.5}, "alpha = 0.5: f_dpo needs alpha with divergence 'alpha' only"),
        ("f_dpo", {"divergence": "alpha"}, "alpha = None"),
        ("f_dpo", {"divergence": "alpha", "alpha": 1.5}, "alpha = 1.5: f_dpo needs 0 <= alpha <= 1"),
        ("ld_dpo", {"alpha": 1.1}, "alpha = 1.1"),
        ("rao_kupper", {"nu": 1.0}, "nu = 1.0: rao_kupper needs nu > 1"),
        ("davidson", {"nu": 0.0}, "nu = 0.0"),
        ("bradley_terry", {"centre": -0.01}, "centre = -0.01"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused_before_training(name, hyper, message):
    with pytest.raises(RecipeError) as refused:
        dry_run(LOSSES[name], **hyper)
    assert message in str(refused.value)


@pytest.mark.parametrize("name", LOSSES)
def test_defaults_bind_and_run_and_unknown_keys_are_errors(name):
    dry_run(LOSSES[name], **bind(LOSSES[name], {}, "[objective]"))
    with pytest.raises(RecipeError, match="unknown key 'label_smoothing'"):
        bind(LOSSES[name], {"label_smoothing": 0.1}, "[objective]")


def test_registry_refuses_a_strange_quantity_and_a_taken_name():
    with pytest.raises(TypeError, match=r"\['chosen'\] are not in QUANTITIES"):

        @pair_loss(paper="none", equation="none")
        def strange(chosen):
            return chosen

    with pytest.raises(TypeError, match="loss dpo"):

        @pair_loss(paper="none", equation="none")
        def dpo(r_w):
            return r_w

    assert "strange" not in LOSSES
    assert set(itertools.chain.from_iterable(f.needs for f in LOSSES.values())) == set(QUANTITIES)


def test_docs_are_what_the_docstrings_say():
    page = Path(__file__).parents[1] / "docs" / "formulas.md"
    assert page.read_text(encoding="utf-8") == table(), "run: python -m holdfast.losses > docs/formulas.md"
