"""Language objectives: how rows become a loss. `sft`, `reward`, and every pair loss of `holdfast.losses` by its own name.

An objective holds the choice of loss and nothing of the loop. All of them see a step as prompt groups (`planning`), computed packed or
padded by the policy; a loss is a pure function that names the quantities it needs, and only those are computed.
"""

# Axes: R responses of a batch, E comparisons (edges), N response tokens.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from holdfast.data.views import Comparisons, Preferred
from holdfast.errors import IntegrityError, RecipeError
from holdfast.language import packing
from holdfast.language.planning import by_prompt, micro_batches
from holdfast.language.policy import Policy, RewardModel
from holdfast.language.reference import COARSE, Reference
from holdfast.language.tokens import Tokens
from holdfast.losses import LOSSES, dry_run, soft
from holdfast.recipe import bind
from holdfast.training.objective import Sums

# Largest |log-ratio| per token that sums in another order may show before the first step.
STEP_0_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}


@dataclass(frozen=True)
class Batch:
    """One micro-batch: the forward's input, and the comparisons over its responses (empty for sft)."""

    rows: np.ndarray  # (B,) dataset rows
    edges: np.ndarray  # (E,) positions in the objective's comparisons
    a_E: Tensor  # (E,) place of each comparison's first response among the batch's responses
    b_E: Tensor
    forward: packing.Batch


class _Language:
    """What the language objectives share: planning, held-out figures, and no state beyond the model."""

    def __init__(self, model: Policy | RewardModel, tokens: Tokens, micro_batch: int):
        self.wrapped = model
        self.model = model.model
        self.tokens = tokens
        self.micro_batch = micro_batch  # most judgements per forward, in training and on held-out rows alike

    def _prompts(self, rows: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _batch(self, rows: np.ndarray) -> Batch:
        raise NotImplementedError

    def loss(self, batch: Batch) -> tuple[Tensor, Sums]:
        raise NotImplementedError

    def batches(self, rows: np.ndarray) -> list[Batch]:
        return [self._batch(part) for part in micro_batches(rows, self._prompts(rows), self.micro_batch)]

    def normaliser(self, rows: np.ndarray) -> float:
        """Judgements: each weighs one, however many comparisons it makes."""
        return float(len(rows))

    def figures(self, rows: np.ndarray) -> dict[str, float]:
        """Figures over held-out rows: every sum first, one division at the end."""
        sums: dict[str, tuple[float, float]] = {}
        for batch in self._quietly(rows):
            total, metrics = self.loss(batch)
            _add(sums, {"loss": (float(total), self.normaliser(batch.rows)), **metrics})
        return {name: value / weight for name, (value, weight) in sums.items() if weight and name != "tokens"}

    def _quietly(self, rows: np.ndarray):
        """The batches of rows, evaluated without gradient or dropout."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield from self.batches(rows)
        finally:
            self.model.train(training)

    def begin(self) -> dict[str, Any]:
        return {}

    def after_step(self, step: int) -> dict[str, Any]:
        return {}

    def extra_state(self) -> dict[str, Tensor]:
        return {}

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        return None


class Sft(_Language):
    """Maximum likelihood of preferred responses: negative log-likelihood per response token."""

    def __init__(self, policy: Policy, tokens: Tokens, preferred: Preferred, micro_batch: int):
        super().__init__(policy, tokens, micro_batch)
        self.policy = policy
        at = {int(row): i for i, row in enumerate(preferred.row)}
        self._at: Callable[[np.ndarray], list[int]] = lambda rows: [at[int(row)] for row in rows]
        self.preferred = preferred

    def _prompts(self, rows: np.ndarray) -> np.ndarray:
        return self.preferred.prompt[self._at(rows)]

    def _batch(self, rows: np.ndarray) -> Batch:
        at = self._at(rows)
        groups = by_prompt(self.preferred.prompt[at].tolist(), self.preferred.response[at].tolist())
        none = torch.zeros(0, dtype=torch.long)
        return Batch(rows, np.zeros(0, dtype=np.int64), none, none, self.policy.batch(self.tokens, groups))

    def normaliser(self, rows: np.ndarray) -> float:
        """Response tokens."""
        return float(sum(len(self.tokens.responses[int(r)]) for r in self.preferred.response[self._at(rows)]))

    def loss(self, batch: Batch) -> tuple[Tensor, Sums]:
        out = self.policy.logps(batch.forward)
        total = -out.sum_R.sum()
        n = float(out.length_R.sum())
        return total, {"nll": (float(total.detach()), n), "tokens": (float(batch.forward.n_tokens), 1.0)}


class _Compare(_Language):
    """Objectives over comparisons: a pair loss on two quantities per response, soft labels and ties included.

    A tie is the soft label 1/2 and a soft preference is its probability: p L(a, b) + (1 - p) L(b, a).
    """

    def __init__(
        self,
        model: Policy | RewardModel,
        tokens: Tokens,
        comparisons: Comparisons,
        loss: str,
        table: Mapping[str, Any],
        micro: int,
    ):
        super().__init__(model, tokens, micro)
        self.comparisons = comparisons
        self.function = LOSSES[loss]
        self.keys = bind(self.function, table, "[objective]")
        dry_run(self.function, **self.keys)
        self.needs = self.function.needs
        order = np.argsort(comparisons.row, kind="stable")
        rows, first, count = np.unique(comparisons.row[order], return_index=True, return_counts=True)
        self._edges = {int(row): order[f : f + n] for row, f, n in zip(rows, first, count, strict=True)}

    def _edges_of(self, rows: np.ndarray) -> np.ndarray:
        return np.concatenate([self._edges[int(row)] for row in rows])

    def _prompts(self, rows: np.ndarray) -> np.ndarray:
        return self.comparisons.prompt[[self._edges[int(row)][0] for row in rows]]

    def _batch(self, rows: np.ndarray) -> Batch:
        edges, c = self._edges_of(rows), self.comparisons
        prompts = np.repeat(c.prompt[edges], 2)
        responses = np.stack([c.a[edges], c.b[edges]], axis=1).ravel()
        forward = self.wrapped.batch(self.tokens, by_prompt(prompts.tolist(), responses.tolist()))
        return Batch(rows, edges, forward.where(c.a[edges]), forward.where(c.b[edges]), forward)

    def _responses(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Per response: the quantities that a loss may name (`r`, `logp`, `n`, ...), and the reward that metrics show."""
        raise NotImplementedError

    def loss(self, batch: Batch) -> tuple[Tensor, Sums]:
        c, device = self.comparisons, self.model.device
        of_response, reward_R = self._responses(batch)
        quantities = {}
        for name in self.needs:
            stem, _, side = name.rpartition("_")
            if side in ("w", "l"):
                quantities[name] = of_response[stem][batch.a_E if side == "w" else batch.b_E]
            elif name == "margin":
                quantities[name] = torch.tensor(
                    np.nan_to_num(c.margin[batch.edges]), dtype=torch.float32, device=device
                )
            else:
                raise RecipeError(
                    f"[objective] loss {self.function.name!r} needs {name!r}, which this objective cannot give"
                )
        p_E = torch.tensor(c.p[batch.edges], dtype=torch.float32, device=device)
        weight_E = torch.tensor(c.weight[batch.edges], dtype=torch.float32, device=device)
        total = (soft(self.function, p_E, **quantities, **self.keys) * weight_E).sum()
        return total, self._metrics(batch, of_response, reward_R.detach(), p_E, weight_E)

    def _metrics(
        self, batch: Batch, of_response: dict[str, Tensor], reward_R: Tensor, p_E: Tensor, weight_E: Tensor
    ) -> Sums:
        """TRL's names. A tie has no winner: it counts in no accuracy."""
        reward_a, reward_b = reward_R[batch.a_E], reward_R[batch.b_E]
        sign_E = torch.sign(p_E - 0.5)
        right_E = (torch.sign(reward_a - reward_b) * sign_E + 1) / 2
        decided_E = weight_E * (sign_E != 0)
        w, n = float(weight_E.sum()), float(decided_E.sum())

        def mean(x_E: Tensor) -> tuple[float, float]:
            return float((x_E * weight_E).sum()), w

        chosen, rejected = torch.where(sign_E < 0, reward_b, reward_a), torch.where(sign_E < 0, reward_a, reward_b)
        sums = {
            "rewards/chosen": mean(chosen),
            "rewards/rejected": mean(rejected),
            "rewards/margins": mean(chosen - rejected),
            "rewards/accuracies": (float((right_E * decided_E).sum()), n),
            "tokens": (float(batch.forward.n_tokens), 1.0),
        }
        if "logp" in of_response:
            logp_R = of_response["logp"].detach()
            sums["logps/chosen"] = mean(torch.where(sign_E < 0, logp_R[batch.b_E], logp_R[batch.a_E]))
            sums["logps/rejected"] = mean(torch.where(sign_E < 0, logp_R[batch.a_E], logp_R[batch.b_E]))
        return sums

    def scores(self, rows: np.ndarray, reference: Policy | None = None) -> dict[str, np.ndarray]:
        """Columns of the evaluation table, one value per comparison of `rows`, with `edge` the comparison's number. No gradient.

        With a `reference` policy also `kl_a`, `kl_b`: the exact KL(policy || reference) of the next token, mean over the response's tokens.
        """
        columns: dict[str, list[np.ndarray]] = {}
        for batch in self._quietly(rows):
            of_response, reward_R = self._responses(batch)
            of_response = {**of_response, "reward": reward_R}
            if reference is not None:
                kl_N = cast(Policy, self.wrapped).token_kl(batch.forward, reference)
                total_R = torch.zeros_like(reward_R).index_add_(0, batch.forward.owner_N, kl_N.to(reward_R.dtype))
                of_response["kl"] = total_R / of_response["n"]
            columns.setdefault("edge", []).append(batch.edges)
            for stem, values in of_response.items():
                columns.setdefault(f"{stem}_a", []).append(values[batch.a_E].float().cpu().numpy())
                columns.setdefault(f"{stem}_b", []).append(values[batch.b_E].float().cpu().numpy())
        return {name: np.concatenate(parts) for name, parts in columns.items()}


class Preference(_Compare):
    """Direct alignment: a pair loss on the policy's log-probabilities and, where the loss names it, their ratio to a reference."""

    def __init__(
        self,
        policy: Policy,
        tokens: Tokens,
        comparisons: Comparisons,
        reference: Reference | None,
        *,
        loss: str,
        table: Mapping[str, Any],
        micro_batch: int,
    ):
        super().__init__(policy, tokens, comparisons, loss, table, micro_batch)
        self.policy = policy
        self.reference = reference

    def _responses(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        out = self.policy.logps(batch.forward)
        quantities = {"logp": out.sum_R, "n": out.length_R.to(out.sum_R.dtype)}
        if self.reference is not None:
            ref_R = self.reference.logps(batch.forward).sum_R
            quantities |= {"ref_logp": ref_R, "r": out.sum_R - ref_R}
        implicit = float(self.keys.get("beta", 1.0)) * quantities["logp" if self.reference is None else "r"]
        return quantities, implicit / quantities["n"] if self.function.per_token else implicit

    def contributions(self, prompt: int, response: int) -> np.ndarray:
        """What each token adds to the implicit reward of one response: (tokens,) float32. No gradient."""
        batch = self.policy.batch(self.tokens, [(prompt, [response])])
        with torch.no_grad():
            values = self.policy.logps(batch).token_N.float().cpu().numpy()
        if self.reference is not None:
            values = values - self.reference.logps(batch).token_N.float().cpu().numpy()
        return float(self.keys.get("beta", 1.0)) * values / (len(values) if self.function.per_token else 1)

    def begin(self) -> dict[str, Any]:
        """Step 0 must give a log-ratio of zero: otherwise the reference is not the policy's start, and nothing after would mean anything.

        A reference that the recipe takes from elsewhere has no such zero; the facts then say so.
        """
        facts: dict[str, Any] = {"loss": self.function.name, **self.keys}
        if self.reference is None:
            return facts
        if not self.reference.is_start:
            unchecked = "log-ratios not checked: the reference is another model than the one training starts from"
            return {**facts, "reference": {**self.reference.facts(), "step 0": unchecked}}
        rows = np.unique(self.comparisons.row)
        some = rows[np.linspace(0, len(rows) - 1, min(16, len(rows)), dtype=int)]
        worst = 0.0
        for batch in self._quietly(some):
            quantities, _ = self._responses(batch)
            worst = max(worst, float((quantities["r"].abs() / quantities["n"]).max()))
        if not worst <= STEP_0_TOLERANCE.get(next(self.model.parameters()).dtype, COARSE):
            raise IntegrityError(
                f"at step 0 the policy's log-ratio to its reference is {worst:.3g} per token, not 0: the reference is another model than "
                "the one training starts from; name the same folder for both, or delete the cached reference"
            )
        return {**facts, "reference": self.reference.facts()}

    def after_step(self, step: int) -> dict[str, Any]:
        return self.reference.after_step(step) if self.reference is not None else {}

    def extra_state(self) -> dict[str, Tensor]:
        return self.reference.state() if self.reference is not None else {}

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        if self.reference is not None:
            self.reference.load_state(state)


class Reward(_Compare):
    """A reward model: Bradley-Terry on the score at the last response token (2203.02155, eq. 1)."""

    def __init__(
        self,
        model: RewardModel,
        tokens: Tokens,
        comparisons: Comparisons,
        *,
        loss: str = "bradley_terry",
        table: Mapping[str, Any],
        micro_batch: int,
    ):
        super().__init__(model, tokens, comparisons, loss, table, micro_batch)
        self.reward = model

    def _responses(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        score_R = self.reward.scores(batch.forward)
        lengths = [len(self.tokens.responses[int(i)]) for i in batch.forward.response_index]
        return {"R": score_R, "n": torch.tensor(lengths, dtype=torch.float32, device=score_R.device)}, score_R

    def contributions(self, prompt: int, response: int) -> np.ndarray:
        """The score after each token less the score before it (the first: the score itself): (tokens,) float32. No gradient."""
        with torch.no_grad():
            score_N = self.reward.prefix_scores(self.reward.batch(self.tokens, [(prompt, [response])]))
        return np.diff(score_N.float().cpu().numpy(), prepend=np.float32(0))

    def begin(self) -> dict[str, Any]:
        return {"loss": self.function.name, **self.keys}


def needs_reference(loss: str) -> bool:
    """Whether a pair loss names a quantity that only a reference can give."""
    return any(name.startswith(("r_", "ref_")) for name in LOSSES[loss].needs)


def _add(sums: dict[str, tuple[float, float]], more: Mapping[str, tuple[float, float]]) -> None:
    for name, (value, weight) in more.items():
        before = sums.get(name, (0.0, 0.0))
        sums[name] = (before[0] + value, before[1] + weight)


def pair_losses() -> Sequence[str]:
    """Names that `[objective] kind` takes for direct alignment."""
    return sorted(name for name, function in LOSSES.items() if function.family == "pair")
