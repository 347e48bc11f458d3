"""Which rows of a step share a forward: micro-batches made of whole prompt groups."""

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


def by_prompt(prompts: Sequence[int], responses: Sequence[int]) -> list[tuple[int, list[int]]]:
    """The packing's groups: each prompt once with its distinct responses, both in the order of their first mention."""
    groups: dict[int, dict[int, None]] = {}
    for prompt, response in zip(prompts, responses, strict=True):
        groups.setdefault(int(prompt), {})[int(response)] = None
    return [(prompt, list(members)) for prompt, members in groups.items()]
