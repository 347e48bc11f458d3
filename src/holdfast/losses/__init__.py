"""Every loss as a pure function: `LOSSES[name]`. What a loss is: `registry`. The table of all: docs/formulas.md."""

from holdfast.losses import labels, lists, pairs, rewards, tokens
from holdfast.losses.labels import kto_z0
from holdfast.losses.pairs import bco_delta
from holdfast.losses.registry import LOSSES, QUANTITIES, Loss, dry_run, soft
from holdfast.losses.rewards import pessimistic

__all__ = [
    "LOSSES",
    "QUANTITIES",
    "Loss",
    "bco_delta",
    "dry_run",
    "kto_z0",
    "labels",
    "lists",
    "pairs",
    "pessimistic",
    "rewards",
    "soft",
    "tokens",
]
