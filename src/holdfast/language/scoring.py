"""What the models say of responses, and the reward that is read from it: a policy's implicit one, or a reward model's score."""

# Axes: R responses and N response tokens of a batch, E comparisons, H heads.

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from holdfast.data.views import Comparisons
from holdfast.errors import RecipeError
from holdfast.language import packing
from holdfast.language.planning import by_prompt, micro_batches
from holdfast.language.policy import Policy, RewardModel
from holdfast.language.reference import Reference
from holdfast.language.terms import Ensemble, Said, Term
from holdfast.language.tokens import Tokens
from holdfast.losses import pessimistic
from holdfast.training.ranks import here

ONE_HEAD = Ensemble()


class _Scorer:
    """A model that scores responses. micro_batch: most judgements per forward."""

    def __init__(self, wrapped: Policy | RewardModel, tokens: Tokens, term: Term, micro_batch: int):
        self.wrapped = wrapped
        self.model = wrapped.model
        self.tokens, self.term, self.micro_batch = tokens, term, micro_batch

    def say(self, batch: packing.Batch, needs: Collection[str] = ()) -> Said:
        """What the model says of a batch; `needs` are a loss's quantities, of which only what is asked for is computed."""
        raise NotImplementedError

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """Evaluated without gradient or dropout."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(training)

    def scores(self, view: Comparisons, reference: Policy | None = None) -> dict[str, np.ndarray]:
        """Columns of the evaluation table, (E,) each, in the order of the view: `reward_a`, `reward_b`, `n_a`, ... No gradient. The ranks
        divide the work.

        With a `reference` policy also `kl_a`, `kl_b`: the exact KL(policy || reference) of the next token, mean over the response's tokens.
        """
        rows, first, number = np.unique(view.row, return_index=True, return_inverse=True)
        edges_of = np.split(np.argsort(number, kind="stable"), np.cumsum(np.bincount(number))[:-1])
        asked = np.argsort(first)  # positions in `rows`, in the order in which the view first names them
        columns: dict[str, np.ndarray] = {}
        ranks = here()
        with self.quietly():
            plan = micro_batches(asked, view.prompt[first[asked]], self.micro_batch) if len(rows) else []
            for part, counts in ranks.deal(plan):
                edges = np.concatenate([edges_of[i] for i in part])
                prompts = np.repeat(view.prompt[edges], 2)
                responses = np.stack([view.a[edges], view.b[edges]], axis=1).ravel()
                batch = self.wrapped.batch(self.tokens, by_prompt(prompts.tolist(), responses.tolist()))
                said = self.say(batch)
                of = {**said.of, "reward": self.term.reward(said.of)}
                if reference is not None and isinstance(self.wrapped, Policy):
                    kl_N = self.wrapped.token_kl(batch, reference)
                    total_R = torch.zeros_like(of["reward"]).index_add_(0, batch.owner_N, kl_N.to(of["reward"].dtype))
                    of["kl"] = total_R / of["n"]
                for side, own in (("a", view.a[edges]), ("b", view.b[edges])):
                    at = batch.where(own)
                    for stem, values in of.items():
                        column = columns.setdefault(f"{stem}_{side}", np.zeros(len(view), dtype=np.float32))
                        if counts:
                            column[edges] = values[at].float().cpu().numpy()
        names = max(ranks.tell(list(columns)), key=len)  # a rank may have had nothing to do
        nothing = np.zeros(len(view), dtype=np.float32)
        return {n: ranks.merge(torch.from_numpy(columns.get(n, nothing))).numpy() for n in names}

    def contributions(self, prompt: int, response: int) -> np.ndarray:
        """What each token adds to the reward of one response: (tokens,) float32. No gradient."""
        raise NotImplementedError

    def reward_of(self, prompt: int, response: int) -> float:
        """The reward of one response, which its contributions add up to."""
        return float(self.contributions(prompt, response).sum())


class PolicyScorer(_Scorer):
    """A policy by the implicit reward of a loss (`term`)."""

    def __init__(self, policy: Policy, tokens: Tokens, term: Term, reference: Reference | None, micro_batch: int):
        super().__init__(policy, tokens, term, micro_batch)
        self.policy, self.reference = policy, reference

    def say(self, batch: packing.Batch, needs: Collection[str] = ()) -> Said:
        kl_from = None
        if any(n.startswith("kl_") for n in needs):
            kl_from = self.reference.policy if self.reference is not None else None
            if kl_from is None:
                raise RecipeError("the loss needs the reference's whole distribution: set [reference] kind = 'frozen'")
        out = self.policy.logps(batch, squares=any(n.startswith("aligned_") for n in needs), kl_from=kl_from)
        of = {"logp": out.sum_R, "n": out.length_R.to(out.sum_R.dtype)}
        ref_token_N = None
        if self.reference is not None:
            theirs = self.reference.logps(batch)
            ref_token_N = theirs.token_N
            of |= {"ref_logp": theirs.sum_R, "r": out.sum_R - theirs.sum_R}
        if out.squares_N is not None:
            of["aligned"] = out.sums(out.token_N.detach() - out.squares_N) / of["n"]
        if out.kl_N is not None:
            of["kl"] = out.sums(out.kl_N)
        return Said(of, out.token_N, ref_token_N)

    def mismatched(self, prompts: np.ndarray, responses: np.ndarray) -> Tensor:
        """Log-ratios of responses under prompts that are not theirs, (M,), each response once; one longer than there is room for after
        its new prompt is cut. No gradient. The ranks divide the work.
        """
        if not len(prompts):
            return torch.zeros(0, device=self.model.device)
        reference = self.reference.policy if self.reference is not None else None
        if reference is None:
            raise RecipeError(
                "kto estimates its KL on responses under other prompts, which the reference must compute: set [reference] kind = 'frozen'"
            )
        swapped = _Swapped(self.tokens, prompts, responses)
        ranks = here()
        dtype = torch.promote_types(torch.float32, next(self.model.parameters()).dtype)
        found_M = torch.zeros(len(prompts), dtype=dtype, device=self.model.device)
        size = max(1, min(self.micro_batch, -(-len(prompts) // ranks.world)))
        with self.quietly():
            for some, counts in ranks.deal(
                [range(i, min(i + size, len(prompts))) for i in range(0, len(prompts), size)]
            ):
                batch = self.policy.batch(swapped, by_prompt(prompts[some.start : some.stop].tolist(), list(some)))
                ratio_R = self.policy.logps(batch).sum_R - reference.logps(batch).sum_R
                if counts:
                    found_M[some.start : some.stop] = ratio_R[batch.where(list(some))]
        return ranks.merge(found_M)

    def contributions(self, prompt: int, response: int) -> np.ndarray:
        batch = self.policy.batch(self.tokens, [(prompt, [response])])
        with self.quietly():
            values = self.policy.logps(batch).token_N.float().cpu().numpy()
            if self.term.function.needs_reference and self.reference is not None:
                values = values - self.reference.logps(batch).token_N.float().cpu().numpy()
        return self.term.scale * values / (len(values) if self.term.function.per_token else 1)


class RewardScorer(_Scorer):
    """A reward model by its score; with several heads, by their mean."""

    def __init__(self, model: RewardModel, tokens: Tokens, term: Term, micro_batch: int, ensemble: Ensemble = ONE_HEAD):
        super().__init__(model, tokens, term, micro_batch)
        self.reward, self.ensemble = model, ensemble

    def say(self, batch: packing.Batch, needs: Collection[str] = ()) -> Said:
        heads_RH = self.reward.head_scores(batch)
        score_R = heads_RH[:, 0] if heads_RH.shape[1] == 1 else heads_RH.mean(1)
        lengths = [len(self.tokens.responses[int(i)]) for i in batch.response_index]
        of = {"R": score_R, "n": torch.tensor(lengths, dtype=torch.float32, device=score_R.device)}
        return Said(of, heads_RH=heads_RH)

    def contributions(self, prompt: int, response: int) -> np.ndarray:
        """The score after each token less the score before it (the first: the score itself). An encoder has to read each beginning of the
        response anew.
        """
        with self.quietly():
            score_N = self.reward.prefix_scores(self.reward.batch(self.tokens, [(prompt, [response])]))
        return np.diff(score_N.float().cpu().numpy(), prepend=np.float32(0))

    def reward_of(self, prompt: int, response: int) -> float:
        with self.quietly():
            return float(self.say(self.reward.batch(self.tokens, [(prompt, [response])])).of["R"][0])

    def uncertainty(self, prompt: int, response: int) -> dict[str, float]:
        """Of an ensemble: `spread`, the standard deviation over its heads, and the `pessimistic` score. Empty for one head."""
        if self.reward.heads == 1:
            return {}
        with self.quietly():
            heads_RH = self.reward.head_scores(self.reward.batch(self.tokens, [(prompt, [response])])).double()
        found = {"spread": float(heads_RH.std(1, correction=0)[0])}
        how = self.ensemble.pessimism
        if how == "min":
            found["pessimistic"] = float(pessimistic(heads_RH.T, how="min")[0])
        elif how is not None:
            found["pessimistic"] = float(pessimistic(heads_RH.T, how="mean-sd", k=how)[0])
        return found


class _Swapped:
    """Tokens of responses under other prompts, numbered 0..M-1: as `packing` reads them."""

    def __init__(self, tokens: Tokens, prompts: np.ndarray, responses: np.ndarray):
        most = int(tokens.facts["max_length"])
        self.prompts = tokens.prompts
        self.responses = [
            tokens.responses[int(r)][: max(most - len(tokens.prompts[int(p)]), 1)]
            for p, r in zip(prompts, responses, strict=True)
        ]
