"""`fedms bench`: what fedms costs, beside what the same work costs otherwise, in one run."""

from fedms.bench.measures import MEASURES, measure, measures_of
from fedms.bench.rows import Row

__all__ = ["MEASURES", "Row", "measure", "measures_of"]
