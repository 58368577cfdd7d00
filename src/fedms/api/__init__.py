"""fedms from Python: `FedMS(model, tokenizer).fit(datasets)`, and what it returns."""

from fedms.api.federation import FedMS
from fedms.api.kept import Kept
from fedms.api.result import Newcomer, Result

__all__ = ["FedMS", "Kept", "Newcomer", "Result"]
