"""Gymnasium's tasks as Holdfast collects from them, and policies that are known: scripted, uniform, and mixtures.

Any Gymnasium environment with a vector of observations and with discrete actions, or a box of them, can be collected
from. The scripted policies here know their task; each is a few lines that say how it is done. All of them satisfy the
protocols of `holdfast.control.episodes`, and give the probability (density) of what they do, so that what they log is
fit for off-policy evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import log_ndtr, ndtr, ndtri

from holdfast.control.episodes import ContinuousPolicy, DiscretePolicy, EpisodesError

Policy = DiscretePolicy | ContinuousPolicy
TORQUES = np.array([-2.0, -1.0, 0.0, 1.0, 2.0], np.float32)  # of Pendulum5-v1


@dataclass(frozen=True)
class Space:
    """What a task's observations and actions are. n_actions: None where they are continuous."""

    observation: tuple[int, ...]
    n_actions: int | None
    low: np.ndarray | None = None  # (A,) float32
    high: np.ndarray | None = None


def make(env_id: str, render_mode: str | None = None) -> Any:
    """A Gymnasium environment. `Pendulum5-v1` is Pendulum-v1 with five torques (-2, -1, 0, 1, 2).

    Raises `EpisodesError` where Gymnasium, the task or what it runs on is missing.
    """
    gymnasium = _gymnasium()
    if "Pendulum5-v1" not in gymnasium.registry:

        def pendulum(**given: Any) -> Any:
            inner = gymnasium.make("Pendulum-v1", **given).unwrapped
            return gymnasium.wrappers.TransformAction(
                inner, lambda action: TORQUES[int(action)][None], gymnasium.spaces.Discrete(len(TORQUES))
            )

        gymnasium.register("Pendulum5-v1", entry_point=pendulum, max_episode_steps=200)
    try:
        return gymnasium.make(env_id, render_mode=render_mode, disable_env_checker=True)
    except gymnasium.error.Error as problem:
        raise EpisodesError(f"environment {env_id!r}: {problem}") from None
    except ImportError as problem:
        raise EpisodesError(
            f"environment {env_id!r} needs a package that is not here ({problem}); pip install 'holdfast[control]'"
        ) from None


def _gymnasium() -> Any:
    try:
        import gymnasium
    except ImportError:
        raise EpisodesError("this needs gymnasium: pip install 'holdfast[control]'") from None
    return gymnasium


def space_of(env: Any) -> Space:
    """What an environment's spaces are to Holdfast. `EpisodesError` for one that it does not take."""
    spaces, name = _gymnasium().spaces, env.spec.id if env.spec else type(env).__name__
    seen, done = env.observation_space, env.action_space
    if not isinstance(seen, spaces.Box) or len(seen.shape) != 1:
        raise EpisodesError(
            f"{name}: observations are {seen}; Holdfast takes vectors, so flatten them by a wrapper (gymnasium.wrappers)"
        )
    if isinstance(done, spaces.Discrete) and done.start == 0:
        return Space(seen.shape, int(done.n))
    if isinstance(done, spaces.Box) and len(done.shape) == 1 and done.dtype.kind == "f" and done.is_bounded():
        return Space(seen.shape, None, done.low.astype(np.float32), done.high.astype(np.float32))
    raise EpisodesError(f"{name}: actions are {done}; Holdfast takes 0 to n - 1, or a bounded box of one axis")


@dataclass(frozen=True)
class Choice:
    """A deterministic discrete policy. choose: (N, *obs) -> (N,) int."""

    choose: Callable[[np.ndarray], np.ndarray]
    n_actions: int

    def probs(self, observations: np.ndarray) -> np.ndarray:
        return np.eye(self.n_actions)[self.choose(observations)]

    def __call__(self, observation: np.ndarray) -> Any:
        return _acted(self.choose, observation)


@dataclass(frozen=True)
class Uniform:
    """Every action alike: 1 / n, or the even density over the box."""

    space: Space

    def probs(self, observations: np.ndarray) -> np.ndarray:
        n = self.space.n_actions or 1
        return np.full((len(observations), n), 1 / n)

    def sample(self, observations: np.ndarray, seed: int) -> np.ndarray:
        low, high = _box(self.space)
        u = np.random.default_rng(seed).random((len(observations), len(low)))
        return (low + (high - low) * u).astype(np.float32).clip(low, high)

    def log_prob(self, observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
        low, high = _box(self.space)
        inside = ((actions >= low) & (actions <= high)).all(axis=1)
        return np.where(inside, -np.log(high.astype(np.float64) - low).sum(), -np.inf)

    def __call__(self, observation: np.ndarray) -> Any:
        """No action is the better one: the first, or the middle of the box."""
        return _acted(lambda o: np.zeros(len(o), np.int64) if self.space.n_actions else self._middle(o), observation)

    def _middle(self, observations: np.ndarray) -> np.ndarray:
        low, high = _box(self.space)
        return np.repeat(((low + high) / 2)[None], len(observations), axis=0)


@dataclass(frozen=True)
class Around:
    """A continuous policy: normal around `mean`, with standard deviation `noise`, cut to the box and normalised there.

    mean: (N, *obs) -> (N, A). With noise 0 it does just `mean`, and has no density.
    """

    mean: Callable[[np.ndarray], np.ndarray]
    space: Space
    noise: float

    @property
    def density(self) -> bool:
        return self.noise > 0

    def _bounds(self, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The mean within the box, and the box in standard deviations from it."""
        low, high = _box(self.space)
        mean = np.asarray(self.mean(observations), np.float64).clip(low, high)
        return mean, (low - mean) / self.noise, (high - mean) / self.noise

    def sample(self, observations: np.ndarray, seed: int) -> np.ndarray:
        low, high = _box(self.space)
        if not self.noise:
            return np.asarray(self.mean(observations), np.float32).clip(low, high)
        mean, a, b = self._bounds(observations)
        u = np.random.default_rng(seed).random(mean.shape)
        z = ndtri(ndtr(a) + u * (ndtr(b) - ndtr(a)))
        return (mean + self.noise * z).astype(np.float32).clip(low, high)

    def log_prob(self, observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
        if not self.noise:
            raise EpisodesError("a policy without noise has no density: give it some, such as noise = 0.1")
        mean, a, b = self._bounds(observations)
        z = (actions - mean) / self.noise
        within = (z >= a - 1e-6) & (z <= b + 1e-6)
        # log(Phi(b) - Phi(a)); the mean lies in the box, so the difference is never small
        mass = log_ndtr(b) + np.log1p(-np.exp(log_ndtr(a) - log_ndtr(b)))
        each = -0.5 * z**2 - 0.5 * np.log(2 * np.pi) - np.log(self.noise) - mass
        return np.where(within, each, -np.inf).sum(axis=1)

    def __call__(self, observation: np.ndarray) -> Any:
        low, high = _box(self.space)
        return _acted(lambda o: np.asarray(self.mean(o), np.float32).clip(low, high), observation)


@dataclass(frozen=True)
class Mixed:
    """With probability `epsilon` any action at all, else what `policy` does."""

    policy: Any
    epsilon: float
    space: Space

    @property
    def density(self) -> bool:
        return self.epsilon == 1 or getattr(self.policy, "density", True)

    def probs(self, observations: np.ndarray) -> np.ndarray:
        own = self.policy.probs(observations)
        return (1 - self.epsilon) * own + self.epsilon / own.shape[1]

    def sample(self, observations: np.ndarray, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        own = self.policy.sample(observations, int(rng.integers(2**63)))
        other = Uniform(self.space).sample(observations, int(rng.integers(2**63)))
        return np.where((rng.random(len(own)) < self.epsilon)[:, None], other, own)

    def log_prob(self, observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
        other = Uniform(self.space).log_prob(observations, actions)
        if self.epsilon == 1:
            return other
        own = self.policy.log_prob(observations, actions)
        return np.logaddexp(np.log1p(-self.epsilon) + own, np.log(self.epsilon) + other) if self.epsilon else own

    def __call__(self, observation: np.ndarray) -> Any:
        return self.policy(observation)


def _box(space: Space) -> tuple[np.ndarray, np.ndarray]:
    assert space.low is not None and space.high is not None
    return space.low, space.high


def _acted(act: Callable[[np.ndarray], np.ndarray], observation: np.ndarray) -> Any:
    """The action for one observation, or the actions for several."""
    several = np.asarray(observation, np.float32)
    return act(several) if several.ndim > 1 else act(several[None])[0]


def scripted(env_id: str, space: Space, noise: float = 0.0) -> Policy:
    """The policy that knows a task. noise: the standard deviation of its actions, where they are continuous.

    Raises `EpisodesError` for a task that none was written for.
    """
    if env_id not in SCRIPTS:
        raise EpisodesError(
            f"there is no scripted policy for {env_id}; there are for {', '.join(SCRIPTS)}. Give policy = 'random', or a "
            "trained policy's folder"
        )
    if space.n_actions is None:
        return Around(SCRIPTS[env_id], space, noise)
    if noise:
        raise EpisodesError(f"noise = {noise}: {env_id} has discrete actions; give epsilon")
    return Choice(SCRIPTS[env_id], space.n_actions)


def cartpole(o: np.ndarray) -> np.ndarray:
    """Push to the side to which the pole falls, and a little towards the middle."""
    x, dx, angle, spin = o.T
    return (angle + 0.5 * spin + 0.05 * x + 0.1 * dx > 0).astype(np.int64)


def pendulum(o: np.ndarray) -> np.ndarray:
    """Swing up by energy, (N, 1) torque; near the top hold by position and speed."""
    cos, sin, spin = o.T.astype(np.float64)
    energy = spin**2 / 6 + 5 * cos  # 5 at rest upright, with gravity 10, length and mass 1
    pump = np.where(spin >= 0, 1.0, -1.0) * (5.2 - energy)
    hold = -12 * np.arctan2(sin, cos) - 3 * spin
    near = (cos > 0.8) & (abs(spin) < 4)
    return np.where(near, hold, pump).clip(-2, 2)[:, None]


def pendulum5(o: np.ndarray) -> np.ndarray:
    """The torque of five that is nearest to the continuous one."""
    return abs(pendulum(o) - TORQUES).argmin(axis=1)


def acrobot(o: np.ndarray) -> np.ndarray:
    """Torque along the spin of the second link: always more energy."""
    return np.where(o[:, 5] > 0, 2, 0)


def mountaincar(o: np.ndarray) -> np.ndarray:
    """Push the way it rolls."""
    return np.where(o[:, 1] >= 0, 2, 0)


def hopper(o: np.ndarray) -> np.ndarray:
    """A linear policy, found by augmented random search (bench/hopper.py, seed 0): it hops, earns 2,200 in a thousand steps
    where a good policy earns 3,500, and stumbles early under noise: 1,900 with 0.1, 900 with 0.2."""
    return o.astype(np.float64) @ HOPPER.T - HOPPER_OFFSET


HOPPER = np.array(
    [
        [0.675, -4.874, 0.274, 16.988, 0.192, -0.189, -0.063, -0.575, -0.238, 0.552, -0.059],
        [1.536, 6.472, 1.712, 2.683, 0.228, 0.223, 0.104, 0.121, 0.357, -0.028, 0.05],
        [2.039, -4.731, 0.049, 9.458, -0.081, -0.542, -0.348, -0.083, 0.354, -0.12, -0.012],
    ]
)
HOPPER_OFFSET = np.array([0.254, 1.879, 1.361])

SCRIPTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "CartPole-v1": cartpole,
    "Pendulum-v1": pendulum,
    "Pendulum5-v1": pendulum5,
    "Acrobot-v1": acrobot,
    "MountainCar-v0": mountaincar,
    "Hopper-v5": hopper,
}
