"""What the machine's matrix products reach, as a worker of the speed bench: the products of the bench's model, in the shapes of one of its
steps, and nothing else. `step` answers with the seconds and the floating-point operations.

    python bench/products.py TOKENS RESPONSE_TOKENS
"""

from __future__ import annotations

import sys
import time

import torch

import meter
import workloads
from holdfast.language.products import product


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
    while meter.order() != "end":
        flops = 0
        began = time.perf_counter()
        for several in made:
            for a, b in several:
                product(a, b)
                flops += 2 * a.shape[0] * a.shape[1] * b.shape[0]
        seconds = time.perf_counter() - began
        meter.say(seconds=seconds, flops=flops, tokens=tokens, loss=0.0, peak=meter.peak())


if __name__ == "__main__":
    main()
