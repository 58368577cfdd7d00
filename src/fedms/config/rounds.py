"""What becomes of a round: when it counts, which updates do and how, and what goes wrong in it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fedms.config.section import Section, studied


class Rounds(Section):
    """When a round counts. What is said of waiting is for clients on other machines."""

    deadline: float = Field(
        0.0, ge=0, description="seconds to wait for clients that do not answer; 0: for ever"
    )
    spare: float = Field(
        0.0,
        ge=0,
        description="clients asked beyond a cohort, as a share of it: the first answers suffice",
    )
    min_updates: int = Field(1, ge=1, description="usable updates that a round needs")
    attempts: int = Field(3, ge=1, description="cohorts tried for a round before the run stops")


class Screen(Section):
    """Which updates are used, of those that can be read."""

    max_norm_ratio: float = Field(
        0.0,
        ge=0,
        description="longest change of parameters, in multiples of its cohort's median; 0: any",
    )
    above: Literal["reject", "warn"] = Field(
        "reject", description="what is done with longer ones; warn: they are used, and told of"
    )
    contradictions: Literal["reject", "warn", "off"] = studied(
        "reject",
        "2026-11-25 · Liars about labels contradict the others",
        description="what is done with class statistics of a client whose classes are where "
        "others have other classes",
    )
    max_rows_ratio: float = Field(
        0.0,
        ge=0,
        description="a client counts as no more rows than so many times its cohort's median, of "
        "training or validation rows; 0: as all it says",
    )


class Aggregation(Section):
    """How updates become one."""

    rule: Literal["mean", "median", "trimmed", "geometric", "krum", "multikrum", "clip"] = Field(
        "mean", description="federated averaging, or a rule that bears malicious clients"
    )
    malicious: float = Field(
        0.2, ge=0, lt=0.5, description="share of clients that may be, for trimmed and both krums"
    )


class Faults(Section):
    """What goes wrong on purpose, in simulations only: clients that fail, and clients that lie."""

    drop: float = Field(0.0, ge=0, le=1, description="share of a round's clients not reached")
    data: float = Field(0.0, ge=0, le=1, description="share that cannot read its rows")
    crash: float = Field(0.0, ge=0, le=1, description="share that crashes in training")
    slow: float = Field(0.0, ge=0, le=1, description="share whose answer comes too late")
    attack: Literal["none", "sign", "scale", "random", "invalid", "labels"] = Field(
        "none", description="what attackers send, or train on"
    )
    attackers: float = Field(0.0, ge=0, lt=1, description="share of clients that are attackers")
    strength: float = Field(10.0, gt=0, description="times their change, of scale and random")

    @model_validator(mode="after")
    def _shares(self) -> Faults:
        if self.drop + self.data + self.crash + self.slow > 1:
            raise ValueError("drop, data, crash and slow add up to more than 1; expected 1 at most")
        if (self.attack == "none") != (self.attackers == 0):
            raise ValueError("attack and attackers go together; expected both, or neither")
        return self
