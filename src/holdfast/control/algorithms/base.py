"""What an algorithm is: networks, and the losses of one batch for each member.

The gradient that is taken is that of the sum of all losses of all members. Losses of one algorithm that are for
different networks (critic, actor, temperature) reach each its own: what belongs to another is passed frozen. So one
backward and one optimiser step serve them all, simultaneously where some papers take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from holdfast.control.actors import Task
from holdfast.control.networks import Draw
from holdfast.errors import RecipeError
from holdfast.losses.control import discounted

Each = float | list  # one value for all members, or one for each


class Batch(NamedTuple):
    """Steps: K members, B rows of each."""

    obs: Tensor  # (K, B, d)
    action: Tensor  # (K, B) int64, or (K, B, A)
    reward: Tensor  # (K, B)
    following: Tensor  # (K, B, d): the next observation, the true last one where the episode ends
    terminated: Tensor  # (K, B) 1.0 where the environment ended the episode with this step
    place: Tensor  # (K, B) int64: which steps of the log
    log: Tensor | None = None  # (T, d): the next observations of all its steps, where they are a log's


class Pairs(NamedTuple):
    """Judgements of segments; N = B * 2 * T steps side by side, padded where a segment is shorter."""

    steps: Batch  # of (K, N): rewards are 0
    mask: Tensor  # (K, B, 2, T) 1.0 at the segments' own steps
    p: Tensor  # (K, B) probability that the first is preferred

    def returns(self, value_KN: Tensor, discount: Tensor) -> tuple[Tensor, Tensor]:
        """The discounted sums of a step's value over the two segments: (K, B) each."""
        sums = discounted(value_KN.view(self.mask.shape), self.mask, discount[:, :, None])
        return sums[..., 0], sums[..., 1]


class Algorithm(nn.Module):
    """Networks of K members. Subclasses name their hyper-parameters as keyword-only arguments."""

    reads: ClassVar[Literal["steps", "judgements"]] = "steps"
    needs_reward: ClassVar[bool] = True
    acts: ClassVar[bool] = True  # has a policy (a reward model has none)
    greedy: ClassVar[bool] = False  # its policy is the best action, without a distribution
    refers: ClassVar[bool] = False  # may be given another policy: [control] reference

    settings: dict[str, Any]  # the keyword arguments it was made with

    def __init__(self, task: Task):
        super().__init__()
        self.task = task
        self.discount = self.each("discount", list(task.discount) if len(task.discount) > 1 else task.discount[0])

    def each(self, name: str, value: Each) -> Tensor:
        """(K, 1): a hyper-parameter of each member."""
        values = value if isinstance(value, list) else [value] * self.task.members
        if len(values) != self.task.members or not all(isinstance(v, int | float) for v in values):
            raise RecipeError(
                f"[objective] {name} = {value!r}: give one number, or one for each of the {self.task.members} replicas"
            )
        return torch.tensor(values, dtype=torch.float32).unsqueeze(1)

    def losses(self, batch: Any, draw: Draw) -> dict[str, Tensor]:
        """(K,) each: the members' mean losses over the batch."""
        raise NotImplementedError

    def before(self, update: int, optimiser: torch.optim.Optimizer) -> None:
        """What precedes update `update` (from 0)."""

    def after(self, update: int) -> None:
        """What follows it: targets that move."""

    def kept(self) -> dict[str, Tensor]:
        """All that a saved policy needs, members side by side on the first axis."""
        return self.state_dict()

    def alone(self, member: int) -> dict[str, Tensor]:
        """What `restore` takes to be that member alone. A member's critics lie side by side."""
        K = self.task.members
        return {n: t.unflatten(0, (K, -1))[member].clone() for n, t in self.kept().items()}

    def restore(self, kept: dict[str, Tensor]) -> None:
        """What `kept` gave. Raises RuntimeError where it does not fit."""
        self.load_state_dict(kept)

    def probs(self, obs_KBd: Tensor) -> Tensor:
        """(K, B, A): the policy over discrete actions."""
        raise NotImplementedError

    def mode(self, obs_KBd: Tensor, draw: Draw) -> Tensor:
        """(K, B, A): the continuous action that the policy takes without noise."""
        raise NotImplementedError

    def sample(self, obs_KBd: Tensor, draw: Draw) -> Tensor:
        """(K, B, A): one continuous action for each row."""
        raise NotImplementedError

    def log_prob(self, obs_KBd: Tensor, action_KBA: Tensor) -> Tensor:
        """(K, B): log density of continuous actions."""
        raise NotImplementedError

    def margin(self, pairs: Pairs) -> Tensor:
        """(K, B): by how much the first segment is preferred; of algorithms that read judgements."""
        raise NotImplementedError

    def value(self, obs_KBd: Tensor, draw: Draw) -> Tensor | None:
        """(K, B): what the algorithm itself thinks an observation is worth; None where it has no value."""
        return None


ALGORITHMS: dict[str, dict[str, type[Algorithm]]] = {}
A = TypeVar("A", bound=type[Algorithm])


def algorithm(name: str, actions: Sequence[Literal["discrete", "continuous"]], paper: str) -> Callable[[A], A]:
    """Enter a class under its name for discrete actions, continuous ones, or both."""

    def enter(cls: A) -> A:
        for kind in actions:
            ALGORITHMS.setdefault(name, {})[kind] = cls
        cls.paper = paper  # type: ignore[attr-defined]
        return cls

    return enter


def find(name: str, discrete: bool) -> type[Algorithm]:
    """The class of an algorithm for such actions. Raises RecipeError naming what there is."""
    kind = "discrete" if discrete else "continuous"
    if name not in ALGORITHMS:
        raise RecipeError(
            f"[objective] kind = {name!r} is no algorithm of control; there are: {', '.join(sorted(ALGORITHMS))}"
        )
    if kind not in ALGORITHMS[name]:
        others = [n for n, kinds in sorted(ALGORITHMS.items()) if kind in kinds]
        raise RecipeError(
            f"[objective] kind = {name!r} has no form for {kind} actions; of those that have: {', '.join(others)}"
        )
    return ALGORITHMS[name][kind]


def mean(loss_KB: Tensor) -> Tensor:
    return loss_KB.mean(-1)
