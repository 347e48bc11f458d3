"""De-biasing: what can be read off a pair's surface gets a voice of its own beside the reward while training, and none after.

The log-odds that a is preferred to b are  R_a - R_b + gamma . phi(a, b):  a product of experts (Clark et al., 1909.03683; Hinton 2002),
one of which knows nothing but the surface. What its gamma explains (length, say) no longer pulls at the reward; what is left is the
reward's to explain. Scores, evaluations and the saved model are R alone. Length-controlled win rates (2404.04475) leave a term
out in the same way.

gamma is first fitted to the training comparisons alone, with R at nothing. That is all that the surface can explain, and the reward could
have explained some of it as well: `share` of it is what gamma begins with. It is held there, or goes on beside the reward: after each step a
share (`rate`) of a Newton step towards the likelihood of that step's pairs given the reward's margins. R can say what phi says, so the
likelihood does not tell how the two should share it; where gamma began does.
"""

# Axes: E examples of the term, X of them in a step, F features.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.data.dataset import Dataset
from holdfast.data.inspect.surface import NAMES, surface
from holdfast.data.text import plain_text
from holdfast.data.views import Comparisons
from holdfast.errors import RecipeError
from holdfast.language.terms import Asked, Term
from holdfast.recipe import DebiasTable

# Losses that are functions of a margin which is a log-odds: a term beside the margin is another expert's. To ipo or the hinge a margin is no
# log-odds; nca, bco and kto judge each response alone; cpo and orpo imitate with the same log-probabilities; aot and dr_dpo couple rows.
LOG_ODDS = {"dpo", "cdpo", "rdpo", "exo", "rpo", "wpo", "tdpo2", "ld_dpo", "ln_dpo", "simpo", "rao_kupper", "davidson"}
REWARD = {"bradley_terry", "reward_rao_kupper"}
LENGTH = "length"  # tanh of the difference in characters over its root mean square, as in length-controlled win rates
POSITION = "position"  # 1 where a was shown first, -1 where b was, 0 where it is not known
KNOWN = (LENGTH, *NAMES, POSITION)
RIDGE = 1e-3  # holds features that say the same apart, and a gamma that separates the pairs from infinity
MEMORY = 0.9  # of the curvature, from step to step


def leaning(asked: Asked) -> int:
    """Which term a nuisance can stand beside: the only one that compares. RecipeError, by name, where there is none."""
    comparing = [k for k, t in enumerate(asked.terms) if t.function.family != "sft"]
    for k in comparing:
        name = asked.terms[k].function.name
        if name not in LOG_ODDS | REWARD:
            raise RecipeError(
                f"[debias]: the margin of {name} is no log-odds that a nuisance term could stand beside; it can with "
                f"{', '.join(sorted(LOG_ODDS))}, and with reward (bradley_terry, rao_kupper)"
            )
    if len(comparing) != 1:
        raise RecipeError(f"[debias] needs one loss that compares responses; [objective] has {len(comparing)}")
    return comparing[0]


class Nuisance:
    """The surface's voice in one term's pairs.

    phi: (E, F) float64, how a's features differ from b's, in units of `scale` (their root mean square over the training pairs).
    coef: (F,) float64, gamma; curvature: (F, F) float64, of the log-likelihood. Both are state.
    """

    def __init__(
        self,
        names: Sequence[str],
        phi: np.ndarray,
        p: np.ndarray,
        weight: np.ndarray,
        train: np.ndarray,
        share: float = 1.0,
        rate: float = 0.05,
    ):
        """phi: (E, F), unscaled; p, weight: (E,) as in `Comparisons`; train: (E,) bool, the pairs that are trained on."""
        self.names, self.share, self.rate = tuple(names), share, rate
        self._p, self._weight = p, weight
        mass = weight * train
        self.scale = np.sqrt(np.einsum("e,ef,ef->f", mass, phi, phi) / mass.sum())
        for name, size in zip(self.names, self.scale.tolist(), strict=True):
            if not size > 0:
                raise RecipeError(
                    f"[debias] features: {name!r} is the same for both responses of every training pair; leave it out"
                )
        self.phi = phi / self.scale
        coef, curvature = np.zeros(len(self.names)), np.zeros((len(self.names),) * 2)
        at = np.flatnonzero(mass)
        for _ in range(50):
            gradient, curvature = self._slopes(at, np.zeros(len(at)), coef)
            step = np.linalg.solve(curvature + RIDGE * np.eye(len(coef)), gradient)
            coef = coef - step
            if np.abs(step).max() < 1e-10:
                break
        self.first, self.pairs = coef, len(at)
        self.coef, self.curvature = torch.from_numpy(share * coef), torch.from_numpy(curvature)

    def _slopes(self, x: np.ndarray, margin: np.ndarray, coef: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(F,) gradient and (F, F) curvature of the mean negative log-likelihood of pairs x given the reward's margins."""
        phi, mass = self.phi[x], self._weight[x] / self._weight[x].sum()
        # einsum, not a matrix product: the order of its sums does not hang on the threads of a library.
        sure = 1 / (1 + np.exp(-np.clip(margin + np.einsum("xf,f->x", phi, coef), -60, 60)))
        gradient = np.einsum("x,xf->f", mass * (sure - self._p[x]), phi) + RIDGE * coef
        return gradient, np.einsum("x,xf,xg->fg", mass * sure * (1 - sure), phi, phi)

    def lean(self, quantities: Mapping[str, Tensor], x: np.ndarray, term: Term) -> dict[str, Tensor]:
        """The loss's quantities with half of gamma . phi added to w and half taken from l, in the quantity's own units."""
        own = "R" if "R_w" in quantities else "r" if "r_w" in quantities else "logp"
        some = quantities[f"{own}_w"]
        voice = torch.from_numpy(np.einsum("xf,f->x", self.phi[x], self.coef.numpy())).to(some)
        leant = dict(quantities)
        for side, sign in (("w", 0.5), ("l", -0.5)):
            unit = sign / (1.0 if own == "R" else term.scale)
            per = quantities[f"n_{side}"] if term.function.per_token else 1.0
            leant[f"{own}_{side}"] = quantities[f"{own}_{side}"] + unit * voice * per
        return leant

    def learn(self, x: np.ndarray, margin: Tensor) -> dict[str, float]:
        """Go on from one step's pairs (X,) and the reward's margins on them (X,); gamma by feature, after it."""
        if self.rate and len(x) and self._weight[x].sum() > 0:
            coef = self.coef.numpy()
            gradient, curvature = self._slopes(x, margin.double().cpu().numpy(), coef)
            kept = MEMORY * self.curvature.numpy() + (1 - MEMORY) * curvature
            newton = np.linalg.solve(kept + RIDGE * np.eye(len(coef)), gradient)
            self.coef, self.curvature = torch.from_numpy(coef - self.rate * newton), torch.from_numpy(kept)
        return dict(zip(self.names, self.coef.tolist(), strict=True))

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "features": list(self.names),
            "unit": self.scale.tolist(),
            "first fit": self.first.tolist(),
            "pairs": self.pairs,
            "share": self.share,
            "rate": self.rate,
        }

    def state(self) -> dict[str, Tensor]:
        return {"debias/coef": self.coef, "debias/curvature": self.curvature}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.coef, self.curvature = state["debias/coef"].cpu(), state["debias/curvature"].cpu()


def nuisance(table: DebiasTable, ds: Dataset, view: Comparisons, weight: np.ndarray, rows: np.ndarray) -> Nuisance:
    """The nuisance term of a recipe over these comparisons. weight: (E,) of each; rows: the judgements that are trained on."""
    for name in table.features:
        if name not in KNOWN:
            raise RecipeError(f"[debias] features: {name!r} is unknown (known: {', '.join(KNOWN)})")
    if len(set(table.features)) != len(table.features):
        raise RecipeError(f"[debias] features = {list(table.features)!r} names one of them twice")
    train = np.isin(view.row, rows)
    used, at = np.unique(np.concatenate([view.a, view.b]), return_inverse=True)
    read, size = np.zeros((len(used), len(NAMES))), np.zeros(len(used))
    for start in range(0, len(used), 2048):
        texts = [plain_text(c) or "" for c in ds.response_contents(used[start : start + 2048])]
        read[start : start + len(texts)] = surface(texts)
        size[start : start + len(texts)] = list(map(len, texts))
    a, b = at[: len(view)], at[len(view) :]
    columns = []
    for name in table.features:
        if name == POSITION:
            columns.append(_shown_first(ds, view))
        elif name == LENGTH:
            differ = size[a] - size[b]
            usual = np.sqrt(np.einsum("e,e,e->", weight * train, differ, differ) / (weight * train).sum())
            columns.append(np.tanh(differ / max(usual, 1e-9)))
        else:
            columns.append(read[a, NAMES.index(name)] - read[b, NAMES.index(name)])
    return Nuisance(table.features, np.stack(columns, axis=1), view.p, weight, train, table.share, table.rate)


def _shown_first(ds: Dataset, view: Comparisons) -> np.ndarray:
    """(E,) 1 where a was shown before b, -1 where after, 0 where it is not known."""
    shown = ds.column("shown")
    found = np.zeros(len(view))
    for e, (row, other) in enumerate(zip(view.from_a.tolist(), view.from_b.tolist(), strict=True)):
        if row == other and shown[row] is not None:
            place = dict(zip(ds.responses_of[row].tolist(), shown[row], strict=True))
            found[e] = math.copysign(1.0, place[int(view.b[e])] - place[int(view.a[e])])
    return found
