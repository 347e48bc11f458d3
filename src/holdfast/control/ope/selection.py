"""Choosing among policies from data alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from holdfast.control.ope.evaluate import PolicyValue, evaluate_policy
from holdfast.control.ope.weights import OpeError

RULES = ("lower", "value")


@dataclass(frozen=True)
class Selection:
    chosen: str
    by: str
    found: dict[str, PolicyValue]  # the best first
    score: dict[str, float]
    better: bool  # whether the chosen one's gain over the behaviour has an interval above 0
    regret: float | None  # what the best candidate is worth beyond the chosen, where the truth is known


def select(
    policies: Mapping[str, Any], log: Any, *, by: str = "lower", truth: Mapping[str, float] | None = None, **asked: Any
) -> Selection:
    """The policy of most worth by each one's headline: by the lower end of its bootstrap interval ("lower"), which asks
    for evidence, or by its value ("value"). `asked` goes to `evaluate_policy`. Intervals are of one policy each: the
    best of many looks better than it is, and the more so the more there are.
    """
    if not policies:
        raise OpeError("no policies to choose from")
    if by not in RULES:
        raise OpeError(f"by {by!r}: one of {', '.join(RULES)}")
    if truth is not None and (missing := sorted(set(policies) - set(truth))):
        raise OpeError(f"truth has no value for {missing[0]!r}; give one for each policy, or none")
    found = {name: evaluate_policy(policy, log, **asked) for name, policy in policies.items()}
    head = {name: v.values[v.headline] for name, v in found.items()}
    score = {name: h.intervals["bootstrap"][0] if by == "lower" else h.value for name, h in head.items()}
    order = sorted(found, key=lambda name: (score[name], head[name].value), reverse=True)
    chosen = order[0]
    return Selection(
        chosen,
        by,
        {name: found[name] for name in order},
        {name: score[name] for name in order},
        found[chosen].gain.intervals["bootstrap"][0] > 0,
        max(truth[name] for name in policies) - truth[chosen] if truth is not None else None,
    )
