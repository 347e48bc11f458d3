"""Losses on pairs of responses, for a policy. Shapes (E,), one per pair; beta and the like are plain numbers.

Written so that values and gradients stay finite in float32 for log ratios up to +-1e4: the logistic only as
`logsigmoid`, the product of an exponential and a vanishing factor as one exponential of a sum, a lone exponential
through `_expm1`. The first line of each docstring is the formula, with d = r_w - r_l; docs/formulas.md is made of them.
What is said of TRL was read in its versions 0.24 and 1.16.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from holdfast.losses.registry import check, pair_loss

_OWN_LABEL = "it carries its own chance e of a wrong label; dpo takes a probability"
_WHOLE_BATCH = "it compares whole batches, in which a single row's label has no place"


@pair_loss(paper="2305.18290", equation="eq. 7")
def dpo(r_w: Tensor, r_l: Tensor, *, beta: float = 0.1) -> Tensor:
    """-log sigma(beta d)

    ln 2 where policy and reference agree.
    """
    check(beta > 0, "dpo", "beta", beta, "beta > 0")
    return -logsigmoid(beta * (r_w - r_l))


@pair_loss(paper="ericmitchell.ai/cdpo.pdf", equation="eq. 3", why_not_soft=_OWN_LABEL)
def cdpo(r_w: Tensor, r_l: Tensor, *, beta: float = 0.1, e: float = 0.1) -> Tensor:
    """-(1 - e) log sigma(beta d) - e log sigma(-beta d)

    Conservative DPO: labels are wrong with chance e. Least at d = ln((1 - e) / e) / beta. TRL 1.16's `sigmoid` ignores
    its label_smoothing; 0.24 gives this loss.
    """
    check(beta > 0, "cdpo", "beta", beta, "beta > 0")
    check(0 <= e < 0.5, "cdpo", "e", e, "0 <= e < 0.5")
    z = beta * (r_w - r_l)
    return -(1 - e) * logsigmoid(z) - e * logsigmoid(-z)


@pair_loss(paper="2403.00409", equation="the rDPO loss", why_not_soft=_OWN_LABEL)
def rdpo(r_w: Tensor, r_l: Tensor, *, beta: float = 0.1, e: float = 0.1) -> Tensor:
    """(-(1 - e) log sigma(beta d) + e log sigma(-beta d)) / (1 - 2 e)

    Robust DPO: its mean over labels that are wrong with chance e is the dpo loss of the right labels. Unbounded below.
    """
    check(beta > 0, "rdpo", "beta", beta, "beta > 0")
    check(0 <= e < 0.5, "rdpo", "e", e, "0 <= e < 0.5")
    z = beta * (r_w - r_l)
    return (-(1 - e) * logsigmoid(z) + e * logsigmoid(-z)) / (1 - 2 * e)


@pair_loss(paper="2310.12036", equation="eq. 17")
def ipo(r_w: Tensor, r_l: Tensor, *, tau: float = 0.1) -> Tensor:
    """(d - 1 / (2 tau))^2

    On summed log ratios, as the paper writes it. With a probability p as label its least point is (2 p - 1) / (2 tau).
    TRL averages per token: `ipo_avg`.
    """
    check(tau > 0, "ipo", "tau", tau, "tau > 0")
    return (r_w - r_l - 1 / (2 * tau)) ** 2


@pair_loss(paper="2310.12036", equation="eq. 17, per token", per_token=True)
def ipo_avg(r_w: Tensor, r_l: Tensor, n_w: Tensor, n_l: Tensor, *, tau: float = 0.1) -> Tensor:
    """(r_w / n_w - r_l / n_l - 1 / (2 tau))^2

    TRL's ipo, which names its beta what is tau here; it says that the authors' own results used this form.
    """
    check(tau > 0, "ipo_avg", "tau", tau, "tau > 0")
    return (r_w / n_w - r_l / n_l - 1 / (2 * tau)) ** 2


@pair_loss(paper="2309.06657", equation="hinge-norm loss")
def hinge(r_w: Tensor, r_l: Tensor, *, beta: float = 0.1) -> Tensor:
    """max(0, 1 - beta d)

    RSO's hinge on log ratios. A pair with beta d > 1 gives no gradient.
    """
    check(beta > 0, "hinge", "beta", beta, "beta > 0")
    return torch.relu(1 - beta * (r_w - r_l))


@pair_loss(paper="2305.10425", equation="SLiC-HF loss, y_w as the text to imitate")
def slic(logp_w: Tensor, logp_l: Tensor, *, gap: float = 1.0, lam: float = 0.1) -> Tensor:
    """max(0, gap - logp_w + logp_l) - lam logp_w

    No reference; imitation of w keeps the policy in place. TRL cites this paper for `hinge`, which has a reference.
    """
    check(gap > 0, "slic", "gap", gap, "gap > 0")
    check(lam >= 0, "slic", "lam", lam, "lam >= 0")
    return torch.relu(gap - logp_w + logp_l) - lam * logp_w


@pair_loss(paper="2402.00856", equation="eq. 16", why_not_soft=_OWN_LABEL)
def exo(r_w: Tensor, r_l: Tensor, *, beta: float = 0.1, e: float = 1e-3) -> Tensor:
    """q ln(q / (1 - e)) + (1 - q) ln((1 - q) / e), q = sigma(beta d)

    KL from the policy's choice to the label, the other way round than cdpo; zero at q = 1 - e. Needs e > 0: with e = 0
    the loss is infinite. TRL 0.24 puts 1e-3 in place of 0 without a word.
    """
    check(beta > 0, "exo", "beta", beta, "beta > 0")
    check(0 < e < 0.5, "exo", "e", e, "0 < e < 0.5")
    z = beta * (r_w - r_l)
    return torch.sigmoid(z) * (logsigmoid(z) - math.log1p(-e)) + torch.sigmoid(-z) * (logsigmoid(-z) - math.log(e))


@pair_loss(paper="2402.05369", equation="NCA loss, K = 2")
def nca(r_w: Tensor, r_l: Tensor, *, beta: float = 0.1) -> Tensor:
    """-log sigma(beta r_w) - 1/2 log sigma(-beta r_w) - 1/2 log sigma(-beta r_l)

    Absolute: it also holds the winner's ratio down. With a probability p as label it is the paper's loss for the
    weights (p, 1 - p).
    """
    check(beta > 0, "nca", "beta", beta, "beta > 0")
    return -logsigmoid(beta * r_w) - (logsigmoid(-beta * r_w) + logsigmoid(-beta * r_l)) / 2


@pair_loss(paper="2405.00675", equation="eq. 4.7, P = 1 and 0")
def sppo(r_w: Tensor, r_l: Tensor, *, beta: float = 1e-3) -> Tensor:
    """(r_w - 1 / (2 beta))^2 + (r_l + 1 / (2 beta))^2

    beta is 1 / eta of the paper (eta = 1000). With a probability p as label the target is (p - 1/2) / beta, as there.
    """
    check(beta > 0, "sppo", "beta", beta, "beta > 0")
    return (r_w - 1 / (2 * beta)) ** 2 + (r_l + 1 / (2 * beta)) ** 2


@pair_loss(paper="2408.06266", equation="eq. 7")
def apo_zero(r_w: Tensor, r_l: Tensor, *, beta: float = 0.1) -> Tensor:
    """1 - sigma(beta r_w) + sigma(beta r_l)

    For winners better than what the policy writes: w up, l down.
    """
    check(beta > 0, "apo_zero", "beta", beta, "beta > 0")
    return torch.sigmoid(-beta * r_w) + torch.sigmoid(beta * r_l)


@pair_loss(paper="2408.06266", equation="eq. 8")
def apo_down(r_w: Tensor, r_l: Tensor, *, beta: float = 0.1) -> Tensor:
    """sigma(beta r_w) + 1 - sigma(beta d)

    For winners worse than what the policy writes: w down, l down further.
    """
    check(beta > 0, "apo_down", "beta", beta, "beta > 0")
    return torch.sigmoid(beta * r_w) + torch.sigmoid(-beta * (r_w - r_l))


def bco_delta(delta: Tensor, r_w: Tensor, r_l: Tensor, *, beta: float = 0.1, decay: float = 0.9) -> Tensor:
    """decay delta + (1 - decay) (mean(beta r_w) + mean(beta r_l)) / 2

    The next value of bco's reward shift, (), without graph, from the ratios of a whole step. It starts at 0, the
    rewards at step 0, and is state: a checkpoint must keep it. TRL 0.24 keeps the mean over all steps so far; 1.16's
    `bco_pair` has no shift at all. The paper's own decay was not found.
    """
    check(0 <= decay < 1, "bco", "decay", decay, "0 <= decay < 1")
    now = beta * (r_w.detach().mean() + r_l.detach().mean()) / 2
    return decay * delta + (1 - decay) * now


@pair_loss(paper="2404.04656", equation="paired form", updates={"delta": bco_delta})
def bco(r_w: Tensor, r_l: Tensor, delta: Tensor, *, beta: float = 0.1) -> Tensor:
    """-log sigma(beta r_w - delta) - log sigma(delta - beta r_l)

    A classifier of good and bad by reward, about the running mean reward delta (`bco_delta`, whose decay is set beside
    beta).
    """
    check(beta > 0, "bco", "beta", beta, "beta > 0")
    return -logsigmoid(beta * r_w - delta) - logsigmoid(delta - beta * r_l)


@pair_loss(paper="2406.05882", equation="paired, logistic", couples_rows=True, why_not_soft=_WHOLE_BATCH)
def aot(logp_w: Tensor, logp_l: Tensor, ref_logp_w: Tensor, ref_logp_l: Tensor, *, beta: float = 0.1) -> Tensor:
    """-log sigma(beta (sorted(logp_w - logp_l) - sorted(ref_logp_w - ref_logp_l)))

    Row i of the result belongs to the i-th smallest gaps, not to pair i; their mean is the loss. TRL sorts within each
    micro-batch of each process.
    """
    check(beta > 0, "aot", "beta", beta, "beta > 0")
    gaps, ref_gaps = (logp_w - logp_l).sort(stable=True).values, (ref_logp_w - ref_logp_l).sort(stable=True).values
    return -logsigmoid(beta * (gaps - ref_gaps))


@pair_loss(paper="2406.05882", equation="unpaired, logistic", couples_rows=True, why_not_soft=_WHOLE_BATCH)
def aot_unpaired(r_w: Tensor, r_l: Tensor, *, beta: float = 0.1) -> Tensor:
    """-log sigma(beta (sorted(r_w) - sorted(r_l)))

    As `aot`, for winners and losers that need not answer the same prompts. TRL 0.24 names this aot_pair.
    """
    check(beta > 0, "aot_unpaired", "beta", beta, "beta > 0")
    return -logsigmoid(beta * (r_w.sort(stable=True).values - r_l.sort(stable=True).values))


@pair_loss(paper="2406.08414", equation="eq. 5")
def discopop(r_w: Tensor, r_l: Tensor, *, beta: float = 0.05, tau: float = 0.05) -> Tensor:
    """(1 - m) softplus(-z) + m exp(-z), z = beta d, m = sigma(z / tau)

    Not convex: a second low point lies at z < 0. Written as exp(log m - z); the form above, which TRL computes, is
    0 times infinity for z below -89.
    """
    check(beta > 0, "discopop", "beta", beta, "beta > 0")
    check(0 < tau <= 1, "discopop", "tau", tau, "0 < tau <= 1")
    z = beta * (r_w - r_l)
    return torch.sigmoid(-z / tau) * softplus(-z) + torch.exp(logsigmoid(z / tau) - z)


@pair_loss(paper="2309.16240", equation="f-DPO loss, f' of table 1")
def f_dpo(
    r_w: Tensor,
    r_l: Tensor,
    *,
    beta: float = 0.1,
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "reverse_kl",
    alpha: float | None = None,
) -> Tensor:
    """-log sigma(beta g(r_w) - beta g(r_l)), g(r) by divergence: reverse_kl r; forward_kl -exp(-r); js log sigma(r);
    alpha (1 - exp(-alpha r)) / alpha

    g(r) = f'(exp r) less its constant. alpha goes from 0 (reverse KL) to 1 (forward KL). TRL 1.16's alpha is 1 - alpha;
    0.24's is ours. exp(-r) goes on as its tangent where it passes e^30, so that a winner at r = -1e4 still gives a
    gradient.
    """
    check(beta > 0, "f_dpo", "beta", beta, "beta > 0")
    check((alpha is not None) == (divergence == "alpha"), "f_dpo", "alpha", alpha, "alpha with divergence 'alpha' only")
    if divergence == "reverse_kl" or alpha == 0:
        return -logsigmoid(beta * (r_w - r_l))
    if divergence == "js":
        return -logsigmoid(beta * (logsigmoid(r_w) - logsigmoid(r_l)))
    a = 1.0 if alpha is None else alpha
    check(0 < a <= 1, "f_dpo", "alpha", alpha, "0 <= alpha <= 1")
    return -logsigmoid(beta / a * (_expm1(-a * r_l) - _expm1(-a * r_w)))


@pair_loss(paper="2407.13399", equation="algorithm 1")
def chipo(r_w: Tensor, r_l: Tensor, *, beta: float = 0.1, r_max: float = 10.0) -> Tensor:
    """-log sigma(clip(beta (phi(r_w) - phi(r_l)), -2 r_max, 2 r_max)), phi(r) = exp(r) + r

    Pessimistic DPO: regularised by chi-squared as well as KL. r_max bounds the true reward. A pair beyond the clip
    gives no gradient, as in the paper, also when it is ordered wrongly.
    """
    check(beta > 0, "chipo", "beta", beta, "beta > 0")
    check(r_max > 0, "chipo", "r_max", r_max, "r_max > 0")
    z = beta * (_expm1(r_w) - _expm1(r_l) + r_w - r_l)
    return -logsigmoid(z.clamp(-2 * r_max, 2 * r_max))


@pair_loss(paper="2402.13228", equation="DPOP loss")
def dpop(r_w: Tensor, r_l: Tensor, *, beta: float = 0.3, lam: float = 50.0) -> Tensor:
    """-log sigma(beta (d - lam max(0, -r_w)))

    DPO-Positive: a winner below its reference costs.
    """
    check(beta > 0, "dpop", "beta", beta, "beta > 0")
    check(lam >= 0, "dpop", "lam", lam, "lam >= 0")
    return -logsigmoid(beta * (r_w - r_l - lam * torch.relu(-r_w)))


@pair_loss(paper="2405.16436", equation="algorithm 2; nll mean also 2404.19733")
def rpo(
    r_w: Tensor,
    r_l: Tensor,
    logp_w: Tensor,
    n_w: Tensor,
    *,
    beta: float = 0.1,
    eta: float = 0.005,
    nll: Literal["sum", "mean"] = "sum",
) -> Tensor:
    """-log sigma(beta d) - eta logp_w, with nll = "mean" - eta logp_w / n_w

    Imitation of w's response tokens beside dpo. The paper sums over tokens, and has the mean in its appendix F; so does
    the iterative RPO, with eta = 1. TRL 0.24 (rpo_alpha) takes one mean over all of a batch's tokens.
    """
    check(beta > 0, "rpo", "beta", beta, "beta > 0")
    check(eta >= 0, "rpo", "eta", eta, "eta >= 0")
    return -logsigmoid(beta * (r_w - r_l)) - eta * (logp_w if nll == "sum" else logp_w / n_w)


@pair_loss(paper="2404.11999", equation="TDPO2 loss")
def tdpo2(r_w: Tensor, r_l: Tensor, kl_w: Tensor, kl_l: Tensor, *, beta: float = 0.1, alpha: float = 0.5) -> Tensor:
    """-log sigma(beta d - alpha beta (kl_l - sg(kl_w)))

    sg stops the gradient. Needs the reference's whole distribution at every position of both responses.
    """
    check(beta > 0, "tdpo2", "beta", beta, "beta > 0")
    check(alpha >= 0, "tdpo2", "alpha", alpha, "alpha >= 0")
    return -logsigmoid(beta * (r_w - r_l - alpha * (kl_l - kl_w.detach())))


@pair_loss(paper="2405.14734", equation="eq. 6", per_token=True)
def simpo(
    logp_w: Tensor,
    logp_l: Tensor,
    n_w: Tensor,
    n_l: Tensor,
    *,
    beta: float = 2.0,
    gamma: float = 1.0,
    gamma_is: Literal["absolute", "ratio"] = "absolute",
) -> Tensor:
    """-log sigma(beta (logp_w / n_w - logp_l / n_l) - gamma), with gamma_is = "ratio" - beta gamma in place of - gamma

    No reference. The paper and TRL's simpo_gamma are absolute; the authors' code names its gamma_beta_ratio. TRL adds
    the imitation of w unless cpo_alpha = 0.
    """
    check(beta > 0, "simpo", "beta", beta, "beta > 0")
    check(gamma >= 0, "simpo", "gamma", gamma, "gamma >= 0")
    return -logsigmoid(beta * (logp_w / n_w - logp_l / n_l) - (gamma if gamma_is == "absolute" else beta * gamma))


@pair_loss(paper="2401.08417", equation="eq. 3 and the NLL term")
def cpo(
    logp_w: Tensor,
    logp_l: Tensor,
    n_w: Tensor,
    *,
    beta: float = 0.1,
    lam: float = 1.0,
    nll: Literal["sum", "mean"] = "sum",
) -> Tensor:
    """-log sigma(beta (logp_w - logp_l)) - lam logp_w, with nll = "mean" - lam logp_w / n_w

    No reference. TRL takes one mean over all tokens of a batch for the second term.
    """
    check(beta > 0, "cpo", "beta", beta, "beta > 0")
    check(lam >= 0, "cpo", "lam", lam, "lam >= 0")
    return -logsigmoid(beta * (logp_w - logp_l)) - lam * (logp_w if nll == "sum" else logp_w / n_w)


@pair_loss(paper="2403.07691", equation="eq. 6 and 7", per_token=True)
def orpo(logp_w: Tensor, logp_l: Tensor, n_w: Tensor, n_l: Tensor, *, lam: float = 0.1) -> Tensor:
    """-logp_w / n_w - lam log sigma(o_w - o_l), o = ln(p / (1 - p)), p = exp(logp / n)

    No reference. TRL's imitation term includes the prompt's tokens and is one mean over a batch; it names lam beta.
    """
    check(lam >= 0, "orpo", "lam", lam, "lam >= 0")
    mean_w, mean_l = logp_w / n_w, logp_l / n_l
    return -mean_w - lam * logsigmoid(mean_w - _log1mexp(mean_w) - mean_l + _log1mexp(mean_l))


@pair_loss(paper="2411.15124", equation="length-normalised DPO", per_token=True)
def ln_dpo(r_w: Tensor, r_l: Tensor, n_w: Tensor, n_l: Tensor, *, beta: float = 5.0) -> Tensor:
    """-log sigma(beta (r_w / n_w - r_l / n_l))

    Length-normalised: beta is on another scale than dpo's. TRL 1.16 names it sigmoid_norm.
    """
    check(beta > 0, "ln_dpo", "beta", beta, "beta > 0")
    return -logsigmoid(beta * (r_w / n_w - r_l / n_l))


@pair_loss(paper="2409.06411", equation="LD-DPO objective")
def ld_dpo(
    r_w: Tensor,
    r_l: Tensor,
    past_logp_w: Tensor,
    past_logp_l: Tensor,
    past_ref_logp_w: Tensor,
    past_ref_logp_l: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 0.5,
    reference: Literal["weighted", "plain"] = "weighted",
) -> Tensor:
    """-log sigma(beta (s_w - s_l)), s = r - (1 - alpha) (past_logp - past_ref_logp), with reference = "plain"
    s = r - (1 - alpha) past_logp

    Tokens past the shorter response's length weigh alpha: in policy and reference alike (as TRL has it), or in the
    policy alone; then ln 2 is not the value at step 0. alpha = 1 is dpo.
    """
    check(beta > 0, "ld_dpo", "beta", beta, "beta > 0")
    check(0 <= alpha <= 1, "ld_dpo", "alpha", alpha, "0 <= alpha <= 1")
    past_w = past_logp_w - past_ref_logp_w if reference == "weighted" else past_logp_w
    past_l = past_logp_l - past_ref_logp_l if reference == "weighted" else past_logp_l
    return -logsigmoid(beta * (r_w - r_l - (1 - alpha) * (past_w - past_l)))


@pair_loss(paper="2406.11827", equation="eq. 2, sampled alignment")
def wpo(
    r_w: Tensor, r_l: Tensor, aligned_w: Tensor, aligned_l: Tensor, *, beta: float = 0.1, cap: float = 1.0
) -> Tensor:
    """-min(cap, exp(aligned_w + aligned_l)) log sigma(beta d)

    Pairs that the policy itself might have written weigh more; the weight has no gradient. The authors' code and
    TRL 0.24 cap it at 1, TRL 1.16 does not (cap = inf).
    """
    check(beta > 0, "wpo", "beta", beta, "beta > 0")
    check(cap > 0, "wpo", "cap", cap, "cap > 0")
    weight = torch.exp(aligned_w.detach() + aligned_l.detach()).clamp(max=cap)
    return -weight * logsigmoid(beta * (r_w - r_l))


@pair_loss(
    paper="2407.07880", equation="Dr. DPO loss", couples_rows=True, why_not_soft="its weights are over whole rows"
)
def dr_dpo(r_w: Tensor, r_l: Tensor, *, beta: float = 0.1, beta_prime: float = 1.0) -> Tensor:
    """-beta_prime ln mean exp(-L / beta_prime), L = -log sigma(beta d) of every row

    Rows with a large loss, perhaps wrongly labelled, weigh less. The batch's one value, repeated in every row.
    """
    check(beta > 0, "dr_dpo", "beta", beta, "beta > 0")
    check(beta_prime > 0, "dr_dpo", "beta_prime", beta_prime, "beta_prime > 0")
    losses = -logsigmoid(beta * (r_w - r_l))
    least = losses.detach().min()  # so that no exponential overflows, and a large beta_prime loses no digits
    value = least - beta_prime * torch.log1p(torch.expm1((least - losses) / beta_prime).mean())
    return value.expand_as(losses)


@pair_loss(paper="2409.17431", equation="DPO with Rao-Kupper")
def rao_kupper(r_w: Tensor, r_l: Tensor, tie: Tensor, *, beta: float = 0.1, nu: float = 3.0) -> Tensor:
    """win: -log sigma(beta d - ln nu); tie: -log((nu^2 - 1) sigma(beta d - ln nu) sigma(-beta d - ln nu))

    A tie is an outcome of its own: (nu - 1) / (nu + 1) of even pairs, one half with nu = 3. nu near 1 is dpo.
    """
    check(beta > 0, "rao_kupper", "beta", beta, "beta > 0")
    check(nu > 1, "rao_kupper", "nu", nu, "nu > 1")
    z = beta * (r_w - r_l)
    win = -logsigmoid(z - math.log(nu))
    return win + tie * (-logsigmoid(-z - math.log(nu)) - math.log(nu * nu - 1))


@pair_loss(paper="2409.17431", equation="DPO with Davidson")
def davidson(r_w: Tensor, r_l: Tensor, tie: Tensor, *, beta: float = 0.1, nu: float = 1.0) -> Tensor:
    """win: ln(1 + exp(-z) + 2 nu exp(-z / 2)), z = beta d; tie: the same - ln(2 nu) + z / 2

    A tie is an outcome of its own: nu / (1 + nu) of even pairs. nu near 0 is dpo.
    """
    check(beta > 0, "davidson", "beta", beta, "beta > 0")
    check(nu > 0, "davidson", "nu", nu, "nu > 0")
    z = beta * (r_w - r_l)
    win = torch.logsumexp(torch.stack([torch.zeros_like(z), -z, math.log(2 * nu) - z / 2]), dim=0)
    return win + tie * (z / 2 - math.log(2 * nu))


def _expm1(x: Tensor) -> Tensor:
    """exp(x) - 1, continued beyond x = 30 by its tangent: increasing and finite, with a finite gradient, for any x."""
    steep = math.exp(30)
    return torch.where(x > 30, steep * (x - 29) - 1, torch.expm1(x.clamp(max=30)))


def _log1mexp(x: Tensor) -> Tensor:
    """ln(1 - exp(x)), x < 0, exact near 0 and far from it; x = 0, a certain response, is taken as a rounding below."""
    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    near = x > -math.log(2)
    # Each branch is given only arguments at which its gradient is finite: torch.where multiplies the other's by zero.
    small, large = torch.where(near, x, -1.0), torch.where(near, -1.0, x)
    return torch.where(near, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))
