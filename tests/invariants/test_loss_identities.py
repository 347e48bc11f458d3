"""What must hold between losses, and of them, whatever the numbers: limits, symmetries, where the least point lies."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from holdfast.losses import LOSSES, soft


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


# Log ratios or scores of w and l in every combination, far out and near, in both orders and equal.
SOME = [-20.0, -9.3, -3.1, -1.0, -0.37, -1e-3, 0.0, 2e-3, 0.5, 1.0, 2.2, 7.9, 20.0]
W, L = (t(*side) for side in zip(*itertools.product(SOME, SOME), strict=True))
# The same for log-probabilities, which are negative.
LOGP_W, LOGP_L = -W.abs() - 0.01, -L.abs() - 0.02
NO, YES = torch.zeros_like(W), torch.ones_like(W)
betas = pytest.mark.parametrize("beta", [0.05, 0.3, 1.0])


def same(a, b, rtol=1e-10, atol=1e-12):
    torch.testing.assert_close(a, b.expand_as(a), rtol=rtol, atol=atol)


def slopes(value, *leaves):
    return torch.autograd.grad(value.sum(), leaves)


def least_point(loss):
    """Where a loss of the difference d is least, on a grid of 1e-4 from -10 to 10."""
    d = torch.arange(-100_000, 100_001, dtype=torch.float64) / 10_000
    return float(d[loss(d, torch.zeros_like(d)).argmin()])


# Members of the family that are dpo at a special value of a setting, or where a quantity is zero.
DPO_LIMITS = {
    "cdpo": ({"e": 0.0}, {}),
    "rdpo": ({"e": 0.0}, {}),
    "f_dpo": ({"divergence": "reverse_kl"}, {}),
    "f_dpo alpha 0": ({"divergence": "alpha", "alpha": 0.0}, {}),
    "dpop": ({"lam": 0.0}, {}),
    "rpo": ({"eta": 0.0}, {}),
    "tdpo2": ({"alpha": 0.0}, {}),
    "tdpo2 same kl": ({}, {"kl_w": 3.0, "kl_l": 3.0}),
    "ln_dpo": ({}, {"n_w": 1.0, "n_l": 1.0}),
    "ld_dpo": ({"alpha": 1.0}, {}),
    "ld_dpo plain": ({"alpha": 1.0, "reference": "plain"}, {}),
    "wpo": ({}, {"aligned_w": 0.0, "aligned_l": 0.0}),
    "wpo capped": ({}, {"aligned_w": 2.0, "aligned_l": 1.0}),
}


@betas
@pytest.mark.parametrize("case", DPO_LIMITS)
def test_is_dpo_at_its_limit(case, beta):
    hyper, special = DPO_LIMITS[case]
    loss = LOSSES[case.split()[0]]
    usual = {"logp_w": -30.0, "n_w": 7.0, "n_l": 9.0, "kl_w": 1.0, "kl_l": 4.0, "aligned_w": -1.0, "aligned_l": -1.0}
    usual |= {"past_logp_w": -3.0, "past_logp_l": -1.0, "past_ref_logp_w": -2.0, "past_ref_logp_l": -5.0} | special
    q = {"r_w": W, "r_l": L, **{n: t(v).expand_as(W) for n, v in usual.items()}}
    dpo = LOSSES["dpo"](W, L, beta=beta)
    same(loss(*(q[n] for n in loss.takes), beta=beta, **hyper), dpo)
    if case in ("rpo", "ln_dpo", "ld_dpo", "wpo", "tdpo2"):  # and not without that limit
        q |= {"n_w": NO + 7, "n_l": NO + 9, "aligned_w": NO - 1, "aligned_l": NO - 1}
        assert not torch.allclose(loss(*(q[n] for n in loss.takes), beta=beta), dpo)


@betas
def test_is_dpo_in_the_limit(beta):
    dpo = LOSSES["dpo"](W, L, beta=beta)
    same(LOSSES["rao_kupper"](W, L, NO, beta=beta, nu=1 + 1e-9), dpo, atol=1e-7)
    same(LOSSES["davidson"](W, L, NO, beta=beta, nu=1e-12), dpo, atol=1e-6)
    same(LOSSES["f_dpo"](W, L, beta=beta, divergence="alpha", alpha=1e-9), dpo, atol=1e-6)


@betas
def test_a_ranking_of_two_is_dpo(beta):
    """Each pair one ranking of the same flat tensor, the losers first."""
    one = torch.arange(len(W))
    owner, rank = torch.cat([one, one]), torch.cat([YES, NO])
    same(LOSSES["plackett_luce"](torch.cat([L, W]), rank, owner, beta=beta), LOSSES["dpo"](W, L, beta=beta))
    gap = LOSSES["plackett_luce"](t(1.0, 0.0), t(0, 1), torch.tensor([2, 2]), beta=beta)  # rankings 0 and 1 are empty
    same(gap, torch.cat([t(0, 0), LOSSES["dpo"](t(1.0), t(0.0), beta=beta)]))


def test_dr_dpo_with_a_large_beta_prime_is_the_mean_and_with_a_small_one_the_least():
    dpo = LOSSES["dpo"](W, L)
    same(LOSSES["dr_dpo"](W, L, beta_prime=1e9).mean(), dpo.mean(), atol=1e-8)
    same(LOSSES["dr_dpo"](W, L, beta_prime=1e-6).mean(), dpo.min(), atol=1e-5)
    in_float32 = LOSSES["dr_dpo"](W.float(), L.float(), beta_prime=1e6).mean().double()
    same(in_float32, dpo.mean(), rtol=1e-6)  # naively, 1e6 times the logarithm of a float32 next to 1


def test_dr_dpo_weighs_rows_by_exp_of_minus_their_loss():
    r_w = t(3.0, -1.0, -8.0).requires_grad_()
    losses = LOSSES["dpo"](r_w, t(0, 0, 0), beta=0.5)
    (found,) = slopes(LOSSES["dr_dpo"](r_w, t(0, 0, 0), beta=0.5, beta_prime=0.7) / 3, r_w)
    same(found, torch.softmax(-losses.detach() / 0.7, 0) * -0.5 * torch.sigmoid(-0.5 * r_w.detach()))


def test_f_dpo_alpha_one_is_forward_kl():
    one = LOSSES["f_dpo"](W, L, divergence="alpha", alpha=1.0)
    same(one, LOSSES["f_dpo"](W, L, divergence="forward_kl"))


@pytest.mark.parametrize("a", [0.2, 0.5, 0.9])
def test_f_dpo_alpha_is_trl_s_other_parametrisation_at_one_minus_alpha(a):
    """TRL 1.16 has (u^(c - 1) - 1) / (c - 1): ours at c = 1 - alpha, so the same number means the same at 1/2 only."""

    def trl(r, c):
        return (torch.exp(r) ** (c - 1) - 1) / (c - 1)

    ours = LOSSES["f_dpo"](W, L, divergence="alpha", alpha=a)
    same(ours, -logsigmoid(0.1 * (trl(W, 1 - a) - trl(L, 1 - a))), rtol=1e-8)
    assert torch.allclose(ours, -logsigmoid(0.1 * (trl(W, a) - trl(L, a)))) == (a == 0.5)


def test_chipo_is_the_sum_of_its_two_divergences_within_its_clip():
    near = (W.abs() < 4) & (L.abs() < 4)
    w, l = W[near], L[near]
    z = torch.exp(w) - torch.exp(l) + w - l
    same(LOSSES["chipo"](w, l, beta=0.1, r_max=1e6), -logsigmoid(0.1 * z))


def test_chipo_gives_no_gradient_beyond_its_clip():
    r_w = t(-50.0, 1.0, 50.0).requires_grad_()
    (found,) = slopes(LOSSES["chipo"](r_w, t(0, 0, 0), beta=0.5, r_max=2.0), r_w)
    assert found[0] == 0 and found[1] < 0 and found[2] == 0


@betas
def test_discopop_stable_form_is_the_naive_form(beta):
    z = beta * (W - L)
    m = torch.sigmoid(z / 0.05)
    naive = (1 - m) * torch.log(1 + torch.exp(-z)) + m * torch.exp(-z)
    same(LOSSES["discopop"](W, L, beta=beta), naive, atol=1e-9)


def test_discopop_has_a_second_low_point_where_the_paper_puts_it():
    d = torch.linspace(-0.5, 0.05, 50_001, dtype=torch.float64)
    values = LOSSES["discopop"](d, torch.zeros_like(d), beta=1.0)
    assert float(d[values.argmin()]) == pytest.approx(-2.3714 * 0.05, abs=1e-4)
    assert float(values.min()) == pytest.approx(0.785929, abs=1e-5)


@pytest.mark.parametrize("shift", [-7.0, 0.3, 40.0])
@pytest.mark.parametrize(
    "name",
    ["dpo", "cdpo", "rdpo", "ipo", "hinge", "exo", "discopop", "rao_kupper", "davidson", "dr_dpo", "aot_unpaired"],
)
def test_depends_on_the_difference_only(name, shift):
    loss = LOSSES[name]
    q = {"r_w": W, "r_l": L, "tie": (torch.arange(len(W)) % 2).double()}
    moved = {**q, "r_w": W + shift, "r_l": L + shift}
    same(loss(*(q[n] for n in loss.takes)), loss(*(moved[n] for n in loss.takes)), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["nca", "sppo", "apo_zero", "apo_down", "bco", "dpop", "chipo"])
def test_absolute_losses_do_not(name):
    loss = LOSSES[name]
    q = {"r_w": t(-0.5), "r_l": t(-2.0), "delta": t(0.0)}
    moved = {**q, "r_w": t(9.5), "r_l": t(8.0)}
    assert abs(float(loss(*(q[n] for n in loss.takes)) - loss(*(moved[n] for n in loss.takes)))) > 1e-3


@betas
@pytest.mark.parametrize("nu", [1.5, 3.0, 10.0])
@pytest.mark.parametrize("name", ["rao_kupper", "davidson"])
def test_outcomes_with_ties_are_a_distribution(name, nu, beta):
    """w wins, l wins, tie: the three chances add up to one, and a tie does not mind the order."""
    loss = LOSSES[name]
    win, lose = loss(W, L, NO, beta=beta, nu=nu), loss(L, W, NO, beta=beta, nu=nu)
    tie, eit = loss(W, L, YES, beta=beta, nu=nu), loss(L, W, YES, beta=beta, nu=nu)
    same(torch.exp(-win) + torch.exp(-lose) + torch.exp(-tie), t(1.0), rtol=1e-9)
    same(tie, eit, rtol=1e-9, atol=1e-9)


def test_reward_rao_kupper_is_the_policy_s_at_beta_one():
    for tie in (NO, YES):
        same(LOSSES["reward_rao_kupper"](W, L, tie, nu=2.0), LOSSES["rao_kupper"](W, L, tie, beta=1.0, nu=2.0))


@pytest.mark.parametrize(
    ("name", "nu", "chance"), [("rao_kupper", 3.0, 1 / 2), ("rao_kupper", 2.0, 1 / 3), ("davidson", 1.0, 1 / 2)]
)
def test_chance_of_a_tie_of_even_responses(name, nu, chance):
    assert math.exp(-float(LOSSES[name](t(1), t(1), t(1), nu=nu))) == pytest.approx(chance)


@pytest.mark.parametrize("name", ["rao_kupper", "davidson"])
def test_a_tie_pulls_the_two_together(name):
    at = least_point(lambda w, l: LOSSES[name](w, l, torch.ones_like(w), beta=1.0))
    assert at == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("e", [0.1, 0.3])
def test_cdpo_and_exo_agree_on_where_to_stop(e):
    """Both are least where the policy's choice has the label's odds: d = ln((1 - e) / e) / beta."""
    expected = math.log((1 - e) / e) / 0.5
    assert least_point(lambda w, l: LOSSES["cdpo"](w, l, beta=0.5, e=e)) == pytest.approx(expected, abs=1e-3)
    assert least_point(lambda w, l: LOSSES["exo"](w, l, beta=0.5, e=e)) == pytest.approx(expected, abs=1e-3)
    assert float(LOSSES["exo"](t(expected), t(0), beta=0.5, e=e)) == pytest.approx(0, abs=1e-12)


def test_exo_grows_without_bound_as_e_vanishes():
    """The price of q < 1 is (1 - q) ln(1 / e): each factor of 1e-10 in e adds (1 - q) 10 ln 10."""
    exo = LOSSES["exo"]
    same(exo(W, L, e=1e-30) - exo(W, L, e=1e-20), torch.sigmoid(-0.1 * (W - L)) * 10 * math.log(10), rtol=1e-8)


@pytest.mark.parametrize("e", [0.05, 0.3, 0.45])
def test_rdpo_is_unbiased_under_label_noise(e):
    """Its mean over labels that are wrong with chance e is the dpo loss of the right label."""
    right, wrong = LOSSES["rdpo"](W, L, e=e), LOSSES["rdpo"](L, W, e=e)
    same((1 - e) * right + e * wrong, LOSSES["dpo"](W, L), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("e", [0.0, 0.1, 0.4])
def test_cdpo_is_dpo_under_a_soft_label(e):
    same(LOSSES["cdpo"](W, L, e=e), soft(LOSSES["dpo"], YES - e, r_w=W, r_l=L))


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
def test_soft_forms_are_the_papers_own(p):
    """sppo's target (p - 1/2) / beta, nca's weights (p, 1 - p), ipo's shrunken margin: the same up to a constant."""
    r_w, r_l = W.clone().requires_grad_(), L.clone().requires_grad_()
    q, pp, c = {"r_w": r_w, "r_l": r_l}, NO + p, (p - 0.5) / 0.3
    sppo = slopes(soft(LOSSES["sppo"], pp, **q, beta=0.3), r_w, r_l)
    for found, paper in zip(sppo, slopes((r_w - c) ** 2 + (r_l + c) ** 2, r_w, r_l), strict=True):
        same(found, paper, atol=1e-9)
    ipo = slopes(soft(LOSSES["ipo"], pp, **q, tau=0.3), r_w, r_l)
    for found, paper in zip(ipo, slopes((r_w - r_l - c) ** 2, r_w, r_l), strict=True):
        same(found, paper, atol=1e-9)
    paper = -p * logsigmoid(r_w) - (1 - p) * logsigmoid(r_l) - 0.5 * logsigmoid(-r_w) - 0.5 * logsigmoid(-r_l)
    same(soft(LOSSES["nca"], pp, **q, beta=1.0), paper)


@pytest.mark.parametrize(
    "name", [n for n, f in LOSSES.items() if f.family in ("pair", "reward") and not f.why_not_soft]
)
def test_an_even_label_says_nothing_between_equals(name):
    """p = 1/2 and two responses alike in everything: what it gives w it gives l."""
    loss = LOSSES[name]
    q = {n: t(6.0) if n.startswith("n_") else t(-0.7) for n in loss.needs}
    q |= {n: t(0.0) for n in ("margin", "tie", "delta") if n in q}
    sides = [n for n in ("r_w", "logp_w", "R_w") if n in q]
    for n in sides:
        q[n].requires_grad_()
        q[n[:-1] + "l"].requires_grad_()
    soft(loss, t(0.5), **q).sum().backward()
    assert sides
    for n in sides:
        same(q[n].grad, q[n[:-1] + "l"].grad)


def test_ln_2_at_step_0():
    """With the policy at its reference, every loss of dpo's kind is ln 2: the check that a run makes before step 0."""
    q = {n: t(0) for n in ("r_w", "r_l", "kl_w", "kl_l", "aligned_w", "aligned_l", "past_logp_l", "past_ref_logp_l")}
    q |= {"n_w": t(7), "n_l": t(3), "past_logp_w": t(-4), "past_ref_logp_w": t(-4)}
    q |= {"logp_w": t(-20), "logp_l": t(-9), "ref_logp_w": t(-20), "ref_logp_l": t(-9)}
    kin = ["dpo", "cdpo", "rdpo", "f_dpo", "chipo", "dpop", "tdpo2", "ln_dpo", "ld_dpo", "wpo", "dr_dpo", "aot"]
    for name in [*kin, "aot_unpaired"]:
        found = LOSSES[name](*(q[n] for n in LOSSES[name].takes))
        assert float(found.mean()) == pytest.approx(math.log(2)), name
    plain = LOSSES["ld_dpo"](*(q[n] for n in LOSSES["ld_dpo"].takes), reference="plain")
    assert float(plain) != pytest.approx(math.log(2), abs=1e-3)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_simpo_conventions_and_its_kin(gamma):
    simpo, n_w, n_l = LOSSES["simpo"], t(5), t(9)
    ratio = simpo(LOGP_W, LOGP_L, n_w, n_l, beta=2.0, gamma=gamma, gamma_is="ratio")
    same(simpo(LOGP_W, LOGP_L, n_w, n_l, beta=2.0, gamma=2.0 * gamma), ratio)
    # without a margin, length-normalised dpo with a flat reference
    flat = LOSSES["ln_dpo"](LOGP_W, LOGP_L, n_w, n_l, beta=2.0)
    same(simpo(LOGP_W, LOGP_L, n_w, n_l, beta=2.0, gamma=0.0), flat)


def test_cpo_without_imitation_is_dpo_with_a_flat_reference():
    same(LOSSES["cpo"](LOGP_W, LOGP_L, YES, lam=0.0), LOSSES["dpo"](LOGP_W, LOGP_L))


def test_orpo_without_odds_is_imitation_and_with_even_odds_adds_ln_2():
    orpo, n_w, n_l = LOSSES["orpo"], t(5), t(10)
    same(orpo(LOGP_W, LOGP_L, n_w, n_l, lam=0.0), LOSSES["sft_nll"](LOGP_W) / n_w)
    even = orpo(LOGP_W, 2 * LOGP_W, n_w, n_l, lam=1.0) + LOGP_W / n_w
    same(even, t(math.log(2)))


def test_apo_pulls_the_ways_it_is_made_for():
    """apo_zero: w up, l down. apo_down: w down and, where the two lie close, l down further."""
    r_w, r_l = W.clone().requires_grad_(), L.clone().requires_grad_()
    up, down = slopes(LOSSES["apo_zero"](r_w, r_l), r_w, r_l)
    assert (up < 0).all() and (down > 0).all()
    r_w, r_l = t(0.0, -20.0, 5.0).requires_grad_(), t(-30.0, -80.0, -60.0).requires_grad_()
    both = slopes(LOSSES["apo_down"](r_w, r_l), r_w, r_l)
    assert (both[0] > 0).all() and (both[1] > 0).all()
    # the pull on the gap has the sign of dpo's
    gap = slopes(LOSSES["apo_down"](r_w, r_l) - torch.sigmoid(0.1 * r_w), r_w)[0]
    assert (gap < 0).all()


@pytest.mark.parametrize("delta", [-4.0, 0.0, 1.5])
def test_bco_shifts_as_its_delta_and_bounds_dpo(delta):
    bco = LOSSES["bco"]
    same(bco(W, L, t(delta), beta=1.0), bco(W - delta, L - delta, t(0), beta=1.0))
    same(bco(W, L, t(0)), bco(-L, -W, t(0)))  # good and bad are mirror images
    assert (bco(W, L, t(delta)) > LOSSES["dpo"](W, L)).all()  # the paper's theorem: an upper bound for any delta


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=2, max_size=8), st.randoms())
def test_aot_does_not_mind_which_rows_belong_together(pairs, random):
    w, l = (list(x) for x in zip(*pairs, strict=True))
    dpo, before = LOSSES["dpo"](t(*w), t(*l)), LOSSES["aot_unpaired"](t(*w), t(*l))
    random.shuffle(w)
    same(LOSSES["aot_unpaired"](t(*w), t(*l)), before)
    assert before.mean() <= dpo.mean() + 1e-12  # of all pairings, sorted to sorted costs a convex loss least
    zero = torch.zeros(len(l), dtype=torch.float64)
    same(LOSSES["aot"](t(*w), zero, t(*l), zero), before)


def test_hinge_bounds_the_errors_and_slic_is_hinge_without_imitation():
    assert (LOSSES["hinge"](W, L) >= (W <= L).double()).all()
    same(LOSSES["slic"](W, L, gap=1.0, lam=0.0), LOSSES["hinge"](W, L, beta=1.0))
    same(LOSSES["slic"](W, L, lam=0.3) - LOSSES["slic"](W, L, lam=0.0), 0.3 * LOSSES["sft_nll"](W))


def test_ipo_avg_of_one_token_is_ipo():
    same(LOSSES["ipo_avg"](W, L, t(1), t(1)), LOSSES["ipo"](W, L))
    assert least_point(lambda w, l: LOSSES["ipo"](w, l, tau=0.25)) == pytest.approx(2.0, abs=1e-3)


def all_orders(scores, ranks):
    """-log of the chance that Plackett-Luce draws an order in which nothing comes before a response of lower rank."""
    total = 0.0
    for order in itertools.permutations(range(len(scores))):
        if all(ranks[a] <= ranks[b] for a, b in itertools.pairwise(order)):
            left, chance = list(order), 1.0
            while left:
                chance *= math.exp(scores[left[0]]) / sum(math.exp(scores[j]) for j in left)
                left.pop(0)
            total += chance
    return -math.log(total)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-4, 4), min_size=1, max_size=5), st.integers(0, 5), st.randoms())
def test_plackett_luce_against_every_order(scores, top, random):
    """A full ranking, and the best few with the rest tied last, are exact: a sum over all orders says the same."""
    ranks = [min(i, top) for i in range(len(scores))]
    places = list(range(len(scores)))
    random.shuffle(places)
    r, rank = t(*(scores[i] for i in places)), t(*(10.0 * ranks[i] - 3 for i in places))
    owner = torch.zeros(len(scores), dtype=torch.long)
    found = LOSSES["reward_plackett_luce"](r, rank, owner)
    same(found, t(all_orders(scores, ranks)), rtol=1e-8, atol=1e-9)
    same(LOSSES["plackett_luce"](r / 0.5, rank, owner, beta=0.5), found)


def test_plackett_luce_of_ties_says_nothing_among_them():
    r, owner = t(0.3, -1.0, 2.0).requires_grad_(), torch.zeros(3, dtype=torch.long)
    tied = LOSSES["reward_plackett_luce"](r, t(1, 1, 1), owner)
    (found,) = slopes(tied, r)
    assert tied.tolist() == [0.0] and found.tolist() == [0.0, 0.0, 0.0]
    # two tied at the top of one below: each is compared with that one only
    two = LOSSES["reward_plackett_luce"](r, t(0, 0, 1), owner)
    same(two, LOSSES["dpo"](t(0.3, -1.0), t(2.0, 2.0), beta=1.0).sum().reshape(1))


def test_plackett_luce_of_all_rankings_at_once_is_each_alone():
    owner = torch.tensor([2, 0, 2, 1, 0, 2, 1, 2])
    r, rank = t(0.1, -2.0, 3.0, 0.4, 1.0, -1.0, 0.2, 0.5), t(1, 0, 0, 0, 1, 2, 1, 2)
    whole = LOSSES["plackett_luce"](r, rank, owner)
    for i in range(3):
        mine = owner == i
        alone = LOSSES["plackett_luce"](r[mine], rank[mine], torch.zeros(int(mine.sum()), dtype=torch.long))
        same(whole[i : i + 1], alone)


@betas
def test_kto_mirrors_good_and_bad(beta):
    kto = LOSSES["kto"]
    z0 = t(1.3)
    same(kto(W, YES, z0, beta=beta) + kto(W, NO, z0, beta=beta), t(1.0))
    same(kto(z0, t(1), z0), t(0.5))
    # a good and a bad response with nothing to subtract are apo_zero
    pair = kto(W, YES, t(0), beta=beta) + kto(L, NO, t(0), beta=beta)
    same(pair, LOSSES["apo_zero"](W, L, beta=beta))


def test_bradley_terry_is_dpo_on_scores_and_centring_fixes_the_origin():
    bt = LOSSES["bradley_terry"]
    same(bt(W, L, NO), LOSSES["dpo"](W, L, beta=1.0))
    same(bt(W + 3, L + 3, NO), bt(W, L, NO), rtol=1e-8, atol=1e-8)
    same(bt(W, L, NO + 1.5), bt(W - 1.5, L, NO))
    # both scores moved together: only the centred loss minds, and wants their sum at zero
    assert least_point(lambda c, zero: bt(c + 2, c - 1, zero, centre=0.01)) == pytest.approx(-0.5, abs=1e-3)


def test_dpop_punishes_only_a_winner_below_its_reference():
    dpo, dpop = LOSSES["dpo"](W, L, beta=0.3), LOSSES["dpop"](W, L, beta=0.3)
    same(dpop[W >= 0], dpo[W >= 0])
    assert (dpop[W < 0] > dpo[W < 0]).all()


def test_tdpo2_moves_the_margin_by_the_difference_of_divergences():
    kl_w, kl_l = W.abs(), L.abs()
    found = LOSSES["tdpo2"](YES, NO, kl_w, kl_l, beta=0.5, alpha=0.7)
    same(found, LOSSES["dpo"](1 - 0.7 * (kl_l - kl_w), NO, beta=0.5))


def test_ld_dpo_without_the_rest_is_dpo_on_the_common_length():
    """alpha = 0 leaves what the first min(n_w, n_l) tokens say."""
    past = (NO - 3.0, NO, NO - 1.0, NO)
    same(LOSSES["ld_dpo"](W, L, *past, alpha=0.0), LOSSES["dpo"](W + 2, L))


def test_wpo_s_gradient_is_dpo_s_times_the_weight():
    for a, b in [(-1.0, 0.2), (0.5, 1.0)]:
        r_w = W.clone().requires_grad_()
        (found,) = slopes(LOSSES["wpo"](r_w, L, NO + a, NO + b), r_w)
        same(found, slopes(LOSSES["dpo"](r_w, L), r_w)[0] * min(1.0, math.exp(a + b)))


def test_rpo_and_cpo_add_imitation_of_the_winner():
    nll, n = LOSSES["sft_nll"](LOGP_W), NO + 6
    dpo = LOSSES["dpo"](W, L)
    same(LOSSES["rpo"](W, L, LOGP_W, n, eta=0.5) - dpo, 0.5 * nll)
    same(LOSSES["rpo"](W, L, LOGP_W, n, eta=0.5, nll="mean") - dpo, 0.5 * nll / n)
    bare = LOSSES["cpo"](LOGP_W, LOGP_L, n, lam=0.0)
    same(LOSSES["cpo"](LOGP_W, LOGP_L, n, lam=1.0) - bare, nll)
    same(LOSSES["cpo"](LOGP_W, LOGP_L, n, lam=1.0, nll="mean") - bare, nll / n)


def test_every_loss_has_an_identity_here():
    said = Path(__file__).read_text(encoding="utf-8")
    assert not [name for name in LOSSES if f'LOSSES["{name}"]' not in said and f'"{name}"' not in said]
