"""Logging episodes from an environment: who behaved, what was seen and done, and with what probability.

Every random number derives from (seed, episode), so the same call gives the same bytes, and asking for more episodes
gives the same ones first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.control.environments import Mixed, Policy, Space, Uniform, make, scripted, space_of
from holdfast.control.episodes import Episodes, EpisodesError
from holdfast.data.dataset import file_sha256


@dataclass(frozen=True)
class Behaviour:
    """One of the policies that a log is collected with.

    policy: "scripted", "random", the folder of a trained policy, or an object that satisfies a policy's protocol.
    epsilon: the probability of any action at all instead. noise: the standard deviation of a scripted policy's
    continuous actions. share: of the episodes, beside the other behaviours' shares. member: which of those that a trained
    policy's folder holds.
    """

    policy: Any = "scripted"
    epsilon: float = 0.0
    noise: float = 0.0
    share: float = 1.0
    member: int = 0
    name: str | None = None

    @classmethod
    def parse(cls, text: str) -> Behaviour:
        """From `POLICY[,KEY=VALUE...]`, such as `scripted,epsilon=0.3,share=2`."""
        policy, *rest = text.split(",")
        said: dict[str, Any] = {}
        for part in rest:
            key, equals, value = part.partition("=")
            kinds = {"epsilon": float, "noise": float, "share": float, "member": int, "name": str}
            if key not in kinds or not equals:
                raise EpisodesError(f"{text!r}: {part!r} should be {'=, '.join(kinds)}= and a value")
            try:
                said[key] = kinds[key](value)
            except ValueError:
                raise EpisodesError(f"{text!r}: {key} = {value!r} should be a number") from None
        return cls(policy.strip(), **said)

    def __post_init__(self) -> None:
        for key, fine, wanted in (
            ("epsilon", 0 <= self.epsilon <= 1, "from 0 to 1"),
            ("noise", 0 <= self.noise < np.inf, "0 or above"),
            ("share", 0 < self.share < np.inf, "above 0"),
        ):
            if not fine:
                raise EpisodesError(f"behaviour {self.title}: {key} = {getattr(self, key)} should be {wanted}")

    @property
    def title(self) -> str:
        if self.name:
            return self.name
        who = self.policy if isinstance(self.policy, str | Path) else type(self.policy).__name__
        said = [f"{k}={getattr(self, k):g}" for k in ("epsilon", "noise", "member") if getattr(self, k)]
        return ",".join([str(who), *said])

    def build(self, env_id: str, space: Space) -> Policy:
        """The policy, with its noise and its epsilon."""
        made: Any = self.policy
        if made == "scripted":
            made = scripted(env_id, space, self.noise)
        elif self.noise:
            raise EpisodesError(f"behaviour {self.title}: noise is for 'scripted'; this policy has its own")
        elif made == "random":
            made = Uniform(space)
        elif isinstance(made, str | Path):
            if not Path(made).is_dir():
                raise EpisodesError(f"policy {str(made)!r} is neither 'scripted', 'random' nor a policy's folder")
            from holdfast.control.policy import load_policy

            made = load_policy(made, self.member)
        if self.member and (not isinstance(self.policy, str | Path) or self.policy in ("scripted", "random")):
            raise EpisodesError(f"behaviour {self.title}: member is for a trained policy's folder")
        if getattr(made, "n_actions", space.n_actions) != space.n_actions:
            raise EpisodesError(f"{env_id} has {space.n_actions} actions; behaviour {self.title} has {made.n_actions}")
        wanted = ("probs",) if space.n_actions is not None else ("sample", "log_prob")
        for method in wanted:
            if not callable(getattr(made, method, None)):
                kind = "discrete" if space.n_actions is not None else "continuous"
                raise EpisodesError(f"{env_id} has {kind} actions; behaviour {self.title} has no `{method}`")
        return Mixed(made, self.epsilon, space) if self.epsilon else made


def collect(
    env_id: str,
    policy: Any = "scripted",
    *,
    steps: int | None = None,
    episodes: int | None = None,
    seed: int = 0,
    epsilon: float = 0.0,
    noise: float = 0.0,
) -> Episodes:
    """Log episodes from a Gymnasium environment.

    policy: "scripted", "random", a policy's folder or object, with `epsilon` and `noise` as `Behaviour` has them; or
        several `Behaviour`s, of which each episode draws one by its share: demonstrations, exploration and sub-optimal
        data side by side, told apart by `behaviour` and by their names in the facts.
    steps: how many in all; the last episode is cut there, and so truncated. episodes: how many. Give one of the two.

    The propensity of an action is its probability (density) given the episode's behaviour; for discrete actions
    `action_probs` has the whole distribution. A continuous policy without noise has no density: then none is logged.
    """
    if (steps is None) == (episodes is None):
        raise EpisodesError("give steps or episodes, one of the two")
    for name, wanted in (("steps", steps), ("episodes", episodes)):
        if wanted is not None and wanted < 1:
            raise EpisodesError(f"{name} = {wanted} should be 1 or more")
    if isinstance(policy, Sequence) and not isinstance(policy, str):
        behaviours = [Behaviour(b) if not isinstance(b, Behaviour) else b for b in policy]
        if epsilon or noise or not behaviours:
            raise EpisodesError("several behaviours have each their own epsilon and noise; there must be at least one")
    else:
        behaviours = [policy if isinstance(policy, Behaviour) else Behaviour(policy, epsilon, noise)]
        if isinstance(policy, Behaviour) and (epsilon or noise):
            raise EpisodesError("a Behaviour has its own epsilon and noise")
    if len({b.title for b in behaviours}) < len(behaviours):
        raise EpisodesError(f"two behaviours are called the same ({', '.join(b.title for b in behaviours)}); name them")

    env = make(env_id)
    try:
        space = space_of(env)
        built: list[Any] = [b.build(env_id, space) for b in behaviours]
        discrete = space.n_actions is not None
        dense = all(getattr(p, "density", True) for p in built)
        upto = np.cumsum([b.share for b in behaviours]) / sum(b.share for b in behaviours)
        observations: list[np.ndarray] = []
        actions: list[Any] = []
        rewards: list[float] = []
        propensities: list[float] = []
        distributions: list[np.ndarray] = []
        offsets, last, terminated, truncated, who = [0], [], [], [], []
        for e in count():
            if len(offsets) - 1 == episodes or offsets[-1] == steps:
                break
            rng = np.random.default_rng(_seed(seed, e, "actions"))
            mine = int(np.searchsorted(upto, np.random.default_rng(_seed(seed, e, "behaviour")).random(), "right"))
            acts = built[mine]
            seen, _ = env.reset(seed=_seed(seed, e, "reset") % 2**31)
            ended = cut = False  # by the environment; by its limit
            while not (ended or cut or len(rewards) == steps):
                seen = np.asarray(seen, np.float32)
                if discrete:
                    probs = np.asarray(acts.probs(seen[None])[0], np.float64)
                    probs = probs / probs.sum()
                    ladder = np.cumsum(probs)
                    # an action without probability has no room on the ladder, so it is never met
                    did: Any = int(np.searchsorted(ladder, rng.random() * ladder[-1], "right"))
                    distributions.append(probs)
                    propensities.append(probs[did])
                else:
                    did = np.asarray(acts.sample(seen[None], int(rng.integers(2**63)))[0], np.float32)
                    if dense:
                        propensities.append(float(np.exp(acts.log_prob(seen[None], did[None])[0])))
                observations.append(seen)
                actions.append(did)
                seen, reward, ended, cut, _ = env.step(did)
                rewards.append(float(reward))
            offsets.append(len(rewards))
            last.append(np.asarray(seen, np.float32))
            terminated.append(bool(ended))
            truncated.append(not ended)
            who.append(mine)
    finally:
        env.close()

    import gymnasium

    return_E = np.add.reduceat(np.array(rewards), offsets[:-1])
    of, length = np.array(who, np.int32), np.diff(offsets)
    facts: dict[str, Any] = {
        "environment": env_id,
        "gymnasium": gymnasium.__version__,
        "horizon": env.spec.max_episode_steps if env.spec else None,
        "seed": seed,
        "asked": {"steps": steps} if steps is not None else {"episodes": episodes},
        "behaviours": [
            {
                "name": b.title,
                "share": b.share,
                "episodes": int((of == i).sum()),
                "steps": int(length[of == i].sum()),
                "return": float(return_E[of == i].mean()) if (of == i).any() else None,
                **_weights(b.policy),
            }
            for i, b in enumerate(behaviours)
        ],
        "propensities": "of the episode's behaviour"
        if dense
        else "none: a continuous policy without noise has no density",
    }
    if not discrete:
        assert space.low is not None and space.high is not None
        facts |= {"action_low": space.low.tolist(), "action_high": space.high.tolist()}
    if not (ended or cut):
        facts["cut"] = "the last episode was cut when the steps asked for were done"
    return Episodes(
        observations=np.stack(observations),
        actions=np.array(actions, np.int64) if discrete else np.stack(actions),
        rewards=np.array(rewards, np.float64),
        offsets=np.array(offsets, np.int64),
        last=np.stack(last),
        terminated=np.array(terminated),
        truncated=np.array(truncated),
        propensities=np.array(propensities) if dense else None,
        action_probs=np.stack(distributions) if discrete else None,
        behaviour=of,
        n_actions=space.n_actions,
        facts=facts,
    )


def _weights(policy: Any) -> dict[str, str]:
    """The digest of a trained policy's weights: which one it was, wherever its folder goes."""
    if isinstance(policy, str | Path):
        for folder in (Path(policy), Path(policy) / "model"):
            if (folder / "model.safetensors").is_file():
                return {"weights": file_sha256(folder / "model.safetensors")}
    return {}


def _seed(seed: int, episode: int, purpose: str) -> int:
    return int.from_bytes(sha256(f"holdfast/collect/1 {seed} {episode} {purpose}".encode()).digest()[:8], "little")
