"""A step's sequences on one row: each prompt once, each distinct response once, however many judgements name it.

    T    tokens of the row           N    response tokens, response by response
    R    distinct responses          B, L rows and columns of a batch (packed: B = 1, L = T)
    S    segments: a prompt (attends itself, causally) or a response (attends its prompt, and itself causally)

`pack` also plans the attention: segments of like size share one padded call, so that a small model is not drowned in
calls and a large one wastes little. `pad` makes the plain batch, one right-padded sequence per response, with the same
fields: the oracle and the fallback. All is numpy until the end; nothing here knows a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from holdfast.errors import DataError

# What one more attention call costs, in multiply-adds of the attention itself: about 80 microseconds forward and
# backward, measured on two threads of a 4-core x86. It only decides how much padding a saved call is worth; results do
# not depend on it beyond float error.
CALL_COST = 600_000

Groups = Sequence[tuple[int, Sequence[int]]]
Self = TypeVar("Self", bound="Batch")


class TokenSource(Protocol):
    """Token ids by dataset index (`holdfast.language.tokens.Tokens` is one)."""

    @property
    def prompts(self) -> Any: ...
    @property
    def responses(self) -> Any: ...


@dataclass(frozen=True)
class Batch:
    """Sequences as a model reads them, and where the response tokens stand. Places number the flattened (B * L)
    positions.

    ids_BL, position_BL: int64; a response's positions go on from its prompt's length.
    place_N:  where each response token stands.     source_N: where it is predicted from (the first: its prompt's last).
    target_N: its id.                               owner_N:  whose it is, 0..R-1.
    last_R:   place of a response's last token.     length_R: its number of tokens.
    response_index: (R,) int64 numpy, which dataset response each is.
    longest: tokens of the longest prompt + response.
    """

    ids_BL: torch.Tensor
    position_BL: torch.Tensor
    place_N: torch.Tensor
    source_N: torch.Tensor
    target_N: torch.Tensor
    owner_N: torch.Tensor
    last_R: torch.Tensor
    length_R: torch.Tensor
    response_index: np.ndarray
    longest: int

    @property
    def n_tokens(self) -> int:
        """Positions that the model computes, padding included."""
        return self.ids_BL.numel()

    def where(self, responses: np.ndarray | Sequence[int]) -> torch.Tensor:
        """Which of the R each dataset response is, int64. A KeyError for one that is not in the batch is a fault of
        the caller.
        """
        at = {int(r): i for i, r in enumerate(self.response_index)}
        return torch.tensor([at[int(r)] for r in responses], dtype=torch.int64, device=self.ids_BL.device)

    def to(self: Self, device: torch.device | str) -> Self:
        if self.ids_BL.device == torch.device(device):
            return self
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if hasattr(getattr(self, f.name), "to")}
        return replace(self, **moved)


@dataclass(frozen=True)
class Padded(Batch):
    """One sequence per response, right padded. mask_BL: int64, 1 for a token and 0 for padding."""

    mask_BL: torch.Tensor


@dataclass(frozen=True)
class Bucket:
    """Segments of like size that share one padded attention call.

    q_position_SQ, k_position_SK: logical positions in the segment's own sequence; a padding key has position -1, a
    padding query repeats the last one. causal: queries and keys are the same tokens from position 0 on.
    """

    q_position_SQ: torch.Tensor
    k_position_SK: torch.Tensor
    causal: bool

    def to(self, device: torch.device | str) -> Bucket:
        return Bucket(self.q_position_SQ.to(device), self.k_position_SK.to(device), self.causal)


@dataclass(frozen=True)
class Plan:
    """How the row's attention is computed. Every layer reads it: gather queries, keys and values bucket by bucket,
    attend, put back. Or in one call with a mask, from what each token is.

    q_index, k_index: rows to gather, the buckets one after the other. slot_T: where in the buckets' output each token's
    result lies. segment_T, prompt_T: the first place of a token's segment and of its prompt; position_T: its logical position.
    """

    buckets: tuple[Bucket, ...]
    q_index: torch.Tensor
    k_index: torch.Tensor
    slot_T: torch.Tensor
    longest: int
    segment_T: torch.Tensor
    prompt_T: torch.Tensor
    position_T: torch.Tensor

    def to(self, device: torch.device | str) -> Plan:
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if hasattr(getattr(self, f.name), "to")}
        return replace(self, buckets=tuple(b.to(device) for b in self.buckets), **moved)


@dataclass(frozen=True)
class Packed(Batch):
    """All sequences on one row (B = 1), without padding but for the few tokens that make its length even (see `pack`)."""

    plan: Plan


def pack(tokens: TokenSource, groups: Groups, width: int = 512, even: int = 1) -> Packed:
    """One row of prompt groups: `(prompt, responses)` as dataset indices.

    Groups of the same prompt are joined, a response named twice is there once. `width` (heads x head size of the model)
    sets how much padding a saved attention call is worth. A long row is filled up to a multiple of `even` tokens, which see nothing else
    and are read by nothing. Raises DataError for a prompt or response without tokens.
    """
    joined = _join(tokens, groups)
    row: list[np.ndarray] = []
    position: list[np.ndarray] = []
    prompt_segments: list[tuple[int, int, int, int]] = []  # (first query, queries, first of prefix, length of prefix)
    response_segments: list[tuple[int, int, int, int]] = []
    place: list[np.ndarray] = []
    source: list[np.ndarray] = []
    at = 0
    for prompt, responses in joined:
        start, n_prompt = at, len(prompt)
        prompt_segments.append((start, n_prompt, start, 0))
        row.append(prompt)
        position.append(np.arange(n_prompt))
        at += n_prompt
        for _, response in responses:
            n = len(response)
            response_segments.append((at, n, start, n_prompt))
            row.append(response)
            position.append(np.arange(n_prompt, n_prompt + n))
            here = np.arange(at, at + n)
            place.append(here)
            source.append(np.concatenate([[start + n_prompt - 1], here[:-1]]))
            at += n
    if at >= 8 * even and (fill := -at % even):
        prompt_segments.append((at, fill, at, 0))
        row.append(np.repeat(row[0][:1], fill))
        position.append(np.arange(fill))
        at += fill
    length = np.array([len(p) for p in place], dtype=np.int64)
    longest = max(len(p) + len(r) for p, responses in joined for _, r in responses)
    plan = _plan(np.array(prompt_segments), np.array(response_segments), at, longest, CALL_COST / width)
    ids = np.concatenate(row)
    place_N = np.concatenate(place)
    return Packed(
        ids_BL=_tensor(ids)[None],
        position_BL=_tensor(np.concatenate(position))[None],
        place_N=_tensor(place_N),
        source_N=_tensor(np.concatenate(source)),
        target_N=_tensor(ids[place_N]),
        owner_N=_tensor(np.repeat(np.arange(len(length)), length)),
        last_R=_tensor(place_N[np.cumsum(length) - 1]),
        length_R=_tensor(length),
        response_index=np.array([i for _, responses in joined for i, _ in responses], dtype=np.int64),
        longest=longest,
        plan=plan,
    )


def pad(tokens: TokenSource, groups: Groups, padding: int = 0) -> Padded:
    """The plain batch of the same groups: prompt + response, one row each, filled up on the right with the id
    `padding`.
    """
    rows = [(i, prompt, response) for prompt, responses in _join(tokens, groups) for i, response in responses]
    longest = max(len(p) + len(r) for _, p, r in rows)
    ids = np.full((len(rows), longest), padding, dtype=np.int64)
    mask = np.zeros_like(ids)
    place = []
    for b, (_, prompt, response) in enumerate(rows):
        n_prompt, n = len(prompt), len(prompt) + len(response)
        ids[b, :n_prompt] = prompt
        ids[b, n_prompt:n] = response
        mask[b, :n] = 1
        place.append(np.arange(b * longest + n_prompt, b * longest + n))
    length = np.array([len(p) for p in place], dtype=np.int64)
    place_N = np.concatenate(place)
    return Padded(
        ids_BL=_tensor(ids),
        position_BL=_tensor(np.tile(np.arange(longest), (len(rows), 1))),
        place_N=_tensor(place_N),
        source_N=_tensor(place_N - 1),
        target_N=_tensor(ids.reshape(-1)[place_N]),
        owner_N=_tensor(np.repeat(np.arange(len(length)), length)),
        last_R=_tensor(place_N[np.cumsum(length) - 1]),
        length_R=_tensor(length),
        response_index=np.array([i for i, _, _ in rows], dtype=np.int64),
        longest=longest,
        mask_BL=_tensor(mask),
    )


def _join(tokens: TokenSource, groups: Groups) -> list[tuple[np.ndarray, list[tuple[int, np.ndarray]]]]:
    """(prompt ids, [(response index, response ids), ...]) per distinct prompt, in the order of first appearance."""
    members: dict[int, dict[int, np.ndarray]] = {}
    for prompt, responses in groups:
        there = members.setdefault(int(prompt), {})
        for response in map(int, responses):
            if response not in there:
                there[response] = np.asarray(tokens.responses[response], dtype=np.int64)
                if not len(there[response]):
                    raise DataError(
                        f"response {response} has no tokens; drop the row, or end responses with a stop token"
                    )
    joined = []
    for prompt, there in members.items():
        ids = np.asarray(tokens.prompts[prompt], dtype=np.int64)
        if not len(ids):
            raise DataError(
                f"prompt {prompt} has no tokens, so nothing predicts the response's first one; give it text, or use a "
                "tokenizer with a BOS token"
            )
        if there:
            joined.append((ids, list(there.items())))
    if not joined:
        raise DataError("a batch needs at least one response; the groups name none")
    return joined


def _plan(prompts: np.ndarray, responses: np.ndarray, n_tokens: int, longest: int, call_cost: float) -> Plan:
    """Bucket the segments and lay out the gathers.

    Prompts and responses are bucketed apart: a prompt bucket is plainly causal and needs no mask. Within a kind,
    segments are sorted (by queries or by keys, whichever comes out cheaper) and cut into runs by dynamic programming
    on: calls x call_cost + padded query-key products.
    """
    buckets: list[Bucket] = []
    q_index: list[np.ndarray] = []
    k_index: list[np.ndarray] = []
    slot_T = np.empty(n_tokens, dtype=np.int64)
    at = 0
    for segments, causal in ((prompts, True), (responses, False)):
        for members in _runs(segments[:, 1], segments[:, 1] + segments[:, 3], call_cost):
            first, n_q, prefix, n_prefix = segments[members].T[..., None]  # (S, 1) each
            q = np.minimum(np.arange(n_q.max()), n_q - 1)
            k = np.arange((n_q + n_prefix).max())
            inside = k < n_prefix
            real = k < n_prefix + n_q
            q_index.append((first + q).reshape(-1))
            k_index.append(np.where(inside, prefix + k, np.where(real, first + k - n_prefix, first)).reshape(-1))
            buckets.append(Bucket(_tensor(n_prefix + q), _tensor(np.where(real, k, -1)), causal))
            slots = at + np.arange(q.size).reshape(q.shape)
            mine = np.arange(n_q.max()) < n_q
            slot_T[(first + q)[mine]] = slots[mine]
            at += q.size
    segment_T, prompt_T, position_T = (np.empty(n_tokens, dtype=np.int64) for _ in range(3))
    for first, n, prefix, n_prefix in np.concatenate([prompts, responses]).tolist():
        segment_T[first : first + n], prompt_T[first : first + n] = first, prefix
        position_T[first : first + n] = np.arange(n_prefix, n_prefix + n)
    return Plan(
        tuple(buckets),
        q_index=_tensor(np.concatenate(q_index)),
        k_index=_tensor(np.concatenate(k_index)),
        slot_T=_tensor(slot_T),
        longest=longest,
        segment_T=_tensor(segment_T),
        prompt_T=_tensor(prompt_T),
        position_T=_tensor(position_T),
    )


def _runs(n_q: np.ndarray, n_k: np.ndarray, call_cost: float) -> list[np.ndarray]:
    best: tuple[float, list[np.ndarray]] | None = None
    for order in (np.lexsort((n_k, n_q)), np.lexsort((n_q, n_k))):
        q, k = n_q[order].astype(np.float64), n_k[order].astype(np.float64)
        cost = np.zeros(len(order) + 1)
        cut = np.zeros(len(order) + 1, dtype=np.int64)
        for end in range(1, len(order) + 1):
            # sizes of the runs [start, end) for every start, from the running maxima backwards; at most 512 segments
            # share a call
            low = max(0, end - 512)
            widest = np.maximum.accumulate(q[low:end][::-1])[::-1] * np.maximum.accumulate(k[low:end][::-1])[::-1]
            total = cost[low:end] + call_cost + widest * np.arange(end - low, 0, -1)
            cut[end] = low + int(total.argmin())
            cost[end] = total.min()
        if best is None or cost[-1] < best[0]:
            runs, end = [], len(order)
            while end:
                runs.append(order[cut[end] : end])
                end = int(cut[end])
            best = (float(cost[-1]), runs[::-1])
    assert best is not None
    return best[1]


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))
