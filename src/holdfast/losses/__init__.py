"""Every loss as a pure function: `LOSSES[name]`. What a loss is: `registry`. The table of all: docs/formulas.md."""

from holdfast.losses import pairs, rewards, tokens
from holdfast.losses.registry import LOSSES, QUANTITIES, Loss, dry_run, soft

__all__ = ["LOSSES", "QUANTITIES", "Loss", "dry_run", "pairs", "rewards", "soft", "tokens"]
