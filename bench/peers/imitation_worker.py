"""imitation's loss of segment preferences, forward and backward: seconds for a batch, and the loss on given weights.

imitation_worker.py DATA.npz THREADS
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import gymnasium as gym
import imitation
import numpy as np
import torch
from imitation.algorithms.preference_comparisons import CrossEntropyRewardLoss, PreferenceModel
from imitation.data.types import TrajectoryWithRew
from imitation.rewards.reward_nets import BasicRewardNet

from meter import order, peak, say

DATA = np.load(sys.argv[1])
torch.set_num_threads(int(sys.argv[2]))
begun = time.perf_counter()
inf = np.full(DATA["obs"].shape[1], np.inf, np.float32)
net = BasicRewardNet(gym.spaces.Box(-inf, inf), gym.spaces.Discrete(2), hid_sizes=(32, 32))
linear = [m for m in net.modules() if isinstance(m, torch.nn.Linear)]
with torch.no_grad():
    for i, layer in enumerate(linear):
        layer.weight.copy_(torch.from_numpy(DATA[f"net.weight_{i}"]))
        layer.bias.copy_(torch.from_numpy(DATA[f"net.bias_{i}"]))
model, loss = PreferenceModel(net), CrossEntropyRewardLoss()


def segment(first, length):
    at = slice(first, first + length)
    obs = np.concatenate([DATA["obs"][at], DATA["following"][first + length - 1][None]])
    return TrajectoryWithRew(obs=obs, acts=DATA["action"][at], infos=None, terminal=False, rews=DATA["reward"][at])


pairs = [tuple(segment(first, int(DATA["length"])) for first in pair) for pair in DATA["first"].tolist()]
optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
say(ready=time.perf_counter() - begun, version=imitation.__version__)
while (what := order()) != "end":
    if what == "losses":
        say(losses={"preference": float(loss(pairs, DATA["p"], model).loss)})
        continue
    began = time.perf_counter()
    optimiser.zero_grad()
    loss(pairs, DATA["p"], model).loss.backward()
    optimiser.step()
    say(seconds=time.perf_counter() - began, peak=peak())
