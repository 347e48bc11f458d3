"""Off-policy evaluation: what a policy is worth, from episodes that another logged."""

from holdfast.control.ope.evaluate import PolicyValue, evaluate_policy
from holdfast.control.ope.weights import OpeError

__all__ = ["OpeError", "PolicyValue", "evaluate_policy"]
