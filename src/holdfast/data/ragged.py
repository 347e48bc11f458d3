"""Lists of different lengths in two flat arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np


class Ragged:
    """N lists as one array: list i is `flat[offsets[i] : offsets[i + 1]]`.

    flat:    (T,) any dtype.
    offsets: (N + 1,) int64, rising, from 0 to T.
    """

    __slots__ = ("flat", "offsets")

    def __init__(self, flat: np.ndarray, offsets: np.ndarray):
        offsets = np.asarray(offsets, dtype=np.int64)
        if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(flat) or (np.diff(offsets) < 0).any():
            raise ValueError("offsets must rise from 0 to the length of flat")
        self.flat = flat
        self.offsets = offsets

    @classmethod
    def of(cls, lists: Sequence[Any], dtype: Any = np.int32) -> Ragged:
        """From a sequence of sequences."""
        lengths = np.fromiter((len(x) for x in lists), dtype=np.int64, count=len(lists))
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        flat = np.empty(offsets[-1], dtype=dtype)
        for i, x in enumerate(lists):
            flat[offsets[i] : offsets[i + 1]] = x
        return cls(flat, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        """List i as a view into `flat`."""
        if i < 0:
            i += len(self)
        if not 0 <= i < len(self):
            raise IndexError(f"list {i} of {len(self)}")
        return self.flat[self.offsets[i] : self.offsets[i + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Ragged)
            and np.array_equal(self.offsets, other.offsets)
            and np.array_equal(self.flat, other.flat)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Ragged({len(self)} lists, {len(self.flat)} {self.flat.dtype})"

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64."""
        return np.diff(self.offsets)

    @property
    def owner(self) -> np.ndarray:
        """(T,) int64: which list each element of `flat` belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def take(self, indices: Any) -> Ragged:
        """The lists at `indices`, in that order (a copy)."""
        indices = np.asarray(indices, dtype=np.int64)
        lengths = self.lengths[indices]
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        at = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][indices] - offsets[:-1], lengths)
        return Ragged(self.flat[at], offsets)
