"""What the machine's matrix products reach, as a worker of the speed bench: the products of the bench's model, in the shapes of one of its
steps, and nothing else. `step` answers with the floating-point operations and the seconds of them: as we compute them, and by PyTorch.

    python bench/products.py TOKENS RESPONSE_TOKENS
"""

from __future__ import annotations

import sys
import time

import torch

import meter
import workloads
from holdfast.training.products import product


def main() -> None:
    tokens, responses = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(workloads.THREADS)
    hidden, ffn = workloads.SHAPE["hidden"], workloads.SHAPE["ffn"]
    # Forward, and the two products of the backward, of each kind of layer.
    kinds = [
        (tokens, hidden, hidden),
        (tokens, hidden, ffn),
        (tokens, ffn, hidden),
        (responses, hidden, workloads.VOCAB),
    ]
    made = []
    for m, i, o in kinds:
        x, w, g = torch.randn(m, i), torch.randn(o, i), torch.randn(m, o)
        made.append(((x, w), (g, w.T), (g.T, x.T)))
    meter.say(ready=0.0, peak=meter.peak())
    every = [pair for several in made for pair in several]
    flops = sum(2 * a.shape[0] * a.shape[1] * b.shape[0] for a, b in every)
    while meter.order() != "end":
        took = []
        for multiply in (product, lambda a, b: a @ b.T):
            began = time.perf_counter()
            for a, b in every:
                multiply(a, b)
            took.append(time.perf_counter() - began)
        meter.say(seconds=took[0], plain=took[1], flops=flops, tokens=tokens, loss=0.0, peak=meter.peak())


if __name__ == "__main__":
    main()
