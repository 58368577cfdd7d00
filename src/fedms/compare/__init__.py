"""`fedms compare`: methods on the same data, by the same protocol (docs/evaluation.md)."""

from fedms.compare.runs import MissingRunError, NoScoresError, Plan, Result, check, compare
from fedms.compare.variants import VARIANTS, Variant

__all__ = [
    "VARIANTS",
    "MissingRunError",
    "NoScoresError",
    "Plan",
    "Result",
    "Variant",
    "check",
    "compare",
]
