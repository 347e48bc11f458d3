"""A learned policy as a folder: `policy.json` and `model.safetensors`, all members in one. Loaded, it is a function.

policy = load_policy("runs/cql")
action = policy(observation)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from torch import Tensor, nn

from holdfast.control.actors import Task
from holdfast.control.algorithms import find
from holdfast.control.algorithms.base import Algorithm
from holdfast.control.networks import Draw, Still
from holdfast.control.steps import Scale
from holdfast.errors import DataError, HoldfastError
from holdfast.recipe import bind

FORMAT = "holdfast-policy/1"


def build(task: Task, objective: Mapping[str, Any]) -> Algorithm:
    """The algorithm that [objective] names, its own keys bound. Raises RecipeError naming what is unknown."""
    cls = find(str(objective["kind"]), task.n_actions is not None)
    settings = bind(cls, {k: v for k, v in objective.items() if k != "kind"}, "[objective]")
    made = cls(task, **settings)
    made.settings = settings
    return made


def save_policy(
    algorithm: Algorithm,
    objective: Mapping[str, Any],
    scale: Scale,
    folder: Path,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write the folder. objective: the recipe's table; facts: what else is to be known of it (reward constants)."""
    from safetensors.torch import save_file

    said = {
        "format": FORMAT,
        "objective": dict(objective),
        "task": asdict(algorithm.task),
        "scale": scale.said(),
        "facts": dict(facts or {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "policy.json").write_bytes(orjson.dumps(said, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))
    state = {name: tensor.detach().contiguous() for name, tensor in algorithm.kept().items()}
    save_file(state, folder / "model.safetensors")


def load_algorithm(folder: str | Path) -> tuple[Algorithm, Scale, dict[str, Any]]:
    """The algorithm with its weights, its scale, and what `policy.json` says. A run's folder stands for its model's.

    Raises DataError where the folder holds no policy, or one whose weights do not fit.
    """
    from safetensors.torch import load_file

    at = _policy_folder(Path(folder))
    try:
        said = orjson.loads((at / "policy.json").read_bytes())
        if said["format"] != FORMAT:
            raise DataError(f"{at}: policy.json is {said['format']!r}; this version reads {FORMAT!r}")
        of = said["task"]
        task = Task(
            of["observation"],
            of["n_actions"],
            of["action"],
            tuple(of["seeds"]),
            tuple(of["hidden"]),
            tuple(of["discount"]),
        )
        algorithm = build(task, said["objective"])
        algorithm.restore(load_file(at / "model.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as problem:
        raise DataError(f"{at} does not hold a policy that can be read: {str(problem).splitlines()[0]}") from None
    return algorithm.eval(), Scale.read(said["scale"]), said


def load_policy(folder: str | Path, member: int = 0, greedy: bool = False) -> Policy:
    """One member of a learned policy. `policy(obs)` is the action it thinks best; `probs`, `sample` and `log_prob` are
    the policy as a distribution: as it was learnt, or with `greedy` all on the best action."""
    algorithm, scale, _ = load_algorithm(folder)
    if not algorithm.acts:
        raise HoldfastError(f"{folder} is a reward model: it has no policy; relabel a log with it, and learn from that")
    if not 0 <= member < algorithm.task.members:
        raise HoldfastError(f"{folder} has members 0 to {algorithm.task.members - 1}; there is no member {member}")
    return Policy(alone(algorithm, member), scale, greedy)


def alone(algorithm: Algorithm, member: int) -> Algorithm:
    """One member of an algorithm as an algorithm of its own."""
    task = algorithm.task
    if task.members == 1:
        return algorithm
    discount = (task.discount[member if len(task.discount) > 1 else 0],)
    settings = {k: v[member] if isinstance(v, list) else v for k, v in algorithm.settings.items()}
    one = type(algorithm)(replace(task, seeds=(task.seeds[member],), discount=discount), **settings)
    one.settings = settings
    one.restore(algorithm.alone(member))
    return one.eval()


class Policy:
    """One member. Takes and gives numbers in the task's own scale; float64 probabilities that sum to 1."""

    def __init__(self, algorithm: Algorithm, scale: Scale, greedy: bool = False):
        self.algorithm, self.scale, self.greedy = algorithm.requires_grad_(False), scale, greedy
        self.n_actions = algorithm.task.n_actions
        self._still = Still(algorithm.task.seeds)

    @torch.no_grad()
    def __call__(self, observation: np.ndarray) -> Any:
        """(d,) -> an action, or (N, d) -> N of them: the best."""
        obs = np.asarray(observation, np.float32)
        several = obs if obs.ndim == 2 else obs[None]
        if self.n_actions is not None:
            chosen: Any = self._probs(several).argmax(-1).numpy()
        else:
            chosen = self.scale.to_task(self.algorithm.mode(self._seen(several), self._still)[0].numpy())
        if obs.ndim == 2:
            return chosen
        return int(chosen[0]) if self.n_actions is not None else chosen[0]

    @torch.no_grad()
    def probs(self, observations: np.ndarray) -> np.ndarray:
        """(N, d) -> (N, A) float64."""
        p = self._probs(observations).double()
        if self.greedy:
            p = nn.functional.one_hot(p.argmax(-1), p.shape[-1]).double()
        return (p / p.sum(-1, keepdim=True)).numpy()

    @torch.no_grad()
    def sample(self, observations: np.ndarray, seed: int) -> np.ndarray:
        """(N, d) -> (N, A): one draw for each, clipped to the task's range."""
        obs = self._seen(observations)
        drawn = self.algorithm.mode(obs, self._still) if self.greedy else self.algorithm.sample(obs, Draw([seed], 0))
        return self.scale.to_task(drawn[0].numpy())

    @torch.no_grad()
    def log_prob(self, observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """(N, d), (N, A) -> (N,) float64 log density in the task's scale."""
        if self.greedy:
            raise HoldfastError("a greedy continuous policy has no density; load it with greedy = False")
        inside = torch.from_numpy(self.scale.to_network(actions)).unsqueeze(0)
        found = self.algorithm.log_prob(self._seen(observations), inside)[0].double().numpy()
        return found - self.scale.log_slope()

    @property
    def density(self) -> bool:
        """Whether `log_prob` has an answer."""
        return not (self.greedy or self.algorithm.greedy)

    @torch.no_grad()
    def export(self, path: str | Path) -> None:
        """The best action as a program of its own, `torch.export`'s: (N, d) float32 in, (N,) int64 or (N, A) float32 out.

        Runs without Holdfast: `torch.export.load(path).module()(observations)`.
        """
        module = _Exported(self)
        example = torch.zeros(3, self.algorithm.task.observation)
        module(example)  # draws what it draws once
        dynamic = {"observations": {0: torch.export.Dim.AUTO}}
        torch.export.save(torch.export.export(module, (example,), dynamic_shapes=dynamic), path)

    def _seen(self, observations: np.ndarray) -> Tensor:
        return torch.from_numpy(self.scale.observations(np.asarray(observations))).unsqueeze(0)

    def _probs(self, observations: np.ndarray) -> Tensor:
        if self.n_actions is None:
            raise HoldfastError("a continuous policy has no table of probabilities; ask for log_prob")
        return self.algorithm.probs(self._seen(observations))[0]


class _Exported(nn.Module):
    mean: Tensor
    spread: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, policy: Policy):
        super().__init__()
        self.algorithm, self.still = policy.algorithm, policy._still
        for name, value in vars(policy.scale).items():
            if value is not None:
                self.register_buffer(name, torch.from_numpy(value.copy()))

    def forward(self, observations: Tensor) -> Tensor:
        obs = ((observations - self.mean) / self.spread).unsqueeze(0)
        if self.algorithm.task.n_actions is not None:
            return self.algorithm.probs(obs)[0].argmax(-1)
        action = self.algorithm.mode(obs, self.still)[0].clamp(-1, 1)
        return self.low + (action + 1) / 2 * (self.high - self.low)


def _policy_folder(folder: Path) -> Path:
    for at in (folder, folder / "model"):
        if (at / "policy.json").is_file():
            return at
    raise DataError(f"{folder} holds no policy: it has no policy.json, nor has its folder model")
