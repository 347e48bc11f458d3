"""Searches the linear policy of Hopper-v5 that `holdfast.control.environments` holds as its script: augmented random search
(Mania and others, 1803.07055, V2) from zero, one process, a seed. Prints the weights with the scaling of observations folded in.

    python bench/hopper.py --iterations 175
"""

from __future__ import annotations

import argparse
import time

import gymnasium
import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=175)
    parser.add_argument("--noise", type=float, default=0.2, help="of the actions, so that what is found bears some")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    env = gymnasium.make("Hopper-v5", disable_env_checker=True)
    observations, actions = env.observation_space.shape[0], env.action_space.shape[0]
    weights = np.zeros((actions, observations))
    n, mean, square = 1e-2, np.zeros(observations), np.ones(observations) * 1e-2

    def rollout(matrix: np.ndarray, offset: np.ndarray, seed: int, watch: bool) -> float:
        nonlocal n, mean, square
        total, (seen, _), draws = 0.0, env.reset(seed=seed), np.random.default_rng(seed)
        while True:
            action = matrix @ seen - offset + args.noise * draws.standard_normal(actions)
            seen, reward, ended, cut, _ = env.step(action.clip(-1, 1))
            total += reward - (1.0 if watch else 0.0)  # the reward for being alive teaches standing still
            if watch:
                n += 1
                off = seen - mean
                mean = mean + off / n
                square = square + off * (seen - mean)
            if ended or cut:
                return total

    start, best = time.monotonic(), (-np.inf, weights, np.zeros(actions))
    for i in range(args.iterations):
        scale = 1 / np.maximum(np.sqrt(square / n), 1e-4)
        centre = mean.copy()
        deltas, found = rng.standard_normal((8, *weights.shape)), np.zeros((8, 2))
        for d in range(8):
            for k, sign in enumerate((1, -1)):
                matrix = (weights + sign * 0.03 * deltas[d]) * scale
                found[d, k] = rollout(matrix, matrix @ centre, int(rng.integers(2**31)), True)
        top = np.argsort(-found.max(axis=1))[:4]
        spread = found[top].std() + 1e-8
        weights = weights + 0.02 / (4 * spread) * np.tensordot(found[top, 0] - found[top, 1], deltas[top], 1)
        if i % 25 == 24:
            matrix = weights * scale
            offset = matrix @ centre
            returns = [rollout(matrix, offset, 10_000 + s, False) for s in range(10)]
            print(
                f"{time.monotonic() - start:6.0f} s  iteration {i + 1}: {np.mean(returns):.0f} {np.min(returns):.0f}",
                flush=True,
            )
            if np.mean(returns) > best[0]:
                best = (float(np.mean(returns)), matrix, offset)
    print("return", best[0])
    np.set_printoptions(precision=3, suppress=True, linewidth=110)
    print("weights", repr(best[1]))
    print("offset", repr(best[2]))


if __name__ == "__main__":
    main()
