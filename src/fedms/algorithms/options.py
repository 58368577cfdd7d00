"""What may be chosen of a method, in one record for all of them: each reads what concerns it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from fedms.algorithms.sal import Sal
from fedms.algorithms.server import Server

LocalInit = Literal["global", "zero"]
Share = Literal["adapter", "all", "none"]
Mixture = Literal["gate", "even", "none"]
StagePrior = Literal["none", "client", "learned"]
Statistics = Literal["personal", "shared", "none"]
MixPrior = Literal["none", "client", "both", "learned"]
Checkpoint = Literal["best", "last", "mean"]
RateSchedule = Literal["constant", "cosine"]


@dataclass(frozen=True)
class Stage:
    """Rounds of one stage, clients a round (fraction or number), passes over their rows."""

    rounds: int
    cohort: float | int = 1.0
    epochs: int = 1


@dataclass(frozen=True)
class Options:
    """What may be chosen; every default of FedMS' own is reconstructed.

    Args:
        stage1, stage2: lengths. Without stage 1 the global expert is the foundation model. Methods
            without stages take part in the rounds of both.
        sal: when depth grows; on the server in stage 1, on each client in stage 2.
        carry_depth: stage 2 begins at the depth that stage 1 reached, instead of at `sal.start`.
        local_init: the local expert starts from the global one, or from zero.
        share: which part of the gate is averaged: its adapter, all of it, or none.
        mixture: how both experts are joined in stage 2: by the gate, with equal weights (a
            control), or not at all, so that the local expert is the client's model.
        stage1_prior: the client's class prior is added to the logits while it trains the global
            expert, which then need not learn the class frequencies of one client after the other
            (logit calibration, arXiv 2209.00189, with the client's prior): its class frequencies
            as they are (`client`), or weighed as calibration says (`learned`).
        server: how the global expert moves by the clients' average.
        mix_prior: whose logits get the client's class prior in stage 2: nobody's, the global
            expert's in the mixture (`client`), or also the local one's (`both`); or both experts'
            while they train, weighed as calibration says (`learned`).
        calibrate: personal models predict by shared weights of evidence (`core.calibration`),
            which all clients fit on validation rows.
        statistics: whether class statistics (`core.discriminant`) are gathered where personal
            models are calibrated, in a round of their own before stage 1, in which nothing is
            trained. They are evidence, with means of classes drawn towards the client's own rows
            (`personal`) or as they are (`shared`), and say where experts look for classes.
        checkpoint: which of its rounds a client's model is of: the `best` by its validation rows
            (ties: the lower loss), the `last`, or the `mean` of what all rounds of stage 2 left, of
            which each went on from the last (Polyak and Juditsky 1992). Methods without a stage of
            local experts take the best in place of the mean.
        rate_schedule: of learning rates over the rounds of a stage (methods without stages: of
            all): constant, or down towards nothing along half a cosine (arXiv 1608.03983, without
            restarts).
        pull: FedProx: weight of the squared distance from the global model, at least 0.
        own_pull: Ditto: of its own model's, likewise (λ of its paper, which has 1 where clients
            have too few rows to choose one).
        private_blocks: FedPer and FedRep: the last blocks that stay with the client, with the head.
        random_blocks: FedRA: how many blocks a client trains in a round.
        likeness: FedDPA: the local adapter's weight in a row that is just as the client's own ones,
            0..1.
    """

    stage1: Stage
    stage2: Stage
    sal: Sal = field(default_factory=Sal)
    carry_depth: bool = True
    local_init: LocalInit = "global"
    share: Share = "adapter"
    mixture: Mixture = "gate"
    stage1_prior: StagePrior = "none"
    server: Server = field(default_factory=Server)
    mix_prior: MixPrior = "none"
    calibrate: bool = False
    statistics: Statistics = "none"
    checkpoint: Checkpoint = "best"
    rate_schedule: RateSchedule = "constant"
    pull: float = 0.0
    own_pull: float = 0.0
    private_blocks: int = 1
    random_blocks: int = 1
    likeness: float = 0.5

    @property
    def gathers(self) -> bool:
        """Whether class statistics are evidence."""
        return self.calibrate and self.statistics != "none"

    @property
    def counted(self) -> bool:
        """Whether a global expert has the client's class prior as it is."""
        return self.mix_prior in ("client", "both")

    @property
    def keep_best(self) -> bool:
        """Whether validation rows choose between a client's rounds, where there is no mean."""
        return self.checkpoint != "last"

    @property
    def rounds(self) -> int:
        """Of both stages."""
        return self.stage1.rounds + self.stage2.rounds

    def stage(self, round: int) -> Stage:
        """The stage a round (from 0) belongs to, for methods that take part in both alike."""
        return self.stage1 if round < self.stage1.rounds else self.stage2

    def halved(self) -> Options:
        """For methods that pass twice over a client's rows in a round: half as many rounds.

        Stages keep their proportion, so that epochs and cohorts weigh as they do for others. Of an
        odd number of rounds one pass is left out, but never the only round; where both stages have
        an odd number, one of them has the round that is half of each.
        """
        rounds = max(1, self.rounds // 2)
        first = round(rounds * self.stage1.rounds / self.rounds)
        stage1 = replace(self.stage1, rounds=first)
        return replace(self, stage1=stage1, stage2=replace(self.stage2, rounds=rounds - first))

    def rate(self, round: int, rounds: int) -> float:
        """What learning rates are multiplied by in a round (from 0) of so many."""
        if self.rate_schedule == "constant":
            return 1.0
        return (1 + math.cos(math.pi * round / rounds)) / 2
