"""The language objective: rows -> prompt groups -> what the models say -> losses.

It holds the choice of losses (`terms`) and nothing of the loop. A step is planned as micro-batches of whole prompt groups, computed packed
or padded by the model; a loss is a pure function that names the quantities it needs, and only those are computed. What a loss must know of
a whole step (a loss that couples rows; an estimate over the step; a running mean) is found so that it does not hang on the micro-batches.
"""

# Axes: X examples of a term in a batch.

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.errors import IntegrityError, RecipeError
from holdfast.language import packing
from holdfast.language.debias import Nuisance
from holdfast.language.planning import by_prompt, micro_batches, mismatched, within_tokens
from holdfast.language.reference import COARSE
from holdfast.language.scoring import PolicyScorer, RewardScorer
from holdfast.language.terms import Fed, FedLabels, FedPairs, Said
from holdfast.losses import kto_z0
from holdfast.training.determinism import derive
from holdfast.training.objective import Sums
from holdfast.training.order import mix
from holdfast.training.ranks import here

# Largest |log-ratio| per token that sums in another order may show before the first step.
STEP_0_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}


@dataclass(eq=False)
class Step:
    """All that is planned together: a training step, or the held-out rows of an evaluation.

    rows: all of its rows; batches: of several processes this one's.
    scale: what each term's sum is multiplied by, so that the terms' weighted means come out when the loop divides by the rows.
    seen: per term with state, what its update needs of each batch. margins: the same for the nuisance term. whole, z0: found when first asked for.
    """

    rows: np.ndarray
    scale: list[float]
    batches: list[Batch] = field(default_factory=list)
    seen: dict[int, list[tuple[np.ndarray, dict[str, Tensor]]]] = field(default_factory=dict)
    margins: list[tuple[np.ndarray, dict[str, Tensor]]] = field(default_factory=list)
    whole: dict[int, Coupled] | None = None
    z0: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """One micro-batch: the forward's input, and per term the examples over its responses."""

    rows: np.ndarray  # (B,) dataset rows
    examples: tuple[np.ndarray, ...]
    forward: packing.Batch
    step: Step
    number: int  # of the step's batches
    counts: bool = True  # False: computed only because other ranks need this one in the forward


@dataclass(frozen=True)
class Coupled:
    """A loss that couples rows, over a whole step: its value per example of the step, and per batch its derivative with respect to every
    quantity of the batch.
    """

    share: float
    derivative: list[dict[str, Tensor]]


class LanguageObjective:
    """Losses on a policy or a reward model, as the one loop wants them (`training.objective.Objective`).

    micro_batch, micro_tokens: most judgements, and where given most tokens, of one forward.
    fed: the terms with their examples; several make a weighted sum. row_ids: the rows' digests, by number (a bootstrap is drawn from them).
    beside: the number of a term and the nuisance term that stands beside its margins.
    """

    def __init__(
        self,
        scorer: PolicyScorer | RewardScorer,
        fed: Sequence[Fed],
        micro_batch: int,
        *,
        micro_tokens: int | None = None,
        seed: int = 0,
        row_ids: Sequence[str] | None = None,
        beside: tuple[int, Nuisance] | None = None,
    ):
        self.ranks = here()
        self.scorer, self.fed, self.micro_batch, self.micro_tokens = scorer, list(fed), micro_batch, micro_tokens
        self.wrapped, self.model, self.tokens = scorer.wrapped, scorer.model, scorer.tokens
        self.reference = scorer.reference if isinstance(scorer, PolicyScorer) else None
        self.ensemble = scorer.ensemble if isinstance(scorer, RewardScorer) else None
        self.needs = {n for f in self.fed for n in f.function.needs}
        self.rows = np.unique(np.concatenate([f.rows for f in self.fed]))
        self.seed = seed
        self._ids = row_ids
        self.nuisance: Nuisance | None = None
        self._leant = -1  # the number of the term with a nuisance term beside it
        if beside is not None:
            self.lean(*beside)
        self._state = {
            (k, name): torch.zeros((), device=self.model.device)
            for k, f in enumerate(self.fed)
            for name in f.function.updates
        }
        self._taken: Step | None = None  # the training step whose rewards `after_step` has yet to see

    def lean(self, term: int, nuisance: Nuisance) -> None:
        """From now on the nuisance term stands beside this term's margins while training."""
        leant = self.fed[term]
        assert isinstance(leant, FedPairs)
        leant.beside, self.nuisance, self._leant = nuisance, nuisance, term

    # The plan.

    def batches(self, rows: np.ndarray) -> list[Batch]:
        self._taken = self._plan(rows)
        self._together(self._taken)
        return self._taken.batches

    def _plan(self, rows: np.ndarray) -> Step:
        step = Step(rows, self._scale(rows))
        shares, rank = self.ranks.shares(rows, self._prompts_of(rows), lambda: self._work(rows)), self.ranks.rank
        if not self.ranks.sharded:  # then all ranks must make as many forwards, and each must know of the others
            shares, rank = shares[rank : rank + 1], 0
        plans = [self._micro_batches(s) if len(s) else [] for s in shares]
        longest = max(plans, key=len)
        idle = longest[:1] * (len(longest) - len(plans[rank]))
        for n, part in enumerate([*plans[rank], *idle]):
            examples = tuple(f.examples(part) for f in self.fed)
            named = [f.mentions(x) for f, x in zip(self.fed, examples, strict=True)]
            mentioned, responses = (np.concatenate(each).tolist() for each in zip(*named, strict=True))
            forward = self.wrapped.batch(self.tokens, by_prompt(mentioned, responses))
            step.batches.append(Batch(part, examples, forward, step, n, n < len(plans[rank])))
        return step

    def _micro_batches(self, rows: np.ndarray) -> list[np.ndarray]:
        prompt = self._prompts_of(rows)
        if self.micro_tokens is None:
            return micro_batches(rows, prompt, self.micro_batch)
        named = [
            [int(r) for f in self.fed for r in f.mentions(f.examples(rows[i : i + 1]))[1]] for i in range(len(rows))
        ]
        prompts, responses = self.tokens.prompts.lengths, self.tokens.responses.lengths
        if self.wrapped.compute == "padded":  # every response is computed with its prompt
            responses = responses.copy()
            for p, of in zip(prompt.tolist(), named, strict=True):
                responses[of] = self.tokens.responses.lengths[of] + prompts[p]
            prompts = np.zeros_like(prompts)
        return within_tokens(rows, prompt, named, prompts, responses, self.micro_tokens)

    def _work(self, rows: np.ndarray) -> np.ndarray:
        """(B,) the tokens that each row brings to a step: its responses', and with the first row of a prompt the prompt's."""
        _, first = np.unique(self._prompts_of(rows), return_index=True)
        work = np.zeros(len(rows), dtype=np.int64)
        work[first] = self.tokens.prompts.lengths[self._prompts_of(rows)[first]]
        for i in range(len(rows)):
            named = np.concatenate([f.mentions(f.examples(rows[i : i + 1]))[1] for f in self.fed])
            work[i] += self.tokens.responses.lengths[np.unique(named)].sum()
        return work

    def _prompts_of(self, rows: np.ndarray) -> np.ndarray:
        fed = self.fed
        return np.array([next(p for f in fed if (p := f.prompt_of(int(row))) is not None) for row in rows])

    def normaliser(self, rows: np.ndarray) -> float:
        """Of a single term its own (judgements; sft: response tokens); of a sum the judgements, see `Step.scale`."""
        return self.fed[0].normaliser(rows) if len(self.fed) == 1 else float(len(rows))

    def _scale(self, rows: np.ndarray) -> list[float]:
        if len(self.fed) == 1:
            return [1.0]
        own = [f.normaliser(rows) for f in self.fed]
        return [f.term.weight * len(rows) / n if n else 0.0 for f, n in zip(self.fed, own, strict=True)]

    # The loss.

    def loss(self, batch: Batch) -> tuple[Tensor, Sums]:
        coupling = self._couplings(batch.step)  # before the forward: a first pass must not hold this one's graph
        said = self.scorer.say(batch.forward, self.needs)
        if not batch.counts:
            return said.of["R" if "R" in said.of else "logp"].sum() * 0.0, {}
        of = {name: value.detach() for name, value in said.of.items()}
        parts: list[Tensor] = []
        sums: dict[str, tuple[float, float]] = {"tokens": (float(batch.forward.n_tokens), 1.0)}
        for k, (f, x) in enumerate(zip(self.fed, batch.examples, strict=True)):
            if not len(x):
                continue
            part = self._part(k, x, batch, said, coupling.get(k))
            if k == self._leant and isinstance(f, FedPairs):
                batch.step.margins.append((x, {"margin": f.margins(x, batch.forward, of)}))
            scale = batch.step.scale[k]
            parts.append(part if scale == 1.0 else part * scale)
            before = f"{f.term.name}/" if len(self.fed) > 1 else ""
            if before:
                sums[f"{before}loss"] = (float(part.detach()), f.normaliser(batch.rows))
            step = f.examples(batch.step.rows) if isinstance(f, FedLabels) else x
            metrics = f.metrics(x, batch.forward, of, step)
            sums |= {before + name: value for name, value in metrics.items()}
            if k in batch.step.z0:
                sums[f"{before}kl"] = (float(batch.step.z0[k]) * len(x), float(len(x)))
            if "delta" in f.function.updates:
                sums[f"{before}delta"] = (float(self._state[k, "delta"]) * len(x), float(len(x)))
        return parts[0] if len(parts) == 1 else torch.stack([p.double() for p in parts]).sum(), sums

    def _part(self, k: int, x: np.ndarray, batch: Batch, said: Said, coupled: Coupled | None) -> Tensor:
        """One term's summed loss on its examples of a batch."""
        f = self.fed[k]
        if said.heads_RH is not None and said.heads_RH.shape[1] > 1:
            return self._heads(f, x, batch, said)
        q = self._quantities(k, x, batch, said)
        for state, update in f.function.updates.items():
            wanted = [n for n in inspect.signature(update).parameters if n in q and n != state]
            batch.step.seen.setdefault(k, []).append((x, {n: q[n].detach() for n in wanted}))
        if coupled is not None:
            # Same gradient as the whole step's loss, and of its value this batch's share.
            derivative = coupled.derivative[batch.number]
            slope = torch.stack([(derivative[n] * q[n]).sum() for n in derivative]).sum()
            return slope - slope.detach() + coupled.share * len(x)
        if f.function.couples_rows:
            return f.values(x, q).mean() * f.normaliser(batch.rows)
        return (f.values(x, q) * self._weights(f, x, said)).sum()

    def _quantities(self, k: int, x: np.ndarray, batch: Batch, said: Said) -> dict[str, Tensor]:
        f = self.fed[k]
        given = {name: self._state[k, name] for name in f.function.updates}
        if "z0" in f.function.needs:
            given["z0"] = self._z0(k, batch.step)
        return f.quantities(x, batch.forward, said, given)

    @staticmethod
    def _weights(f: Fed, x: np.ndarray, said: Said) -> Tensor:
        return torch.tensor(f.weights(x), dtype=torch.float32, device=next(iter(said.of.values())).device)

    def _heads(self, f: Fed, x: np.ndarray, batch: Batch, said: Said) -> Tensor:
        """The mean over an ensemble's heads, each on its own resample of the judgements."""
        assert said.heads_RH is not None and self.ensemble is not None
        drawn_HX = self._bootstrap(f, x) if self.ensemble.bootstrap else np.ones((said.heads_RH.shape[1], len(x)))
        weight_X = self._weights(f, x, said)
        parts = []
        for h, score_R in enumerate(said.heads_RH.unbind(1)):
            q = f.quantities(x, batch.forward, Said({**said.of, "R": score_R}), {})
            parts.append((f.values(x, q) * weight_X * torch.as_tensor(drawn_HX[h]).to(weight_X)).sum())
        return torch.stack(parts).mean()

    def _bootstrap(self, f: Fed, x: np.ndarray) -> np.ndarray:
        """(H, X) how often each head has the example's judgement: Poisson(1), by a hash of the judgement's digest, the seed and the head.

        A bootstrap of many rows gives each about this many copies, and so a row's number does not hang on the other rows.
        """
        assert self._ids is not None and self.ensemble is not None
        key = np.array([int(self._ids[int(r)][:16], 16) for r in f.view.row[x]], dtype=np.uint64)
        cumulative = np.cumsum(np.exp(-1.0) / np.cumprod(np.r_[1.0, np.arange(1.0, 20.0)]))
        drawn = [mix(key, derive(self.seed, "bootstrap", h)) for h in range(self.ensemble.heads)]
        return np.stack([np.searchsorted(cumulative, (u >> np.uint64(11)) * 2.0**-53, side="right") for u in drawn])

    # What a loss must know of the whole step.

    def _together(self, step: Step) -> None:
        """Of several ranks all must come to where they exchange, also one without rows; one process finds these when it needs them."""
        if self.ranks.world > 1:
            self._couplings(step)
            for k, f in enumerate(self.fed):
                if "z0" in f.function.needs:
                    self._z0(k, step)

    def _couplings(self, step: Step) -> dict[int, Coupled]:
        """A first pass without gradient over the step's batches, for losses that couple rows; none where one batch is all.

        The whole loss's derivative with respect to each quantity is all that the second pass needs of the other batches.
        """
        cut = self.ranks.world > 1 or len(step.batches) > 1
        coupled = [k for k, f in enumerate(self.fed) if f.function.couples_rows and cut]
        if step.whole is not None or not coupled:
            return step.whole or {}
        parts: dict[int, list[dict[str, Tensor]]] = {k: [] for k in coupled}
        with torch.no_grad(), self._same_draws():
            for batch in step.batches:
                said = self.scorer.say(batch.forward, self.needs)
                for k in coupled if batch.counts else ():
                    parts[k].append(self._quantities(k, batch.examples[k], batch, said))
        step.whole = {}
        for k in coupled:
            f = self.fed[k]
            examples = [b.examples[k] for b in step.batches if b.counts]
            x, quantities, before = self._gathered(examples, parts[k])
            with torch.enable_grad():
                whole = {n: q.requires_grad_() for n, q in quantities.items()}
                value = f.values(x, whole).mean() * f.normaliser(step.rows)
                slopes = torch.autograd.grad(value, list(whole.values()), allow_unused=True)
            sizes = [len(part) for part in examples]
            mine = slice(before, before + sum(sizes))
            split = {n: g[mine].split(sizes) for n, g in zip(whole, slopes, strict=True) if g is not None}
            derivative = [{n: pieces[i] for n, pieces in split.items()} for i in range(len(sizes))]
            step.whole[k] = Coupled(float(value.detach()) / len(x), derivative)
        return step.whole

    def _gathered(
        self, examples: Sequence[np.ndarray], parts: Sequence[Mapping[str, Tensor]]
    ) -> tuple[np.ndarray, dict[str, Tensor], int]:
        """The step's examples and quantities from all ranks' batches, and how many examples stand before this rank's."""
        x = torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *examples]))
        every = self.ranks.gather(x)
        mine = {n: torch.cat([p[n] for p in parts]) for n in (parts[0] if parts else ())}
        named = self.ranks.tell({n: str(q.dtype).removeprefix("torch.") for n, q in mine.items()})
        for n, dtype in max(named, key=len).items():  # a rank without rows has none
            mine.setdefault(n, torch.zeros(0, dtype=getattr(torch, dtype), device=self.model.device))
        whole = {n: torch.cat(self.ranks.gather(q)) for n, q in mine.items()}
        return torch.cat(every).numpy(), whole, sum(len(part) for part in every[: self.ranks.rank])

    def _z0(self, k: int, step: Step) -> Tensor:
        """kto's estimate over the whole step, from its responses under other prompts."""
        if k not in step.z0:
            assert isinstance(self.scorer, PolicyScorer)
            prompts, responses = self.fed[k].mentions(self.fed[k].examples(step.rows))
            with self._same_draws():
                step.z0[k] = kto_z0(self.scorer.mismatched(*mismatched(prompts, responses)))
        return step.z0[k]

    @contextmanager
    def _same_draws(self) -> Iterator[None]:
        """What is drawn inside (dropout) is drawn again after: the second pass sees what the first saw."""
        device = self.model.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield

    # Held-out figures, checks, state.

    def figures(self, rows: np.ndarray) -> dict[str, float]:
        """Figures over held-out rows: every sum first, one division at the end."""
        sums: dict[str, tuple[float, float]] = {}
        with self.scorer.quietly():
            step = self._plan(rows)
            self._together(step)
            for batch in step.batches:
                total, metrics = self.loss(batch)
                if not batch.counts:
                    continue
                for name, (value, weight) in {"loss": (float(total), self.normaliser(batch.rows)), **metrics}.items():
                    before = sums.get(name, (0.0, 0.0))
                    sums[name] = (before[0] + value, before[1] + weight)
        sums = self.ranks.sums(sums)
        return {name: value / weight for name, (value, weight) in sums.items() if weight and name != "tokens"}

    def begin(self) -> dict[str, Any]:
        """Step 0 must give a log-ratio of zero: otherwise the reference is not the policy's start, and nothing after would mean anything.

        A reference that the recipe takes from elsewhere has no such zero; the facts then say so.
        """
        terms = [{**f.term.facts, **self._counts(f)} for f in self.fed]
        if len(self.fed) == 1:
            facts = terms[0]
        else:
            facts = {"terms": [{**t, "weight": f.term.weight} for t, f in zip(terms, self.fed, strict=True)]}
        if self.ensemble is not None and self.ensemble.heads > 1:
            facts |= {"heads": self.ensemble.heads, "bootstrap": self.ensemble.bootstrap}
        if self.nuisance is not None:
            facts = {**facts, "debias": self.nuisance.facts}
        if self.reference is None:
            return facts
        if not self.reference.is_start:
            unchecked = "log-ratios not checked: the reference is another model than the one training starts from"
            return {**facts, "reference": {**self.reference.facts(), "step 0": unchecked}}
        some = self.rows[np.linspace(0, len(self.rows) - 1, min(8, len(self.rows)), dtype=int)]
        worst = 0.0
        with self.scorer.quietly():
            for batch in self._plan(some).batches:
                of = self.scorer.say(batch.forward).of
                worst = max(worst, float((of["r"].abs() / of["n"]).max()))
        worst = max(self.ranks.tell(worst))
        if not worst <= STEP_0_TOLERANCE.get(next(self.model.parameters()).dtype, COARSE):
            raise IntegrityError(
                f"at step 0 the policy's log-ratio to its reference is {worst:.3g} per token, not 0: the reference is another model than "
                "the one training starts from; name the same folder for both, or delete the cached reference"
            )
        return {**facts, "reference": self.reference.facts()}

    @staticmethod
    def _counts(f: Fed) -> Mapping[str, Any]:
        """Of good and bad labels their weight, and the balance that kto's paper keeps between 1 and 4/3."""
        if not isinstance(f, FedLabels):
            return {}
        weight = f.weights(np.arange(len(f.view)))
        good, bad = float(weight[f.view.good].sum()), float(weight[~f.view.good].sum())
        if not good or not bad:
            raise RecipeError(
                f"[objective] {f.term.name} needs good and bad responses; there are {good:g} good and {bad:g} bad: take sft for good ones alone"
            )
        keys = f.term.keys
        balance = keys["lam_good"] * good / (keys["lam_bad"] * bad) if keys.get("lam_bad") else None
        return {"good": good, "bad": bad, "balance": balance}

    def after_step(self, step: int) -> dict[str, Any]:
        """State that losses carry goes on from the whole step's rewards, in the order of the examples; then the reference's."""
        taken, self._taken = self._taken, None
        for (k, name), state in self._state.items():
            assert taken is not None
            f = self.fed[k]
            seen = taken.seen.get(k, [])
            x, quantities, _ = self._gathered([x for x, _ in seen], [q for _, q in seen])
            at = torch.from_numpy(np.argsort(x, kind="stable")).to(state.device)
            whole = {n: q[at] for n, q in quantities.items()}
            self._state[k, name] = f.function.updates[name](state, **whole, **f.term.updates[name]).to(state.dtype)
        said = self.reference.after_step(step) if self.reference is not None else {}
        if self.nuisance is not None:
            assert taken is not None
            x, quantities, _ = self._gathered([x for x, _ in taken.margins], [q for _, q in taken.margins])
            by_example = np.argsort(x, kind="stable")
            margin = quantities["margin"].cpu()[torch.from_numpy(by_example)] if len(x) else torch.zeros(0)
            said = {**said, "debias": self.nuisance.learn(x[by_example], margin)}
        return said

    def extra_state(self) -> dict[str, Tensor]:
        own = {self._named(k, name): value for (k, name), value in self._state.items()}
        if self.nuisance is not None:
            own |= self.nuisance.state()
        return {**own, **(self.reference.state() if self.reference is not None else {})}

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        for k, name in self._state:
            self._state[k, name] = state[self._named(k, name)].to(self.model.device)
        if self.nuisance is not None:
            self.nuisance.load_state(state)
        if self.reference is not None:
            self.reference.load_state(state)

    def _named(self, k: int, name: str) -> str:
        return name if len(self.fed) == 1 else f"{self.fed[k].term.name}/{name}"
