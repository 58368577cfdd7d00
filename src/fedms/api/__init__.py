"""fedms from Python: `FedMS(model, tokenizer).fit(datasets)`, and what it returns."""

from fedms.api.federation import FedMS
from fedms.api.result import Result

__all__ = ["FedMS", "Result"]
