"""The whole: all sections, what must hold between them, and the keys there are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, Field, model_validator

from fedms.config.method import Baselines, Gate, Lora, Method, Sal, Stage1, Stage2, Training
from fedms.config.rounds import Aggregation, Faults, Rounds, Screen
from fedms.config.runtime import Runtime, Tracking
from fedms.config.section import Section
from fedms.config.task import PATHLESS, Data, Model, Partition


class Config(Section):
    """A whole run."""

    name: str = Field(
        "digits",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="first part of the run folder's name, NAME-METHOD-seedN",
    )
    method: Method = Field("fedms", description="what is run (docs/evaluation.md lists all)")
    seed: int = Field(0, ge=0, lt=2**63, description="of everything that is drawn")
    evaluate_every: int = Field(
        5, ge=0, description="rounds between test scores; 0: stage ends only"
    )
    checkpoint_every: int = Field(
        1, ge=1, description="rounds between checkpoints, from which a run that ended goes on"
    )
    model: Model = Field(default_factory=Model)
    data: Data = Field(default_factory=Data)
    partition: Partition = Field(default_factory=Partition)
    lora: Lora = Field(default_factory=Lora)
    sal: Sal = Field(default_factory=Sal)
    stage1: Stage1 = Field(default_factory=Stage1)
    stage2: Stage2 = Field(default_factory=Stage2)
    rounds: Rounds = Field(default_factory=Rounds)
    screen: Screen = Field(default_factory=Screen)
    aggregation: Aggregation = Field(default_factory=Aggregation)
    faults: Faults = Field(default_factory=Faults)
    gate: Gate = Field(default_factory=Gate)
    baselines: Baselines = Field(default_factory=Baselines)
    training: Training = Field(default_factory=Training)
    runtime: Runtime = Field(default_factory=Runtime)
    tracking: Tracking = Field(default_factory=Tracking)

    @model_validator(mode="after")
    def _some_rounds(self) -> Config:
        if self.stage1.rounds + self.stage2.rounds == 0:
            raise ValueError(
                "stage1.rounds and stage2.rounds are both 0; expected at least one round"
            )
        if self.data.source not in PATHLESS and self.data.path is None:
            raise ValueError(f'data.source = "{self.data.source}" needs data.path')
        path = self.data.path
        if path is not None and "source" not in self.data.model_fields_set:
            raise ValueError(
                f'got data.path = "{path}" without data.source; expected both; '
                f"try data.source={_source(path)}"
            )
        return self


def _source(path: str) -> str:
    """By the end of a path."""
    kinds = {".csv": "csv", ".gz": "csv", ".parquet": "parquet"}
    return kinds.get(Path(path).suffix.lower(), "folder")


def untracked(config: Config) -> Config:
    """What identifies a run: a configuration without trackers."""
    return config.model_copy(update={"tracking": Tracking()})


def known_keys() -> dict[str, Any]:
    """Every `section.key` of the schema with its default."""
    return dict(_flatten(Config().model_dump()))


def choices(key: str) -> tuple[str, ...]:
    """The values that a `section.key` can have, where they are words of a list."""
    model: type[BaseModel] = Config
    *sections, last = key.split(".", 2)
    for name in sections:
        found = model.model_fields.get(name)
        if found is None or not (isinstance(found.annotation, type)):
            return ()
        model = found.annotation
    field = model.model_fields.get(last)
    kind = field.annotation if field else None
    if kind is bool:
        return ("true", "false")
    return get_args(kind) if get_origin(kind) is Literal else ()


def _flatten(values: Mapping[str, Any], start: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in values.items():
        nested = isinstance(value, dict) and start == "" and value
        flat += _flatten(value, f"{key}.") if nested else [(f"{start}{key}", value)]
    return flat
