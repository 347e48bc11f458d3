"""How alike a model finds the two responses of a pair: the CHES score, of pairs whose training may push the preferred one down too."""

# Axes: N response tokens and R responses of a batch, H hidden size, n pairs.

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from holdfast.data.dataset import Dataset
from holdfast.errors import HoldfastError
from holdfast.language.planning import by_prompt
from holdfast.language.policy import Compute, Policy, load_base
from holdfast.language.reference import split_by_tokens
from holdfast.language.tokens import Tokens, tokens_of
from holdfast.recipe import TextTable
from holdfast.training.checkpoint import weights_digest


def ches(
    policy: Policy, tokens: Tokens, prompt: np.ndarray, preferred: np.ndarray, other: np.ndarray, budget: int = 8192
) -> np.ndarray:
    """CHES of each pair, by length and as it is: (n, 2) float64, the higher the likelier is displacement.

    <s+, s-> - |s+|^2 with s+, s- the sums over the tokens of the preferred and of the other response of the last hidden states
    that predict them (of the prompt and the tokens before; what the output head reads): Razin et al., 2410.08847, definition 2,
    in the second column. In the first with means in place of sums, by which their section 6 sorts out pairs. 0 for a response
    against itself.

    prompt, preferred, other: (n,) dataset indices, whose tokens are in `tokens`. A prompt is computed once, a response once;
    no more is kept of it than its sum, and that only until its prompt's pairs are scored. budget: tokens of a forward.
    """
    score_n2 = np.zeros((len(prompt), 2))
    pairs_of: dict[int, list[int]] = {}
    for i, p in enumerate(prompt.tolist()):
        pairs_of.setdefault(p, []).append(i)
    groups = by_prompt(np.repeat(prompt, 2).tolist(), np.stack([preferred, other], axis=1).ravel().tolist())
    left = {p: len(responses) for p, responses in groups}  # a large group takes several forwards
    sums: dict[int, tuple[int, Tensor]] = {}  # tokens and sum of hidden states, (H,)
    for batch in split_by_tokens(tokens, groups, budget):
        made = policy.batch(tokens, batch)
        hidden_NH = policy.hidden(made).double()
        sum_RH = hidden_NH.new_zeros(len(made.length_R), hidden_NH.shape[1]).index_add_(0, made.owner_N, hidden_NH)
        sums.update(zip(made.response_index.tolist(), zip(made.length_R.tolist(), sum_RH, strict=True), strict=True))
        for p, responses in batch:
            left[p] -= len(responses)
            if left[p]:
                continue
            for i in pairs_of[p]:
                (t, mine), (u, theirs) = sums[int(preferred[i])], sums[int(other[i])]
                own, across = float(mine @ mine), float(mine @ theirs)
                score_n2[i] = across / (t * u) - own / t**2, across - own
            for r in {int(r) for i in pairs_of[p] for r in (preferred[i], other[i])}:
                del sums[r]
    return score_n2


def load_ches(
    folder: str | Path, compute: Compute = "auto"
) -> tuple[Callable[[Dataset, np.ndarray, np.ndarray, int], np.ndarray], str]:
    """(function, name) of a causal language model's folder, or of a run that has made one; an adapter's weights are added in.

    The function takes a dataset, the preferred and the other response of n pairs, and the most tokens of prompt and response;
    it gives `ches` of each, (n, 2) float64, nan where training could not use the pair: too long, or the same tokens on both sides.
    The name is the folder's, and a digest of the weights. HoldfastError for a folder that holds no such model.
    """
    model, tokenizer = load_base(folder)
    try:
        policy = Policy(model.eval(), compute)
    except HoldfastError as problem:
        raise HoldfastError(f"{folder}: {problem}") from None

    def score(ds: Dataset, preferred: np.ndarray, other: np.ndarray, max_length: int) -> np.ndarray:
        needed = np.zeros(ds.n_responses, bool)
        needed[preferred] = needed[other] = True
        of = ds.responses_of
        rows = np.unique(np.repeat(np.arange(ds.n_judgements), of.lengths)[needed[of.flat]])
        text = TextTable(max_length=min(max_length, policy.longest or max_length), too_long="drop")
        tokens = tokens_of(ds, rows, tokenizer, text, stops=model.generation_config.eos_token_id)
        length = tokens.responses.lengths
        out = np.full((len(preferred), 2), np.nan)
        fits = np.flatnonzero((length[preferred] > 0) & (length[other] > 0) & _apart(tokens, preferred, other))
        a, b = preferred[fits].astype(np.int64), other[fits].astype(np.int64)
        out[fits] = ches(policy, tokens, ds.response_prompt[a].astype(np.int64), a, b)
        return out

    return score, f"{Path(folder).resolve().name} {weights_digest(model)[:16]}"


def _apart(tokens: Tokens, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(n,) bool: the two responses are not the same tokens."""
    sides = zip(one.tolist(), other.tolist(), strict=True)
    return np.array([not np.array_equal(tokens.responses[a], tokens.responses[b]) for a, b in sides], bool)
