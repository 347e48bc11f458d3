"""Each of TRL's losses, computed by TRL's own code on log-probabilities that are made up, beside ours on the same ones.

TRL's trainers are made without their constructor and given a stand-in for the model, which answers with these log-probabilities; what runs
is their own `_compute_loss`, `compute_loss` or `get_batch_loss_metrics`. Compared are the batch's loss and its derivative by every token's
log-probability (a reward model: by every score).
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from trl import DPOTrainer, KTOTrainer, RewardTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from holdfast.losses import LOSSES, kto_z0
from rows import Row

# Axes: E pairs (chosen in the first half of 2 E sequences), L places, V vocabulary. Log-probabilities stand at the place that predicts.

E, L, V = 48, 21, 11

# Where the two differ: who is right, and why.
WHY_CDPO = (
    "TRL's default loss ignores label_smoothing. cdpo (eq. 3 of the DPO authors' note) is the loss that it names;"
    " `holdfast recipe` says so"
)
WHY_IPO = (
    "2310.12036 eq. 17 has summed log-ratios: `ipo`. TRL's mean per token is our `ipo_avg`; TRL says that the "
    "authors' results used it. Both are here, by name"
)
WHY_BCO = (
    "with the reward shift at its start, 0. TRL never moves it; 2404.04656 has a running shift, and ours moves it"
    " after each step"
)
WHY_RPO = (
    "2405.16436 takes the imitation term per response; TRL takes one mean over a micro-batch's tokens, in which "
    "long responses weigh more. `holdfast recipe` writes the sum above"
)
WHY_DISCOPOP = (
    "TRL computes exp(-z) and multiplies it by a factor that is 0: 0 x inf = nan for z below -88. Ours is the "
    "same formula, 2406.08414 eq. 5, in one exponential"
)
WHY_CPO = (
    "2401.08417 sums the imitation term over a response's tokens (nll = sum); TRL takes one mean over a micro-"
    "batch's tokens. `holdfast recipe` writes the sum above"
)
WHY_SIMPO = (
    "TRL's cpo_alpha is 1 unless told: it adds imitation, which 2405.14734 eq. 6 does not have. `holdfast recipe`"
    " writes the sum and says so"
)
WHY_ORPO = (
    "2403.07691 eq. 6 has the imitation term on the response alone, per response; TRL's includes the prompt's "
    "tokens and is one mean over a micro-batch"
)


class Pairs:
    """Sequences of a random prompt and two responses, with log-probabilities of policy and reference. Places of prompt and padding hold 0."""

    def __init__(self, seed: int, spread: float):
        g = torch.Generator().manual_seed(seed)
        prompt_E = torch.randint(1, 5, (E,), generator=g)
        self.n = torch.randint(1, L - 5, (2 * E,), generator=g)
        self.n[: E // 4] = self.n[E : E + E // 4]  # some of equal length
        at = torch.arange(L)
        start = prompt_E.repeat(2)[:, None]
        self.attention = (at < start + self.n[:, None]).long()
        self.completion = ((at >= start) & (self.attention == 1)).long()
        self.ids = torch.randint(3, V, (2 * E, L), generator=g) * self.attention
        mask = self.completion[:, 1:].bool()
        base = -torch.rand(2 * E, L - 1, generator=g) * 4
        drift = torch.randn(2 * E, L - 1, generator=g) * spread / self.n[:, None].sqrt()
        self.ref = torch.where(mask, base, 0.0)
        self.policy = torch.where(mask, (base + drift).clamp(max=-1e-3), 0.0)
        self.sum_sq = torch.where(mask, -torch.rand(2 * E, L - 1, generator=g) * 2, 0.0)
        self.mask = mask

    def quantities(self, policy: Tensor) -> dict[str, Tensor]:
        """What LOSSES may name, from per-token log-probabilities."""
        position = self.mask.cumsum(1)
        shared = torch.minimum(self.n[:E], self.n[E:]).repeat(2)[:, None]
        past = self.mask & (position > shared)
        n = self.n.float()
        of = {"logp": policy.sum(1), "ref_logp": self.ref.sum(1), "n": n}
        of |= {
            "r": of["logp"] - of["ref_logp"],
            "past_logp": (policy * past).sum(1),
            "past_ref_logp": (self.ref * past).sum(1),
        }
        of["aligned"] = ((policy - self.sum_sq) * self.mask).detach().sum(1) / n
        return {f"{k}_{side}": v[:E] if side == "w" else v[E:] for k, v in of.items() for side in "wl"}


class Answers(nn.Module):
    """A stand-in for a model: the given per-token log-probabilities, whatever it is asked."""

    is_gradient_checkpointing = False

    def __init__(self, answers: Callable[[Tensor], dict[str, Tensor]]):
        super().__init__()
        self.answers = answers

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        said = self.answers(input_ids)
        extra = {k: torch.zeros_like(said["log_probs"]) for k in ("entropy", "mean_logits")}
        return SimpleNamespace(**{**extra, "is_top1": torch.zeros_like(said["log_probs"], dtype=torch.bool), **said})


ACCELERATOR = SimpleNamespace(
    device=torch.device("cpu"),
    gather=lambda x: x,
    gather_for_metrics=lambda x: x,
    autocast=contextlib.nullcontext,
)


def trainer(cls: type, model: nn.Module, **settings: Any) -> Any:
    """An instance of a TRL trainer with just these attributes."""
    made = object.__new__(cls)
    made.model = model
    made.accelerator = ACCELERATOR
    made._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    made._total_train_tokens, made._tp_size = 0, 1
    made.aux_loss_enabled = False
    for name, value in settings.items():
        setattr(made, name, value)
    return made


def dpo_theirs(pairs: Pairs, policy: Tensor, **said: Any) -> Tensor:
    settings = {
        "beta": 0.1, "loss_types": ["sigmoid"], "loss_weights": [1.0], "ld_alpha": None, "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5, "label_smoothing": 0.0, "use_weighting": False,
    } | said  # fmt: skip
    tau = settings.pop("discopop_tau", 0.05)
    model = Answers(lambda _: {"log_probs": policy, "log_sum_sq_probs": pairs.sum_sq})
    made = trainer(
        DPOTrainer, model, ref_model=Answers(lambda _: {"log_probs": pairs.ref}), precompute_ref_logps=False,
        args=SimpleNamespace(discopop_tau=tau, gradient_checkpointing_kwargs=None), **settings,
    )  # fmt: skip
    return made._compute_loss(
        model, {"input_ids": pairs.ids, "attention_mask": pairs.attention, "completion_mask": pairs.completion}, False
    )


def ours(name: str, **keys: Any) -> Callable[[Pairs, Tensor], Tensor]:
    """The mean of one of our losses over the pairs."""

    def value(pairs: Pairs, policy: Tensor) -> Tensor:
        q = pairs.quantities(policy)
        if "delta" in LOSSES[name].takes:
            q["delta"] = torch.zeros(())
        return LOSSES[name](*(q[n] for n in LOSSES[name].takes), **keys).mean()

    return value


def sft(pairs: Pairs, policy: Tensor) -> Tensor:
    """Our sum over the preferred responses, divided by their tokens."""
    return LOSSES["sft_nll"](policy[:E].sum(1)).sum() / pairs.n[:E].sum()


def total(*terms: tuple[float, Callable[[Pairs, Tensor], Tensor]]) -> Callable[[Pairs, Tensor], Tensor]:
    return lambda pairs, policy: torch.stack([w * loss(pairs, policy) for w, loss in terms]).sum()


def compare(
    theirs: Callable[..., Tensor], mine: Callable[..., Tensor], spread: float = 1.0
) -> tuple[float, float, float, float]:
    """(their loss, ours, relative difference of the losses, of their derivatives), the worst of a few batches."""
    worst = (0.0, 0.0, -1.0, -1.0)
    for seed in range(4):
        pairs = Pairs(seed, spread)
        values, slopes = [], []
        for loss in (theirs, mine):
            policy = pairs.policy.clone().requires_grad_()
            value = loss(pairs, policy)
            (slope,) = torch.autograd.grad(value, policy)
            values.append(float(value))
            slopes.append(torch.where(pairs.mask, slope, 0.0).double())
        apart = abs(values[0] - values[1]) / max(abs(values[0]), abs(values[1]), 1e-12)
        slope_apart = float((slopes[0] - slopes[1]).norm() / slopes[0].norm().clamp(min=1e-12))
        if badness(apart, slope_apart) > badness(*worst[2:]):
            worst = (*values, apart, slope_apart)
    return worst


def badness(*apart: float) -> float:
    """The larger of differences, a nan being the largest."""
    return max(math.inf if math.isnan(x) else x for x in apart)


def row(trl: str, holdfast: str, theirs: Any, mine: Any, note: str = "", spread: float = 1.0) -> Row:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Row("loss", trl, holdfast, *compare(theirs, mine, spread), note)


def dpo(holdfast: str, mine: Callable[..., Tensor], note: str = "", spread: float = 1.0, **said: Any) -> Row:
    shown = {k: v for k, v in said.items() if k not in ("loss_types", "loss_weights")}
    name = " + ".join(
        f"{w:g} {n}" if len(said.get("loss_weights", [1])) > 1 else n
        for n, w in zip(said.get("loss_types", ["sigmoid"]), said.get("loss_weights", [1.0]), strict=True)
    )
    trl = f"DPO {name}" + "".join(f", {k} = {v}" for k, v in shown.items())
    return row(trl, holdfast, lambda p, x: dpo_theirs(p, x, **said), mine, note, spread)


def dpo_rows() -> list[Row]:
    b = 0.3
    one = {"beta": b}
    smooth = {"label_smoothing": 0.1}
    rows = [
        dpo("dpo", ours("dpo", **one), **one),
        dpo(
            "dpo, not cdpo", ours("cdpo", e=0.1, **one), **one, **smooth,
            note=WHY_CDPO,
        ),
        dpo("dpo", ours("dpo", **one), **one, **smooth, note="the same without the smoothing: equal, so TRL does ignore it"),
        dpo("hinge", ours("hinge", **one), loss_types=["hinge"], **one),
        dpo("ipo_avg", ours("ipo_avg", tau=b), loss_types=["ipo"], **one),
        dpo(
            "ipo", ours("ipo", tau=b), loss_types=["ipo"], **one,
            note=WHY_IPO,
        ),
        dpo("exo", ours("exo", e=0.1, **one), loss_types=["exo_pair"], **one, **smooth),
        dpo("nca", ours("nca", **one), loss_types=["nca_pair"], **one),
        dpo("rdpo", ours("rdpo", e=0.1, **one), loss_types=["robust"], **one, **smooth),
        dpo("bco, first step", ours("bco", **one), loss_types=["bco_pair"], **one, note=WHY_BCO),
        dpo("sppo", ours("sppo", **one), loss_types=["sppo_hard"], **one),
        dpo("aot", ours("aot", **one), loss_types=["aot"], **one),
        dpo("aot_unpaired", ours("aot_unpaired", **one), loss_types=["aot_unpaired"], **one),
        dpo("apo_zero", ours("apo_zero", **one), loss_types=["apo_zero"], **one),
        dpo("apo_down", ours("apo_down", **one), loss_types=["apo_down"], **one),
        dpo("discopop", ours("discopop", tau=0.05, **one), loss_types=["discopop"], discopop_tau=0.05, **one),
        dpo("ln_dpo", ours("ln_dpo", **one), loss_types=["sigmoid_norm"], **one),
        dpo("sft", sft, loss_types=["sft"]),
        dpo("f_dpo reverse_kl", ours("f_dpo", divergence="reverse_kl", **one), **one),
        dpo("f_dpo forward_kl", ours("f_dpo", divergence="forward_kl", **one), f_divergence_type="forward_kl", **one),
        dpo("f_dpo js", ours("f_dpo", divergence="js", **one), f_divergence_type="js_divergence", **one),
    ]  # fmt: skip
    for coef in (0.25, 0.5, 1.0):
        said = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": coef}
        rows.append(
            dpo(f"f_dpo alpha = {1 - coef}", ours("f_dpo", divergence="alpha", alpha=1 - coef, **one), **said, **one)
        )
    rows += [
        dpo("ld_dpo alpha = 0.5", ours("ld_dpo", alpha=0.5, **one), ld_alpha=0.5, **one),
        dpo("ld_dpo alpha = 0", ours("ld_dpo", alpha=0.0, **one), ld_alpha=0.0, **one),
        dpo("wpo cap = inf", ours("wpo", cap=float("inf"), **one), use_weighting=True, **one),
        dpo(
            "wpo", ours("wpo", **one), use_weighting=True, **one,
            note="the authors' code caps the weight at 1 (as ours by default); TRL 1.16 does not. `holdfast recipe` writes cap = inf",
        ),
        dpo(
            "sum of dpo and sft", total((1.0, ours("dpo", **one)), (0.5, sft)),
            loss_types=["sigmoid", "sft"], loss_weights=[1.0, 0.5], **one,
        ),
        dpo(
            "rpo, nll = mean", ours("rpo", eta=0.5, nll="mean", **one), loss_types=["sigmoid", "sft"], loss_weights=[1.0, 0.5], **one,
            note=WHY_RPO,
        ),
        dpo(
            "sum of dpo, bco, sft (MPO)", total((0.8, ours("dpo", **one)), (0.2, ours("bco", **one)), (1.0, sft)),
            loss_types=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0], **one,
        ),
        dpo("dpo, large log-ratios", ours("dpo", **one), spread=60.0, **one),
        dpo("hinge, large log-ratios", ours("hinge", **one), loss_types=["hinge"], spread=60.0, **one),
        dpo("ipo_avg, large log-ratios", ours("ipo_avg", tau=b), loss_types=["ipo"], spread=60.0, **one),
    ]  # fmt: skip
    return rows


def far_rows() -> list[Row]:
    """Where log-ratios are so large that a form of the same formula breaks."""
    far = {"beta": 1.0}
    return [
        dpo(
            "discopop, large log-ratios", ours("discopop", tau=0.05, **far), loss_types=["discopop"], discopop_tau=0.05, spread=150.0, **far,
            note=WHY_DISCOPOP,
        ),
        dpo(
            "f_dpo forward_kl, large log-ratios", ours("f_dpo", divergence="forward_kl", **far), f_divergence_type="forward_kl", spread=150.0, **far,
            note="TRL computes exp(-r): inf - inf = nan for r below -88. Ours goes on by the tangent from exp(30)",
        ),
    ]  # fmt: skip


def kto_rows() -> list[Row]:
    def theirs(pairs: Pairs, policy: Tensor, **said: Any) -> Tensor:
        good = torch.zeros(2 * E, dtype=torch.bool)
        good[:E] = True
        turned = torch.arange(2 * E).roll(1)  # TRL puts each response under its neighbour's prompt
        inputs = {
            "input_ids": pairs.ids, "attention_mask": pairs.attention, "completion_mask": pairs.completion,
            "KL_input_ids": pairs.ids[turned], "KL_attention_mask": pairs.attention[turned],
            "KL_completion_mask": pairs.completion[turned], "label": good.long(),
        }  # fmt: skip
        kl = inputs["KL_input_ids"]

        def answer(values: Tensor) -> Callable[[Tensor], dict[str, Tensor]]:
            return lambda ids: {
                "log_probs": values[turned].detach() + 0.02 if ids.data_ptr() == kl.data_ptr() else values
            }

        model = Answers(answer(policy))
        settings = {
            "loss_type": "kto",
            "calculate_KL": True,
            "desirable_weight": 1.0,
            "undesirable_weight": 1.0,
            "beta": 0.3,
        } | said
        made = trainer(
            KTOTrainer, model, ref_model=Answers(lambda ids: {"log_probs": pairs.ref[turned] if ids.data_ptr() == kl.data_ptr() else pairs.ref}),
            precompute_ref_logps=False, args=SimpleNamespace(gradient_checkpointing_kwargs=None), **settings,
        )  # fmt: skip
        return made._compute_loss(model, inputs, False)

    def mine(pairs: Pairs, policy: Tensor, **keys: float) -> Tensor:
        turned = torch.arange(2 * E).roll(1)
        z0 = kto_z0((policy[turned].detach() + 0.02).sum(1) - pairs.ref[turned].sum(1))
        good = (torch.arange(2 * E) < E).float()
        return LOSSES["kto"](policy.sum(1) - pairs.ref.sum(1), good, z0, beta=0.3, **keys).mean()

    return [
        row("KTO", "kto", theirs, mine),
        row(
            "KTO, desirable_weight = 1.3, undesirable_weight = 0.7", "kto lam_good = 1.3, lam_bad = 0.7",
            lambda p, x: theirs(p, x, desirable_weight=1.3, undesirable_weight=0.7), lambda p, x: mine(p, x, lam_good=1.3, lam_bad=0.7),
        ),
    ]  # fmt: skip


class Logits:
    """For CPO and ORPO, which want logits: made such that both read the same log-probabilities from them. Derivatives are by logit."""

    def __init__(self, seed: int):
        self.pairs = Pairs(seed, 1.0)
        g = torch.Generator().manual_seed(seed)
        self.policy = torch.randn(2 * E, L, V, generator=g) * 2
        self.mask = torch.ones(1, dtype=torch.bool)
        self.n = self.pairs.n

    def batch(self) -> dict[str, Tensor]:
        p = self.pairs
        labels = p.ids.masked_fill(p.completion == 0, -100)
        return {
            "concatenated_input_ids": p.ids, "concatenated_attention_mask": p.attention, "concatenated_labels": labels,
        }  # fmt: skip

    def quantities(self, logits: Tensor) -> dict[str, Tensor]:
        token = torch.log_softmax(logits[:, :-1], -1).gather(-1, self.pairs.ids[:, 1:, None])[..., 0]
        token = torch.where(self.pairs.mask, token, 0.0)
        of = {"logp": token.sum(1), "n": self.n.float()}
        return {f"{k}_{s}": v[:E] if s == "w" else v[E:] for k, v in of.items() for s in "wl"}


def reference_free(
    cls: type,
    holdfast: str,
    name: str,
    mine: Callable[[dict[str, Tensor], Logits], Tensor],
    note: str = "",
    only_odds: bool = False,
    **said: Any,
) -> Row:
    worst = Row("loss", name, holdfast, 0, 0, -1, -1, note)
    for seed in range(4):
        made_up = Logits(seed)
        values, slopes = [], []
        for which in ("theirs", "ours"):
            logits = made_up.policy.clone().requires_grad_()
            if which == "theirs":
                settings = {"beta": 0.3, "is_encoder_decoder": False, "pad_token_id": 0, "padding_value": 0} | said
                model = Answers(lambda _, logits=logits: {"log_probs": logits, "logits": logits})
                model.forward = lambda *_, logits=logits, **__: SimpleNamespace(logits=logits)
                made = trainer(cls, model, **settings)
                made.concatenated_inputs = lambda *_, made_up=made_up, **__: made_up.batch()
                batch = {"chosen_labels": torch.zeros(E)}
                if only_odds:
                    chosen, rejected, *_ = made.concatenated_forward(model, batch)
                    value = -made.odds_ratio_loss(chosen, rejected)[0].mean()
                else:
                    value, _ = made.get_batch_loss_metrics(model, batch)
            else:
                value = mine(made_up.quantities(logits), made_up)
            slopes.append(torch.autograd.grad(value, logits)[0].double())
            values.append(float(value))
        apart = abs(values[0] - values[1]) / max(map(abs, values))
        slope = float((slopes[0] - slopes[1]).norm() / slopes[0].norm())
        if badness(apart, slope) > badness(worst.apart, worst.slope):
            worst = Row("loss", name, holdfast, *values, apart, slope, note)
    return worst


def reference_free_rows() -> list[Row]:
    def mine(name: str, **keys: Any) -> Callable[[dict[str, Tensor], Logits], Tensor]:
        return lambda q, _: LOSSES[name](*(q[n] for n in LOSSES[name].takes), **keys).mean()

    def imitation(q: dict[str, Tensor], made_up: Logits) -> Tensor:
        return LOSSES["sft_nll"](q["logp_w"]).sum() / made_up.n[:E].sum()

    cpo = {"loss_type": "sigmoid", "cpo_alpha": 0.0, "label_smoothing": 0.0, "alpha": 0.0}
    return [
        reference_free(CPOTrainer, "cpo lam = 0", "CPO sigmoid, cpo_alpha = 0", mine("cpo", beta=0.3, lam=0.0), **cpo),
        reference_free(
            CPOTrainer, "sum of cpo lam = 0 and sft", "CPO sigmoid, cpo_alpha = 0.7",
            lambda q, m: mine("cpo", beta=0.3, lam=0.0)(q, m) + 0.7 * imitation(q, m), **(cpo | {"cpo_alpha": 0.7}),
        ),
        reference_free(
            CPOTrainer, "cpo nll = sum", "CPO sigmoid, cpo_alpha = 1", mine("cpo", beta=0.3, lam=1.0), **(cpo | {"cpo_alpha": 1.0}),
            note=WHY_CPO,
        ),
        reference_free(
            CPOTrainer, "simpo gamma = 0.5", "CPO simpo, cpo_alpha = 0, simpo_gamma = 0.5", mine("simpo", beta=0.3, gamma=0.5),
            **(cpo | {"loss_type": "simpo", "simpo_gamma": 0.5}),
        ),
        reference_free(
            CPOTrainer, "simpo gamma = 0.5", "CPO simpo, simpo_gamma = 0.5", mine("simpo", beta=0.3, gamma=0.5),
            **(cpo | {"loss_type": "simpo", "simpo_gamma": 0.5, "cpo_alpha": 1.0}),
            note=WHY_SIMPO,
        ),
        reference_free(
            CPOTrainer, "sum of simpo and sft", "CPO simpo, simpo_gamma = 0.5",
            lambda q, m: mine("simpo", beta=0.3, gamma=0.5)(q, m) + imitation(q, m),
            **(cpo | {"loss_type": "simpo", "simpo_gamma": 0.5, "cpo_alpha": 1.0}),
        ),
        reference_free(
            ORPOTrainer, "orpo", "ORPO", mine("orpo", lam=0.3),
            note=WHY_ORPO,
        ),
        reference_free(
            ORPOTrainer, "orpo's odds-ratio term", "ORPO's odds-ratio term",
            lambda q, m: mine("orpo", lam=0.3)(q, m) + (q["logp_w"] / q["n_w"]).mean(), only_odds=True,
        ),
    ]  # fmt: skip


class Scores:
    def __init__(self, seed: int):
        g = torch.Generator().manual_seed(seed)
        self.policy = torch.randn(2 * E, 1, generator=g) * 2
        self.margin = torch.rand(E, generator=g)
        self.mask = torch.ones(1, dtype=torch.bool)


def reward_rows() -> list[Row]:
    rows = []
    for margin, centre in ((False, None), (True, None), (False, 0.01), (True, 0.05)):
        name = "Reward" + ", margin column" * margin + (f", center_rewards_coefficient = {centre}" if centre else "")
        worst = Row("loss", name, "reward" + (f" centre = {centre}" if centre else ""), 0, 0, -1, -1)
        for seed in range(4):
            made_up = Scores(seed)
            values, slopes = [], []
            for which in ("theirs", "ours"):
                score = made_up.policy.clone().requires_grad_()
                if which == "theirs":
                    model = Answers(lambda _: {})
                    model.forward = lambda score=score, **_: SimpleNamespace(logits=score)
                    made = trainer(RewardTrainer, model, args=SimpleNamespace(center_rewards_coefficient=centre))
                    inputs = {"attention_mask": torch.ones(2 * E, 3)} | ({"margin": made_up.margin} if margin else {})
                    value = made.compute_loss(model, inputs)
                else:
                    given = made_up.margin if margin else torch.zeros(E)
                    value = LOSSES["bradley_terry"](score[:E, 0], score[E:, 0], given, centre=centre or 0.0).mean()
                slopes.append(torch.autograd.grad(value, score)[0].double())
                values.append(float(value))
            apart = abs(values[0] - values[1]) / max(map(abs, values))
            slope = float((slopes[0] - slopes[1]).norm() / slopes[0].norm())
            if badness(apart, slope) > badness(worst.apart, worst.slope):
                worst = Row("loss", worst.trl, worst.holdfast, *values, apart, slope)
        rows.append(worst)
    return rows


def all_rows() -> list[Row]:
    return dpo_rows() + far_rows() + kto_rows() + reference_free_rows() + reward_rows()
