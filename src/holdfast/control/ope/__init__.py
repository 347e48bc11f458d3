"""Off-policy evaluation: what a policy is worth, from episodes that another logged."""

from holdfast.control.ope.evaluate import PolicyValue, evaluate_policy
from holdfast.control.ope.selection import Selection, select
from holdfast.control.ope.weights import OpeError, clone

__all__ = ["OpeError", "PolicyValue", "Selection", "clone", "evaluate_policy", "select"]
