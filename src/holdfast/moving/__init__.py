"""Moving over from TRL: its arguments become a recipe, and what becomes of each is said."""

from holdfast.moving.translate import MEANINGS, Line, Moved, from_trl

__all__ = ["MEANINGS", "Line", "Moved", "from_trl"]
