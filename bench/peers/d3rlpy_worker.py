"""d3rlpy on the bench's log: seconds per update, its own way (`fit`), and its losses on given weights and rows.

    d3rlpy_worker.py DATA.npz KIND SEEDS THREADS

`step` trains every seed for some updates, one after another, and answers seconds per update of all seeds together; `losses` answers what
it computes on the rows and weights in the file.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import d3rlpy
import numpy as np
import structlog
import torch

from meter import order, peak, say

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
DATA, KIND, SEEDS, THREADS = np.load(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
UPDATES = {"cql-continuous": 20, "bcq-continuous": 10, "iql-continuous": 60}.get(KIND, 200)
torch.set_num_threads(THREADS)
q = d3rlpy.algos
CONFIGS = {
    "dqn": lambda: q.DoubleDQNConfig(batch_size=256, learning_rate=1e-4),
    "cql": lambda: q.DiscreteCQLConfig(batch_size=256, learning_rate=1e-4),
    "bcq": lambda: q.DiscreteBCQConfig(batch_size=256, learning_rate=1e-4, share_encoder=False),
    "cql-continuous": lambda: q.CQLConfig(batch_size=256, alpha_learning_rate=0.0),
    "iql-continuous": lambda: q.IQLConfig(batch_size=256),
    "bcq-continuous": lambda: q.BCQConfig(batch_size=256, n_action_samples=10),
}
discrete = "continuous" not in KIND
actions = DATA["action"][:, None] if discrete else DATA["action"]
dataset = d3rlpy.dataset.MDPDataset(DATA["obs"], actions, DATA["reward"][:, None], DATA["terminal"])


def learner(seed):
    d3rlpy.seed(seed)
    if KIND == "fqe":
        policy = q.DoubleDQNConfig(batch_size=256).create()
        policy.build_with_dataset(dataset)
        made = d3rlpy.ope.DiscreteFQE(policy, d3rlpy.ope.FQEConfig(batch_size=256))
    else:
        made = CONFIGS[KIND]().create()
    made.build_with_dataset(dataset)
    return made


def train(made, updates):
    made.fit(
        dataset,
        n_steps=updates,
        n_steps_per_epoch=updates,
        show_progress=False,
        save_interval=10**9,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
    )


def fill(module, weights):
    """Our weights into its linear layers, in order."""
    linear = [m for m in module.modules() if isinstance(m, torch.nn.Linear)]
    assert len(linear) == len(weights) // 2
    with torch.no_grad():
        for layer, w, b in zip(linear, weights[::2], weights[1::2], strict=True):
            layer.weight.copy_(torch.from_numpy(w))
            layer.bias.copy_(torch.from_numpy(b))


def network(name):
    out = []
    for i in range(3):
        out += [DATA[f"{name}.weight_{i}"], DATA[f"{name}.bias_{i}"]]
    return out


def losses():
    made = learner(0)
    impl, modules = made.impl, made.impl.modules
    rows = DATA["rows"]
    column = {n: torch.from_numpy(DATA[n][rows]) for n in ("obs", "following")}
    as_column = {
        n: torch.from_numpy(DATA[n][rows].astype(np.float32)).reshape(len(rows), -1)
        for n in ("reward", "terminated", "action")
    }
    batch = d3rlpy.torch_utility.TorchMiniBatch(
        observations=column["obs"],
        actions=as_column["action"],
        rewards=as_column["reward"],
        next_observations=column["following"],
        next_actions=as_column["action"],
        returns_to_go=torch.zeros(len(rows), 1),
        terminals=as_column["terminated"],
        intervals=torch.ones(len(rows), 1),
        device="cpu",
    )
    if KIND == "fqe":
        fill(made._algo.impl.modules.q_funcs, network("policy"))
        fill(modules.q_funcs, network("q"))
        fill(modules.targ_q_funcs, network("target"))
        chosen = torch.from_numpy(made._algo.predict(DATA["following"][rows]))
        return {"td": float(impl.compute_loss(batch, impl.compute_target(batch, chosen)))}
    if discrete:
        fill(modules.q_funcs, network("q"))
        fill(modules.targ_q_funcs, network("target"))
        if KIND == "bcq":
            fill(modules.imitator, network("clone"))
        found = impl.compute_loss(batch, impl.compute_target(batch))
        said = {"td": float(getattr(found, "td_loss", found.loss))}
        if KIND == "cql":
            said["conservative"] = float(found.conservative_loss)
        if KIND == "bcq":
            said["clone"] = float(found.imitator_loss)
        return said
    if KIND != "iql-continuous":
        return {}
    for c in range(2):
        fill(modules.q_funcs[c], network(f"q{c}"))
        fill(modules.targ_q_funcs[c], network(f"target{c}"))
    fill(modules.value_func, network("v"))
    fill(modules.policy, network("actor"))
    low, high = modules.policy._min_logstd, modules.policy._max_logstd
    share = (float(DATA["log_std"]) - low) / (high - low)
    with torch.no_grad():
        modules.policy._logstd.fill_(float(np.log(share / (1 - share))))
    critic = impl.compute_critic_loss(batch, impl.compute_target(batch))
    actor = impl.compute_actor_loss(batch, modules.policy(batch.observations))
    return {"td": float(critic.q_loss), "value": float(critic.v_loss), "actor": float(actor.actor_loss)}


begun = time.perf_counter()
learners = [learner(seed) for seed in range(SEEDS)]
each = max(UPDATES // SEEDS, 5)
say(ready=time.perf_counter() - begun, version=d3rlpy.__version__)
while (what := order()) != "end":
    if what == "losses":
        say(losses=losses())
        continue
    began = time.perf_counter()
    for made in learners:
        train(made, each)
    say(seconds=(time.perf_counter() - began) / each, peak=peak())
