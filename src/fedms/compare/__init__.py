"""`fedms compare`: methods on the same data, by the same protocol (docs/evaluation.md)."""

from fedms.compare.runs import Plan, Result, compare
from fedms.compare.variants import VARIANTS, Variant

__all__ = ["VARIANTS", "Plan", "Result", "Variant", "compare"]
