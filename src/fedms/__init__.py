"""fedms: personalised federated fine-tuning of foundation models.

What is listed here is for programs; it is imported when it is asked for, so that `import fedms` is
instant.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedms.api import FedMS, Result
    from fedms.config import Config, ConfigError, load_config
    from fedms.core.errors import UserError

_WHERE = {
    "Config": "fedms.config",
    "ConfigError": "fedms.config",
    "FedMS": "fedms.api",
    "Result": "fedms.api",
    "UserError": "fedms.core.errors",
    "load_config": "fedms.config",
}

__all__ = ["Config", "ConfigError", "FedMS", "Result", "UserError", "load_config"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("fedms")
    if name not in _WHERE:
        raise AttributeError(f"module 'fedms' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
