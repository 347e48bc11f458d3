"""Every algorithm of control, by the name that a recipe gives it. To add one: a class under `algorithm`, and its test."""

from holdfast.control.algorithms import continuous, discrete, preference, shared, trees
from holdfast.control.algorithms.base import ALGORITHMS, Algorithm, find

__all__ = ["ALGORITHMS", "Algorithm", "continuous", "discrete", "find", "preference", "shared", "trees"]
