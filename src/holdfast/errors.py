"""The errors a user can meet. Each names the thing, the value and the remedy; the command line prints it without a traceback."""

from __future__ import annotations


class HoldfastError(Exception):
    """The user's mistake, or a state of their files: exit status 2, the message on standard error."""


class RecipeError(HoldfastError):
    """A recipe says something unknown, contradictory or out of range."""


class DataError(HoldfastError):
    """Input data cannot be read, or not in the way that was asked for."""


class IntegrityError(HoldfastError):
    """Something does not hash to what it says."""


class OfflineError(HoldfastError):
    """Training reached for the network or for other data while it must not."""
