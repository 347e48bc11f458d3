"""What [objective] asks for: one loss or a weighted sum of several, each a `Term` with its own keys; and what the dataset feeds each
(`feed`). A fed term knows its examples, the responses they need, and how their quantities are made of what the models say.
"""

# Axes: X examples of a term (pairs, rankings, labelled or preferred responses), K responses of all rankings together, R responses and
# N response tokens of a batch.

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from holdfast.data.dataset import Dataset
from holdfast.data.views import Comparisons, Labels, Preferred, Rankings, comparisons, labels, preferred, rankings
from holdfast.errors import RecipeError
from holdfast.language import packing
from holdfast.language.tokens import Tokens
from holdfast.losses import LOSSES, Loss, dry_run, soft
from holdfast.recipe import bind_all
from holdfast.training.objective import Sums

View = Comparisons | Rankings | Labels | Preferred
SAME_TOKENS = "its responses are the same tokens"
Pessimism = float | Literal["min"]


@dataclass(frozen=True)
class Term:
    """One loss as the recipe sets it.

    keys: its hyper-parameters. updates: those of the functions that carry its state on, by the state's name. name: what its metrics
    begin with where there are several terms. weight: of its mean in the sum.
    """

    name: str
    function: Loss
    keys: Mapping[str, Any]
    updates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    weight: float = 1.0

    @property
    def facts(self) -> dict[str, Any]:
        own = {k: v for keys in (self.keys, *self.updates.values()) for k, v in keys.items()}
        return {"loss": self.function.name, **own}

    @property
    def scale(self) -> float:
        """What a log-ratio is multiplied by to be the loss's implicit reward: beta; ipo's tau is one."""
        return float(self.keys.get("beta", self.keys.get("tau", 1.0)))

    def reward(self, of: Mapping[str, Tensor]) -> Tensor:
        """The implicit reward (R,): beta times the log-ratio (without a reference: the log-probability), per token where the loss is."""
        if "R" in of:
            return of["R"]
        implicit = self.scale * of["r" if self.function.needs_reference else "logp"]
        return implicit / of["n"] if self.function.per_token else implicit


@dataclass(frozen=True)
class Ensemble:
    """The score heads of a reward model. bootstrap: each head sees its own resample of the judgements. pessimism: what is reported
    beside the mean at scoring time, the mean less so many standard deviations, or the least head.
    """

    heads: int = 1
    bootstrap: bool = False
    pessimism: Pessimism | None = None


@dataclass(frozen=True)
class Asked:
    """What [objective] says: its kind, its terms (one, but for a sum), and a reward model's heads."""

    kind: str
    terms: tuple[Term, ...]
    ensemble: Ensemble = Ensemble()

    @property
    def needs_reference(self) -> bool:
        return any(t.function.needs_reference for t in self.terms)

    @property
    def needs_distribution(self) -> bool:
        """Whether a reference that only keeps the log-probabilities of the dataset's own responses will not do: the whole distribution
        is needed (tdpo2), or responses under prompts that are not theirs (kto).
        """
        return any(n.startswith("kl_") or n == "z0" for t in self.terms for n in t.function.needs)

    @property
    def judges(self) -> Term:
        """The term whose implicit reward scores responses: the first that knows better from worse. After sft alone it is the mean
        log-probability per token.
        """
        knowing = [t for t in self.terms if t.function.family != "sft"]
        return knowing[0] if knowing else Term("sft", LOSSES["simpo"], {"beta": 1.0})


def kinds() -> list[str]:
    """What `[objective] kind` may say."""
    return ["sft", "reward", "sum", *sorted(n for n, f in LOSSES.items() if f.family in ("pair", "list", "label"))]


def reward_losses() -> list[str]:
    """What `[objective] loss` may say where kind = "reward"."""
    return [n.removeprefix("reward_") for n, f in LOSSES.items() if f.family == "reward"]


def read_objective(table: Mapping[str, Any]) -> Asked:
    """[objective] as terms with every key bound. Raises RecipeError naming what is unknown, missing or out of range, and what is known."""
    kind = table["kind"]
    if kind != "sum":
        said = {k: v for k, v in table.items() if k != "kind"}
        if kind == "reward":
            return _reward(said)
        return Asked(kind, (_term(kind, said, "[objective]"),))
    ((terms,),) = [
        tuple(b.values()) for b in bind_all([_sum], {k: v for k, v in table.items() if k != "kind"}, "[objective]")
    ]
    if not terms or not all(isinstance(t, Mapping) for t in terms):
        raise RecipeError(
            "[objective] kind = 'sum' needs terms: one [[objective.terms]] with kind and weight for each loss"
        )
    read: list[Term] = []
    for n, said in enumerate(terms, 1):
        where = f"[[objective.terms]] {n}"
        own = dict(said)
        one = own.pop("kind", None)
        if not isinstance(one, str):
            raise RecipeError(f"{where}: kind must be given (known: {', '.join(_summable())})")
        if one in ("reward", "sum"):
            raise RecipeError(f"{where}: kind = {one!r} cannot be a term (known: {', '.join(_summable())})")
        ((weight,),) = [tuple(b.values()) for b in bind_all([_weighted], {"weight": own.pop("weight", 1.0)}, where)]
        if not weight > 0:
            raise RecipeError(f"{where}: weight = {weight!r} should be above 0; leave the term out")
        name = one if one not in {t.name for t in read} else f"{one}-{n}"
        read.append(_term(one, own, where, name, weight))
    return Asked(kind, tuple(read))


def _sum(*, terms: list) -> None: ...


def _weighted(*, weight: float) -> None: ...


def _summable() -> list[str]:
    return [k for k in kinds() if k not in ("reward", "sum")]


def _term(kind: str, said: Mapping[str, Any], where: str, name: str | None = None, weight: float = 1.0) -> Term:
    if kind not in _summable():
        raise RecipeError(f"{where} kind = {kind!r} is unknown (known: {', '.join(kinds())})")
    return _bound(LOSSES["sft_nll" if kind == "sft" else kind], said, f"{where} of {kind}", name or kind, weight)


def _bound(loss: Loss, said: Mapping[str, Any], where: str, name: str, weight: float = 1.0) -> Term:
    """A key of the loss and of a state's update (beta, say) goes to both."""
    keys, *updates = bind_all([loss, *loss.updates.values()], said, where)
    dry_run(loss, **keys)
    for update, own in zip(loss.updates.values(), updates, strict=True):
        ones = [torch.ones(1) for p in inspect.signature(update).parameters.values() if p.kind is not p.KEYWORD_ONLY]
        update(*ones, **own)
    return Term(name, loss, keys, dict(zip(loss.updates, updates, strict=True)), weight)


def _reward(said: dict[str, Any]) -> Asked:
    name = said.pop("loss", "bradley_terry")
    if name not in reward_losses():
        raise RecipeError(f"[objective] loss = {name!r} is unknown (known: {', '.join(reward_losses())})")
    loss = LOSSES.get(f"reward_{name}", LOSSES[name])
    # What is the head's is bound beside the loss's own keys, so that an unknown key is told all of them.
    own = inspect.signature(_heads).parameters
    bind_all([loss, _heads, _of_reward], {**said, "loss": name}, "[objective] of reward")
    (heads,) = bind_all([_heads], {k: v for k, v in said.items() if k in own}, "[objective] of reward")
    term = _bound(loss, {k: v for k, v in said.items() if k not in own}, "[objective] of reward", "reward")
    return Asked("reward", (term,), _heads(**heads))


def _of_reward(*, loss: str) -> None: ...


def _heads(
    *, heads: int = 1, bootstrap: bool | None = None, pessimism: float | Literal["min"] | None = None
) -> Ensemble:
    if heads < 1:
        raise RecipeError(f"[objective] heads = {heads}: a reward model needs one score head or more")
    for name, value in (("bootstrap", bootstrap), ("pessimism", pessimism)):
        if heads == 1 and value is not None:
            raise RecipeError(f"[objective] {name} = {value!r} has no effect with one head; set heads = 4, say")
    if isinstance(pessimism, float) and pessimism < 0:
        raise RecipeError(f"[objective] pessimism = {pessimism!r} should be 0 or more standard deviations, or 'min'")
    return Ensemble(heads, heads > 1 if bootstrap is None else bootstrap, pessimism)


@dataclass(frozen=True)
class Said:
    """What the models say of a batch's responses.

    of: per response, (R,): `n`; a policy's `logp`, `ref_logp`, `r`, `aligned`, `kl`, as far as asked for; a reward model's `R`, the mean
    of its heads. token_N, ref_token_N: log-probabilities per token. heads_RH: each head's score.
    """

    of: dict[str, Tensor]
    token_N: Tensor | None = None
    ref_token_N: Tensor | None = None
    heads_RH: Tensor | None = None


class Fed:
    """A term with the examples that the dataset feeds it. row_weight: (N,) what each judgement of the dataset weighs; None: one each."""

    view: View

    def __init__(self, term: Term, row: np.ndarray, row_weight: np.ndarray | None = None):
        self.term, self.function, self.row_weight = term, term.function, row_weight
        order = np.argsort(row, kind="stable")
        rows, first, count = np.unique(row[order], return_index=True, return_counts=True)
        self.rows = rows
        self._at = {int(r): order[f : f + n] for r, f, n in zip(rows, first, count, strict=True)}

    def examples(self, rows: np.ndarray) -> np.ndarray:
        """(X,) the examples of these rows, in their order; a row that feeds this term nothing has none."""
        none = np.zeros(0, dtype=np.int64)
        return np.concatenate([none, *(self._at.get(int(row), none) for row in rows)])

    def prompt_of(self, row: int) -> int | None:
        at = self._at.get(int(row))
        return None if at is None else int(self.view.prompt[at[0]])

    def normaliser(self, rows: np.ndarray) -> float:
        """Judgements: each weighs one, however many examples it makes, or what [data.weights] says."""
        if self.row_weight is not None:
            return float(sum(self.row_weight[row] for row in rows.tolist() if row in self._at))
        return float(sum(int(row) in self._at for row in rows))

    def mentions(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(prompts, responses) that the forward must hold for these examples."""
        raise NotImplementedError

    def quantities(
        self, x: np.ndarray, batch: packing.Batch, said: Said, given: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The quantities that the loss names, for these examples. given: those that are none of a single batch's (`delta`, `z0`)."""
        raise NotImplementedError

    def values(self, x: np.ndarray, q: Mapping[str, Tensor]) -> Tensor:
        """The loss per example (X,); a loss that couples rows: given the whole step's."""
        return self.function(*(q[n] for n in self.function.takes), **self.term.keys)

    def share(self, x: np.ndarray) -> np.ndarray:
        """(X,) which part of its judgement an example is: 1 in all per judgement."""
        return np.ones(len(x))

    def weights(self, x: np.ndarray) -> np.ndarray:
        """(X,) what an example weighs in the loss."""
        return self.share(x) if self.row_weight is None else self.share(x) * self.row_weight[self.view.row[x]]

    def metrics(self, x: np.ndarray, batch: packing.Batch, of: Mapping[str, Tensor], step: np.ndarray) -> Sums:
        """Under TRL's names. of: as in `Said`, without graph. step: all of the step's examples."""
        raise NotImplementedError

    def _unknown(self, name: str) -> RecipeError:
        return RecipeError(f"[objective] loss {self.function.name!r} needs {name!r}, which this objective cannot give")


class Voice(Protocol):
    """What speaks beside the reward in a term's pairs: `debias.Nuisance`."""

    def lean(self, quantities: Mapping[str, Tensor], x: np.ndarray, term: Term) -> dict[str, Tensor]: ...


class FedPairs(Fed):
    view: Comparisons
    beside: Voice | None = None

    def __init__(self, term: Term, view: Comparisons, row_weight: np.ndarray | None = None):
        super().__init__(term, view.row, row_weight)
        self.view = view

    def mentions(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.repeat(self.view.prompt[x], 2), np.stack([self.view.a[x], self.view.b[x]], axis=1).ravel()

    def share(self, x: np.ndarray) -> np.ndarray:
        return self.view.weight[x]

    def quantities(
        self, x: np.ndarray, batch: packing.Batch, said: Said, given: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        at = {"w": batch.where(self.view.a[x]), "l": batch.where(self.view.b[x])}
        device = batch.length_R.device
        past: dict[str, Tensor] = {}
        found: dict[str, Tensor] = {}
        for name in self.function.needs:
            stem, _, side = name.rpartition("_")
            if name in given:
                found[name] = given[name]
            elif name == "margin":
                found[name] = _floats(np.nan_to_num(self.view.margin[x]), device)
            elif name == "tie":
                found[name] = _floats(self.view.tie[x], device)
            elif stem in ("past_logp", "past_ref_logp"):
                past = past or _past(at, batch, said)
                found[name] = past[name]
            elif side in at and stem in said.of:
                found[name] = said.of[stem][at[side]]
            else:
                raise self._unknown(name)
        return found if self.beside is None else self.beside.lean(found, x, self.term)

    def margins(self, x: np.ndarray, batch: packing.Batch, of: Mapping[str, Tensor]) -> Tensor:
        """(X,) how much higher the implicit reward of a is than that of b."""
        reward_R = self.term.reward(of)
        return reward_R[batch.where(self.view.a[x])] - reward_R[batch.where(self.view.b[x])]

    def values(self, x: np.ndarray, q: Mapping[str, Tensor]) -> Tensor:
        if self.function.couples_rows:
            return super().values(x, q)
        some = next(v for n, v in q.items() if n.endswith(("_w", "_l")))
        return soft(self.function, _floats(self.view.p[x], some.device), **q, **self.term.keys)

    def metrics(self, x: np.ndarray, batch: packing.Batch, of: Mapping[str, Tensor], step: np.ndarray) -> Sums:
        """A tie has no winner: it counts in no accuracy."""
        a, b = batch.where(self.view.a[x]), batch.where(self.view.b[x])
        reward_R = self.term.reward(of)
        p, weight = _floats(self.view.p[x], reward_R.device), _floats(self.view.weight[x], reward_R.device)
        sign = torch.sign(p - 0.5)
        right = (torch.sign(reward_R[a] - reward_R[b]) * sign + 1) / 2
        decided = weight * (sign != 0)
        w, n = float(weight.sum()), float(decided.sum())

        def mean(x: Tensor) -> tuple[float, float]:
            return float((x * weight).sum()), w

        def sides(x_R: Tensor) -> tuple[Tensor, Tensor]:
            return torch.where(sign < 0, x_R[b], x_R[a]), torch.where(sign < 0, x_R[a], x_R[b])

        chosen, rejected = sides(reward_R)
        sums = {
            "rewards/chosen": mean(chosen),
            "rewards/rejected": mean(rejected),
            "rewards/margins": mean(chosen - rejected),
            "rewards/accuracies": (float((right * decided).sum()), n),
        }
        if "logp" in of:
            sums["logps/chosen"], sums["logps/rejected"] = map(mean, sides(of["logp"]))
        return sums


class FedLists(Fed):
    view: Rankings

    def __init__(self, term: Term, view: Rankings, row_weight: np.ndarray | None = None):
        super().__init__(term, view.row, row_weight)
        self.view = view

    def mentions(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mine = self.view.responses.take(x)
        return self.view.prompt[x][mine.owner], mine.flat

    def quantities(
        self, x: np.ndarray, batch: packing.Batch, said: Said, given: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        mine = self.view.responses.take(x)
        at, device = batch.where(mine.flat), batch.length_R.device
        found = {}
        for name in self.function.needs:
            if name == "rank":
                found[name] = _floats(self.view.ranks.take(x).flat, device)
            elif name == "owner":
                found[name] = torch.from_numpy(mine.owner).to(device)
            elif name in said.of:
                found[name] = said.of[name][at]
            else:
                raise self._unknown(name)
        return found

    def metrics(self, x: np.ndarray, batch: packing.Batch, of: Mapping[str, Tensor], step: np.ndarray) -> Sums:
        """chosen and rejected are a ranking's first and last; its accuracy is the share of its ordered pairs that are right."""
        reward = self.term.reward(of).double().cpu().numpy()
        logp = of["logp"].double().cpu().numpy() if "logp" in of else None
        n = float(len(x))
        sums = dict.fromkeys(("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"), 0.0)
        sums |= dict.fromkeys(("logps/chosen", "logps/rejected"), 0.0) if logp is not None else {}
        for i in x.tolist():
            at = batch.where(self.view.responses[i]).cpu().numpy()
            rank, own = self.view.ranks[i], reward[at]
            below = rank[:, None] < rank[None, :]
            right = (np.sign(own[:, None] - own[None, :]) + 1) / 2
            sums["rewards/chosen"] += own[0]
            sums["rewards/rejected"] += own[-1]
            sums["rewards/margins"] += own[0] - own[-1]
            sums["rewards/accuracies"] += right[below].mean()
            if logp is not None:
                sums["logps/chosen"] += logp[at[0]]
                sums["logps/rejected"] += logp[at[-1]]
        return {name: (float(value), n) for name, value in sums.items()}


class FedLabels(Fed):
    view: Labels

    def __init__(self, term: Term, view: Labels, row_weight: np.ndarray | None = None):
        super().__init__(term, view.row, row_weight)
        self.view = view

    def mentions(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.view.prompt[x], self.view.response[x]

    def share(self, x: np.ndarray) -> np.ndarray:
        return self.view.weight[x]

    def quantities(
        self, x: np.ndarray, batch: packing.Batch, said: Said, given: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        at = batch.where(self.view.response[x])
        found = {}
        for name in self.function.needs:
            if name in given:
                found[name] = given[name]
            elif name == "good":
                found[name] = _floats(self.view.good[x], at.device)
            elif name in said.of:
                found[name] = said.of[name][at]
            else:
                raise self._unknown(name)
        return found

    def metrics(self, x: np.ndarray, batch: packing.Batch, of: Mapping[str, Tensor], step: np.ndarray) -> Sums:
        """chosen: good, rejected: bad. The margin is between the step's two means, so each batch gives its share of it."""
        at, good = batch.where(self.view.response[x]), self.view.good[x]
        weight = self.view.weight[x]
        sums: dict[str, tuple[float, float]] = {}
        for name, value_R in (("rewards", self.term.reward(of)), ("logps", of["logp"])):
            value = value_R[at].double().cpu().numpy()
            for side, mine in (("chosen", good), ("rejected", ~good)):
                sums[f"{name}/{side}"] = (float((value * weight)[mine].sum()), float(weight[mine].sum()))
        whole, is_good = self.view.weight[step], self.view.good[step]
        n_good, n_bad = float(whole[is_good].sum()), float(whole[~is_good].sum())
        if n_good and n_bad:
            margin = sums["rewards/chosen"][0] / n_good - sums["rewards/rejected"][0] / n_bad
            sums["rewards/margins"] = (margin, len(x) / len(step))
        return sums


class FedPreferred(Fed):
    view: Preferred

    def __init__(self, term: Term, view: Preferred, tokens: Tokens, row_weight: np.ndarray | None = None):
        super().__init__(term, view.row, row_weight)
        self.view, self._lengths = view, tokens.responses.lengths

    def mentions(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.view.prompt[x], self.view.response[x]

    def normaliser(self, rows: np.ndarray) -> float:
        """Response tokens; those of a judgement that weighs two count twice."""
        x = self.examples(rows)
        lengths = self._lengths[self.view.response[x]]
        return float(lengths.sum() if self.row_weight is None else (lengths * self.weights(x)).sum())

    def quantities(
        self, x: np.ndarray, batch: packing.Batch, said: Said, given: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        return {"logp": said.of["logp"][batch.where(self.view.response[x])]}

    def metrics(self, x: np.ndarray, batch: packing.Batch, of: Mapping[str, Tensor], step: np.ndarray) -> Sums:
        at = batch.where(self.view.response[x])
        return {"nll": (float(-of["logp"][at].sum()), float(of["n"][at].sum()))}


def feed(term: Term, ds: Dataset, rows: np.ndarray, score_margin: float = 0.0, tokens: Tokens | None = None) -> View:
    """What these judgements are to the term: the schema decides. Ties and probabilities go to losses that can use them and are
    otherwise left out, with the reason. With tokens, so is what compares responses of the same tokens (scores: `tokenise` sees to rows
    that name both).
    """
    loss = term.function
    if "owner" in loss.needs:
        ranked = rankings(ds, rows, score_margin)
        if tokens is None:
            return ranked
        told = [len({tokens.responses[int(r)].tobytes() for r in mine}) == len(mine) for mine in ranked.responses]
        return ranked.only(np.array(told, dtype=bool), SAME_TOKENS)
    if loss.family == "label":
        return labels(ds, rows)
    if loss.family == "sft":
        return preferred(ds, rows)
    view = comparisons(ds, rows, score_margin)
    if tokens is not None:
        view = apart(view, tokens)
    if loss.why_not_soft is not None:
        if not loss.uses_ties:
            view = view.only(~view.tie, f"a tie: {loss.name} has no place for it, since {loss.why_not_soft}")
        view = view.only(view.tie | (view.p == 1), f"a probability: {loss.name} takes none, since {loss.why_not_soft}")
    return view


def apart(view: Comparisons, tokens: Tokens) -> Comparisons:
    """The comparisons whose two responses differ in their tokens."""
    pairs = zip(view.a.tolist(), view.b.tolist(), strict=True)
    differ = [not np.array_equal(tokens.responses[a], tokens.responses[b]) for a, b in pairs]
    return view.only(np.array(differ, dtype=bool), SAME_TOKENS)


def fed(term: Term, view: View, tokens: Tokens, row_weight: np.ndarray | None = None) -> Fed:
    """The term with its examples."""
    if isinstance(view, Comparisons):
        return FedPairs(term, view, row_weight)
    if isinstance(view, Rankings):
        return FedLists(term, view, row_weight)
    if isinstance(view, Labels):
        return FedLabels(term, view, row_weight)
    return FedPreferred(term, view, tokens, row_weight)


def refuse_weights(terms: Sequence[Term]) -> None:
    """RecipeError where [data.weights] cannot mean anything to a loss."""
    for term in terms:
        if term.function.couples_rows:
            raise RecipeError(
                f"[data.weights]: {term.function.name} compares the rows of a whole step with each other, in which none has a weight of its "
                "own; leave [data.weights] out, or take another loss"
            )


def _past(at: Mapping[str, Tensor], batch: packing.Batch, said: Said) -> dict[str, Tensor]:
    """Per pair and side, the log-probability on the tokens past the shorter length, under policy and reference."""
    assert said.token_N is not None and said.ref_token_N is not None
    length_R = batch.length_R.cpu().numpy()
    first_R = np.cumsum(length_R) - length_R
    places = {side: place.cpu().numpy() for side, place in at.items()}
    shorter = np.minimum(length_R[places["w"]], length_R[places["l"]])
    found = {}
    for side, place in places.items():
        extra = length_R[place] - shorter
        owner = np.repeat(np.arange(len(place)), extra)
        nth = np.arange(len(owner)) - np.repeat(np.cumsum(extra) - extra, extra)
        token = torch.from_numpy(first_R[place][owner] + shorter[owner] + nth).to(batch.length_R.device)
        pair = torch.from_numpy(owner).to(token.device)
        for name, value_N in ((f"past_logp_{side}", said.token_N), (f"past_ref_logp_{side}", said.ref_token_N)):
            total = torch.zeros(len(place), dtype=torch.float64, device=token.device)
            total = total.index_add(0, pair, value_N.index_select(0, token).double())
            found[name] = total.to(torch.promote_types(torch.float32, value_N.dtype))
    return found


def _floats(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)
