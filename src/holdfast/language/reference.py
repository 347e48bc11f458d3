"""The reference: what the policy's log-probabilities are compared to.

An objective asks a `Reference` for log-probabilities of a batch (`logps`), and, where its loss needs the whole distribution, for a
`policy`. Behind that stand three things:

    Cached      numbers computed once and kept as an artefact (the default: no second model, no second forward)
    Live        a policy that is computed beside the trained one: another model (`frozen`), or the trained model's own network with its
                adapter off (`without_adapter`) or with other values of its trained weights
    Moving      Live, with weights that follow the policy's (TR-DPO, 2404.09656)

The artefact's key names all it depends on (reference weights, tokenised rows, dtype, compute path, environment), so a stale cache cannot be
hit; what is loaded is spot-checked against the reference itself all the same.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from holdfast.data.ragged import Ragged
from holdfast.errors import IntegrityError, RecipeError
from holdfast.language.cache import cache_folder
from holdfast.language.logprob import Head
from holdfast.language.packing import Batch
from holdfast.language.policy import Logps, Policy
from holdfast.language.tokens import Tokens
from holdfast.recipe import ReferenceTable
from holdfast.training.checkpoint import fingerprint
from holdfast.training.ranks import here

VERSION = "holdfast-reference/1"
SPOT_CHECKS = 4  # groups recomputed when an artefact is loaded
# Between two computations of one token's log-probability, relative to max(1, |logp|): float32 sums in another order stay far below it.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
COARSE = 0.1  # the same for types of fewer bits, whose products hang on how a batch is cut

Group = tuple[int, Sequence[int]]


class Reference(Protocol):
    """What an objective may ask of a reference. All is without gradient."""

    @property
    def kind(self) -> str: ...

    @property
    def policy(self) -> Policy | None:
        """Computes the whole distribution on the objective's own batches; None where only numbers are kept."""
        ...

    @property
    def is_start(self) -> bool:
        """Its weights are those that training starts from: every log-ratio is then 0 at step 0."""
        ...

    def logps(self, batch: Batch) -> Logps:
        """Log-probabilities of the batch's response tokens, token by token in the batch's order, and summed per response."""
        ...

    def facts(self) -> dict[str, Any]:
        """What the ledger's first entry says of it."""
        ...

    def after_step(self, step: int) -> dict[str, Any]:
        """Follow an optimiser step. What the ledger's entry of the step says of it; empty where nothing moved."""
        ...

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint must keep of it, under names that begin with `reference/`."""
        ...

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None: ...


class _Still:
    """A reference that stays as it is."""

    def after_step(self, step: int) -> dict[str, Any]:
        return {}

    def state(self) -> dict[str, torch.Tensor]:
        return {}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        return None


@dataclass(frozen=True)
class Cached(_Still):
    """Token log-probabilities of the reference policy, as numbers.

    token:  Ragged float32, indexed by the dataset's response number; empty where a response was not asked for.
    digest: SHA-256 of the values, which the ledger commits to.
    key:    SHA-256 of what they depend on.
    """

    token: Ragged
    digest: str
    key: str
    is_start: bool = True
    kind: str = "cached"
    policy: Policy | None = None

    def logps(self, batch: Batch) -> Logps:
        device = batch.length_R.device
        mine = [self.token[int(i)] for i in batch.response_index]
        token_N = torch.from_numpy(np.concatenate(mine)).to(device)
        if len(token_N) != len(batch.owner_N):
            raise IntegrityError(
                f"the reference has {len(token_N)} log-probabilities for a batch of {len(batch.owner_N)} response tokens: it was not "
                "computed for these responses"
            )
        sum_R = np.array([x.sum(dtype=np.float64) for x in mine], dtype=np.float32)
        return Logps(token_N, batch.owner_N, torch.from_numpy(sum_R).to(device), batch.length_R)

    def facts(self) -> dict[str, Any]:
        return {"key": self.key, "digest": self.digest}


@dataclass(frozen=True)
class Live(_Still):
    """A policy computed beside the trained one, batch by batch.

    weights: its weights digest.
    """

    policy: Policy
    weights: str
    is_start: bool = True
    kind: str = "frozen"

    def logps(self, batch: Batch) -> Logps:
        with torch.no_grad():
            return self.policy.logps(batch)

    def facts(self) -> dict[str, Any]:
        return {"kind": self.kind, "weights": self.weights}


class Moving:
    """A reference that follows the policy (TR-DPO, 2404.09656): after every `tau` steps, reference <- alpha policy + (1 - alpha) reference.

    alpha = 1 is the paper's hard update, alpha < 1 its soft one. Only trained weights move; they are kept in float32, are state of the run,
    and at an update the ledger records their fingerprint. weights: the digest of those it starts from.
    """

    kind = "moving"
    is_start = True

    def __init__(self, policy: Policy, weights: str, *, alpha: float, tau: int):
        self._trained = [(name, p) for name, p in policy.model.named_parameters() if p.requires_grad]
        self._kept = {name: p.detach().to(torch.float32, copy=True) for name, p in self._trained}
        self._used = [p.detach().clone() if p.dtype != torch.float32 else self._kept[name] for name, p in self._trained]
        self.policy = with_weights(policy, [p for _, p in self._trained], self._used)
        self.weights, self.alpha, self.tau = weights, alpha, tau

    logps = Live.logps

    def facts(self) -> dict[str, Any]:
        return {"kind": self.kind, "weights": self.weights, "alpha": self.alpha, "tau": self.tau}

    def after_step(self, step: int) -> dict[str, Any]:
        if step % self.tau:
            return {}
        with torch.no_grad():
            for (name, p), used in zip(self._trained, self._used, strict=True):
                kept = self._kept[name]
                if self.alpha == 1:
                    kept.copy_(p)
                else:
                    kept.mul_(1 - self.alpha).add_(p, alpha=self.alpha)
                if used is not kept:
                    used.copy_(kept)
        return {"reference": fingerprint(list(self._kept.items()), 0, step)}

    def state(self) -> dict[str, torch.Tensor]:
        return {f"reference/{name}": tensor for name, tensor in self._kept.items()}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for (name, _), used in zip(self._trained, self._used, strict=True):
                self._kept[name].copy_(state[f"reference/{name}"])
                if used is not self._kept[name]:
                    used.copy_(self._kept[name])


class _View(Policy):
    """A policy's own network, computed inside a context in which it is another policy. No copy of anything; dropout is off."""

    def __init__(
        self,
        policy: Policy,
        within: Callable[[], AbstractContextManager[Any]],
        head: Callable[[Head], Head] = lambda h: h,
    ):
        self.__dict__.update(policy.__dict__)
        self._within, self._other_head = within, head

    def _hidden(self, batch: Batch) -> torch.Tensor:
        with self._quietly():
            return super()._hidden(batch)

    def _plain_logits(self, batch: Batch) -> torch.Tensor:
        with self._quietly():
            return super()._plain_logits(batch)

    def _head(self) -> Head:
        return self._other_head(super()._head())

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        training = self.model.training
        if training:
            self.model.eval()
        try:
            with self._within():
                yield
        finally:
            if training:
                self.model.train()


def without_adapter(policy: Policy) -> Policy:
    """The policy's base: the same network with its adapter switched off."""
    model = policy.model

    @contextmanager
    def off() -> Iterator[None]:
        # peft freezes what it switches off, and on the way back unfreezes whole layers: put back what was.
        before = [(p, p.requires_grad) for p in model.parameters()]
        try:
            with model.disable_adapter():
                yield
        finally:
            for p, trained in before:
                p.requires_grad_(trained)

    return _View(policy, off)


def with_weights(policy: Policy, parameters: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> Policy:
    """The policy's network with `values` in the place of `parameters`, looked at when it is computed. Never with gradient."""

    @contextmanager
    def swapped() -> Iterator[None]:
        # The storage changes hands, so no value is copied, and a graph that the policy has built still finds its own.
        own = [p.data for p in parameters]
        try:
            for p, value in zip(parameters, values, strict=True):
                p.data = value
            with torch.no_grad():
                yield
        finally:
            for p, data in zip(parameters, own, strict=True):
                p.data = data

    at = {id(p): value for p, value in zip(parameters, values, strict=True)}

    def head(own: Head) -> Head:
        return replace(
            own,
            weight=at.get(id(own.weight), own.weight),
            bias=None if own.bias is None else at.get(id(own.bias), own.bias),
        )

    return _View(policy, swapped, head)


def frozen(policy: Policy) -> Policy:
    """The policy as it now is, for good: a second copy of its trained weights, in memory; where weights are divided, of all of them."""
    if here().sharded:
        twin = Policy(copy.deepcopy(policy.model).requires_grad_(False).eval(), policy.compute, policy.chunk)
        twin.divide()
        return twin
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    return with_weights(policy, trained, [p.detach().clone() for p in trained])


def choose(table: ReferenceTable | None, loss: str, *, ratio: bool, distribution: bool, adapter: bool) -> str:
    """The kind of reference that a run has: what [reference] says, else what its loss needs.

    ratio: the loss compares to a reference; distribution: over the whole vocabulary. adapter: the policy trains one.
    Raises RecipeError for a kind that this loss or model cannot use.
    """
    needed = "none" if not ratio else "frozen" if distribution else "cached"
    kind = needed if table is None or table.kind is None else table.kind
    if table is not None and not ratio and table.kind != "none":
        raise RecipeError(f"[reference]: {loss} compares to no reference; leave the table out")
    if ratio and kind == "none":
        raise RecipeError(
            f"[reference] kind = 'none': {loss} compares to a reference; leave the table out for the cached one"
        )
    if distribution and kind == "cached":
        raise RecipeError(
            f"[reference] kind = 'cached': {loss} needs the reference's whole distribution, of which the artefact keeps one token; "
            "take kind = 'frozen'" + (" or 'adapter-off'" if adapter else "")
        )
    if kind == "adapter-off" and not adapter:
        raise RecipeError("[reference] kind = 'adapter-off' needs an [adapter]; without one take 'cached' or 'frozen'")
    return kind


def split_by_tokens(tokens: Tokens, groups: Sequence[Group], budget: int) -> list[list[Group]]:
    """Batches of prompt groups of about `budget` tokens each; a group alone over it is cut between responses."""
    batches: list[list[Group]] = []
    batch: list[Group] = []
    filled = 0
    for prompt, responses in groups:
        head = len(tokens.prompts[prompt])
        part: list[int] = []
        size = head
        for response in responses:
            n = len(tokens.responses[response])
            if part and size + n > budget:
                batches.append([(prompt, part)])
                part, size = [], head
            part.append(response)
            size += n
        if batch and filled + size > budget:
            batches.append(batch)
            batch, filled = [], 0
        batch.append((prompt, part))
        filled += size
    if batch:
        batches.append(batch)
    return batches


def token_logps(policy: Policy, tokens: Tokens, groups: Sequence[Group], budget: int = 8192) -> Ragged:
    """Token log-probabilities under `policy`, by response number. No gradient. The ranks divide the batches; what comes out hangs on
    no number of ranks.
    """
    lengths = np.zeros(len(tokens.responses), dtype=np.int64)
    for _, responses in groups:
        for response in responses:
            lengths[response] = len(tokens.responses[response])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    flat = np.zeros(int(offsets[-1]), dtype=np.float32)
    with torch.no_grad():
        for batch, counts in here().deal(split_by_tokens(tokens, groups, budget)):
            packed = policy.batch(tokens, batch)
            out = policy.logps(packed)
            values = out.token_N.float().cpu().numpy()
            at = 0
            for response in packed.response_index.tolist() if counts else []:
                n = int(lengths[response])
                flat[offsets[response] : offsets[response] + n] = values[at : at + n]
                at += n
    return Ragged(here().merge(torch.from_numpy(flat)).numpy(), offsets)


def reference_logps(
    policy: Policy,
    weights: str,
    tokens: Tokens,
    groups: Sequence[Group],
    environment: str,
    folder: Path | None = None,
    *,
    is_start: bool = True,
) -> Cached:
    """The artefact for `policy` on `tokens`: read from `folder` where its key stands, computed and written there otherwise.

    weights: the reference's weights digest. environment: what float results depend on (versions, threads), so that a run's bytes do not
    hang on who filled the cache. is_start: training starts from these weights. Raises
    IntegrityError when a loaded artefact disagrees with the reference on the spot checks.
    """
    dtype = str(next(policy.model.parameters()).dtype)
    wanted = hashlib.sha256(np.array([i for _, rs in groups for i in rs], dtype=np.int64).tobytes()).hexdigest()
    parts = (VERSION, weights, tokens.key, wanted, dtype, policy.compute, environment)
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    path = (folder or cache_folder() / "reference") / f"{key}.safetensors"
    if here().first(path.exists):
        with safe_open(path, "np") as file:
            token = Ragged(file.get_tensor("flat"), file.get_tensor("offsets"))
        _spot_check(policy, tokens, groups, token, path)
    else:
        token = token_logps(policy, tokens, groups)
        here().first(lambda: _keep(token, path))
    digest = hashlib.sha256(token.offsets.tobytes() + token.flat.tobytes()).hexdigest()
    return Cached(token, digest, key, is_start)


def _keep(token: Ragged, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    save_file({"flat": token.flat, "offsets": token.offsets}, temporary, metadata={"format": VERSION})
    temporary.replace(path)


def _spot_check(policy: Policy, tokens: Tokens, groups: Sequence[Group], token: Ragged, path: Path) -> None:
    tolerance = TOLERANCE.get(next(policy.model.parameters()).dtype, COARSE)
    some = [(p, list(r)[:2]) for p, r in (groups[i] for i in np.linspace(0, len(groups) - 1, SPOT_CHECKS, dtype=int))]
    again = token_logps(policy, tokens, some)
    for _, responses in some:
        for response in responses:
            kept, now = token[response], again[response]
            if len(kept) != len(now) or np.any(np.abs(kept - now) > tolerance * np.maximum(1, np.abs(now))):
                raise IntegrityError(
                    f"reference artefact {path} disagrees with the reference on response {response}: delete the file and run again"
                )
