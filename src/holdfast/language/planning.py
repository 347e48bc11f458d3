"""Which rows of a step share a forward: micro-batches made of whole prompt groups. And which responses a step puts under other prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def micro_batches(rows: np.ndarray, prompt: np.ndarray, most: int) -> list[np.ndarray]:
    """Cut a step's rows into micro-batches of at most `most` rows, prompt groups kept together.

    rows:   (B,) dataset row numbers; prompt: (B,) the prompt of each.
    A group larger than `most` is cut, and only such a group; groups stay in the order of their first row. A pure function.
    """
    _, first, group = np.unique(prompt, return_index=True, return_inverse=True)
    grouped = rows[np.lexsort((np.arange(len(rows)), first[group]))]
    if most >= len(rows):
        return [grouped]
    sizes = np.bincount(np.argsort(np.argsort(first))[group])
    plan: list[np.ndarray] = []
    start, filled = 0, 0  # rows[start : start + filled] is the micro-batch being filled
    for size in sizes:
        if filled and filled + size > most:
            plan.append(grouped[start : start + filled])
            start, filled = start + filled, 0
        filled += int(size)
        while filled > most:
            plan.append(grouped[start : start + most])
            start, filled = start + most, filled - most
    if filled:
        plan.append(grouped[start : start + filled])
    return plan


def within_tokens(
    rows: np.ndarray,
    prompt: np.ndarray,
    named: Sequence[Sequence[int]],
    prompts: np.ndarray,
    responses: np.ndarray,
    most: int,
) -> list[np.ndarray]:
    """Cut a step's rows into few micro-batches of at most `most` tokens each, prompt groups kept together.

    rows:      (B,) dataset row numbers; prompt: (B,) the prompt of each; named: B lists of responses, those of each row.
    prompts, responses: the tokens of every prompt and response of the dataset. A prompt counts once in a micro-batch, a response too.
    A group larger than `most` is cut between rows, and one row alone may be larger; the others go, largest first, each where it still
    fits first (first-fit decreasing: Johnson 1973). Micro-batches and the groups in them stand in the order of their first row. A pure function.
    """
    groups: dict[int, list[int]] = {}
    for i, p in enumerate(prompt.tolist()):
        groups.setdefault(p, []).append(i)
    pieces: list[tuple[int, list[int]]] = []  # (tokens, places in rows)
    for p, places in groups.items():
        held: set[int] = set()
        piece: list[int] = []
        size = int(prompts[p])
        for i in places:
            more = sum(int(responses[r]) for r in set(named[i]) - held)
            if piece and size + more > most:
                pieces.append((size, piece))
                held, size, piece = set(), int(prompts[p]), []
                more = sum(int(responses[r]) for r in set(named[i]))
            held |= set(named[i])
            size, piece = size + more, [*piece, i]
        pieces.append((size, piece))
    bins: list[tuple[int, list[list[int]]]] = []
    for size, piece in sorted(pieces, key=lambda each: (-each[0], each[1][0])):
        at = next((b for b, (filled, _) in enumerate(bins) if filled + size <= most), len(bins))
        if at == len(bins):
            bins.append((0, []))
        bins[at] = (bins[at][0] + size, [*bins[at][1], piece])
    plan = sorted([sorted(held) for _, held in bins])
    return [rows[[i for piece in held for i in piece]] for held in plan]


def by_prompt(prompts: Sequence[int], responses: Sequence[int]) -> list[tuple[int, list[int]]]:
    """The packing's groups: each prompt once with its distinct responses, both in the order of their first mention."""
    groups: dict[int, dict[int, None]] = {}
    for prompt, response in zip(prompts, responses, strict=True):
        groups.setdefault(int(prompt), {})[int(response)] = None
    return [(prompt, list(members)) for prompt, members in groups.items()]


def mismatched(prompt: np.ndarray, response: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(prompts, responses): distinct responses of a step, each under another of its prompts.

    prompt, response: (X,) of the step's examples, in their order. Each distinct pair of them gives one response and takes one, the two a
    fixed distance apart among the pairs in order of their prompts: the size of the largest prompt, so that where no prompt has more than
    half of the pairs all are mismatched. What would land under its own prompt is left out (all, where the step has one prompt). A pure
    function of the step's examples, whatever the micro-batches.
    """
    pairs = dict.fromkeys(zip(prompt.tolist(), response.tolist(), strict=True))
    of: dict[int, list[int]] = {}
    for p, r in pairs:
        of.setdefault(p, []).append(r)
    prompts = np.array([p for p, members in of.items() for _ in members], dtype=np.int64)
    responses = np.array([r for members in of.values() for r in members], dtype=np.int64)
    if not len(prompts):
        return prompts, responses
    given = np.roll(np.arange(len(prompts)), -max(map(len, of.values())))
    apart = prompts[given] != prompts
    return prompts[apart], responses[given][apart]
