"""AdamW for weights of fewer than 32 bits: the optimiser keeps them in float32 and gives the model what they round to.

bfloat16 has eight bits, so a weight of 0.02 moves in steps of about 1e-4: an update of 1e-5 is lost in it, every time, and the loss stays
where it was (docs/decisions/0005-bfloat16.md). The float32 weights are optimiser state: a checkpoint keeps them, a resumed run has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


def adamw(groups: Iterable[dict[str, Any]], **settings: Any) -> torch.optim.Optimizer:
    """AdamW over parameter groups: torch's own where every weight has at least 32 bits, else one that keeps float32 weights."""
    groups = list(groups)
    parameters = [p for g in groups for p in g["params"]]
    if any(p.dtype.itemsize < 4 for p in parameters):
        return Wide(groups, **settings)
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.AdamW(groups, **settings, fused=fused)


class Wide(torch.optim.Optimizer):
    """AdamW (1711.05101, algorithm 2) on float32 copies of the weights.

    State per parameter: `master`, the weights; `exp_avg`, `exp_avg_sq`, the moments; `step`. All float32, on the parameter's device.
    """

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr, (b1, b2), eps = group["lr"], group["betas"], group["eps"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32)
                    state["master"] = p.detach().to(torch.float32, copy=True)
                    state["exp_avg"] = torch.zeros_like(state["master"])
                    state["exp_avg_sq"] = torch.zeros_like(state["master"])
                state["step"] += 1
                t, master, g = float(state["step"]), state["master"], p.grad.float()
                master.mul_(1 - lr * group["weight_decay"])
                state["exp_avg"].lerp_(g, 1 - b1)
                state["exp_avg_sq"].mul_(b2).addcmul_(g, g, value=1 - b2)
                root = (state["exp_avg_sq"] / (1 - b2**t)).sqrt_().add_(eps)
                master.addcdiv_(state["exp_avg"], root, value=-lr / (1 - b1**t))
                p.copy_(master)
