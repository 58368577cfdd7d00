"""What every section is: strict and frozen; kinds of values; which study decided a default."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Cohort = Annotated[int, Field(ge=1, strict=True)] | Annotated[float, Field(gt=0.0, le=1.0)]
DEVICE = r"^(auto|cpu|mps|cuda(:\d+)?)$"
SIZE = r"^\d+(\.\d+)?\s?[kKMG]?B$"
"""Of bytes, as `60kB` or `2GB`."""
Size = Annotated[str, Field(pattern=SIZE)]

Rank = Annotated[int, Field(ge=1, strict=True)]
Cap = Annotated[int, Field(ge=1, strict=True)] | Size

T = TypeVar("T")


def studied(default: T, entry: str, *, description: str, **rules: Any) -> T:
    """A field whose default a study here chose or kept.

    `entry` is how the study's heading in docs/research-log.md begins. `docs/options.py` links it.
    """
    field: T = Field(
        default, description=description, json_schema_extra={"evidence": entry}, **rules
    )
    return field


class Section(BaseModel):
    """Frozen, strict about unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True
    )
