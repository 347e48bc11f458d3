"""What a person sees of a run, on standard error: a bar on a terminal, plain lines elsewhere, nothing when asked to be
quiet.

Standard output is never written: it belongs to `--json`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """Steps with their loss, tokens per second where the objective counts them, and the time left.

    every: seconds between two plain lines where the stream is no terminal.
    """

    def __init__(self, quiet: bool = False, stream: IO[str] | None = None, every: float = 10.0):
        self.quiet, self.stream, self.every = quiet, stream or sys.stderr, every
        self._bar: Bar | None = None
        self._total = 0
        self._tokens = 0.0
        self._began = self._said = time.monotonic()
        self._first = 0

    def start(self, step: int, total: int) -> None:
        self._total, self._first = total, step
        self._began = self._said = time.monotonic()
        self._tokens = 0.0
        console = Console(file=self.stream)
        if not self.quiet and console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}"), TimeRemainingColumn())
            self._bar = Bar(TextColumn("step"), *columns, console=console, transient=False)
            self._task = self._bar.add_task("step", total=total, completed=step, said="")
            self._bar.start()

    def step(self, step: int, loss: float, tokens: float | None) -> None:
        self._tokens += tokens or 0.0
        if self.quiet:
            return
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=step, said=f"loss {loss:.4f}{self._speed(now)}")
        elif now - self._said >= self.every or step == self._total:
            self._said = now
            left = (now - self._began) / max(1, step - self._first) * (self._total - step)
            self._line(f"step {step}/{self._total}  loss {loss:.4f}{self._speed(now)}  {_clock(left)} left")

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        self.note(f"step {step}  held out: " + "  ".join(f"{name} {value:.4g}" for name, value in figures.items()))

    def note(self, text: str) -> None:
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            self._line(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _speed(self, now: float) -> str:
        return f"  {self._tokens / max(1e-9, now - self._began):,.0f} tokens/s" if self._tokens else ""

    def _line(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


def _clock(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}"
