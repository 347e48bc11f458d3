"""What a worker of the speed bench says of itself. Needs nothing but torch, so that every environment can use it.

A worker prepares, says {"ready": ...}, then takes one step per line on standard input: `step`, or `count` for one whose floating-point
operations are counted (slower: its time does not count). It answers with one JSON line per step.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

# The real standard output is for answers alone; whatever a library prints goes to the log.
_answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)


def say(**what: Any) -> None:
    _answers.write(json.dumps(what) + "\n")
    _answers.flush()


def order() -> str:
    """The next line of the conductor; `end` where it has gone."""
    return sys.stdin.readline().strip() or "end"


def peak() -> int:
    """Bytes: the most memory that this process ever held (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def _attention(q: Any, k: Any, v: Any, *rest: Any, **more: Any) -> int:
    batch, heads, queries, size = q
    return 2 * batch * heads * queries * k[-2] * (size + v[-1])


def _attention_backward(grad: Any, q: Any, k: Any, v: Any, *rest: Any, **more: Any) -> int:
    # scores again, dV, dP, dQ, dK: five products where the forward has two
    batch, heads, queries, size = q
    return 2 * batch * heads * queries * k[-2] * (3 * size + 2 * v[-1])


def _product(x: Any, weight: Any, *rest: Any, **more: Any) -> int:
    rows = 1
    for n in x[:-1]:
        rows *= n
    return 2 * rows * x[-1] * weight[0]


FLOPS = {
    torch.ops.mkldnn._linear_pointwise: _product,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class Meter:
    """Times and counts steps: `begin` when one may go, `end` with what came of it."""

    def __init__(self, model: torch.nn.Module):
        self.tokens = 0
        self._counter: FlopCounterMode | None = None
        self._began = 0.0
        backbone = getattr(model, "base_model", model)
        backbone.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, module: Any, args: Any, kwargs: Any) -> None:
        ids = kwargs.get("input_ids")
        self.tokens += (ids if ids is not None else args[0]).numel()

    def begin(self) -> str:
        """Wait for the conductor; from here the step counts."""
        what = order()
        self.tokens = 0
        if what == "count":
            self._counter = FlopCounterMode(display=False, custom_mapping=FLOPS)
            self._counter.__enter__()
        self._began = time.perf_counter()
        return what

    def end(self, **what: Any) -> None:
        seconds = time.perf_counter() - self._began
        flops = None
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            flops, self._counter = self._counter.get_total_flops(), None
        say(seconds=seconds, tokens=self.tokens, flops=flops, peak=peak(), **what)


@contextmanager
def setting_up() -> Any:
    began = time.perf_counter()
    yield
    say(ready=time.perf_counter() - began, peak=peak())
