"""A row of docs/conformance.md."""

from __future__ import annotations

import math
from dataclasses import dataclass

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Row:
    """One comparison. apart, slope: relative differences of the losses and of their derivatives. note: where they differ, who is right."""

    what: str
    trl: str
    holdfast: str
    theirs: float
    ours: float
    apart: float
    slope: float
    note: str = ""

    @property
    def equal(self) -> bool:
        return self.apart <= TOLERANCE and self.slope <= TOLERANCE  # a nan is not


def number(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else str(value)
