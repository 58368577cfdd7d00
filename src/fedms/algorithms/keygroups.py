"""Federated averaging of some of an expert's tensors, while others stay private or as they were.

Most methods are this, with another choice of names:

- everything shared: FedAvg of LoRA adapters (FedIT, arXiv 2305.05644); with a pull towards what was
  received FedProx (arXiv 1812.06127); with other steps of the server FedAdam (arXiv 2003.00295); of
  random blocks FedRA (arXiv 2311.11227);
- A as it was at first, B shared: FFA-LoRA (arXiv 2403.12313);
- A shared, B private: FedSA-LoRA (arXiv 2410.01463);
- the first blocks shared, the last ones and the head private: FedPer (arXiv 1912.00818), or FedRep
  (arXiv 2102.07078) where the private part trains first and the shared part after it;
- a head alone shared: PromptFL (arXiv 2208.11625) and FedCLIP (arXiv 2302.13485), by what head the
  model has;
- nothing shared: local-only LoRA; of a linear head alone: a linear probe.

They take part in the rounds of both stages, with all blocks, or as many as a client's cap allows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedms.algorithms.checkpoint import DIVERGED, chosen, remember
from fedms.algorithms.options import Options
from fedms.core.algorithm import (
    Aggregate,
    ClientInfo,
    ClientState,
    ClientUpdate,
    ClientWork,
    Expert,
    FederatedAlgorithm,
    Learner,
    Role,
    RoundPlan,
    ServerState,
    Turn,
    View,
)
from fedms.core.layout import Layout, Shapes
from fedms.core.seeds import derive_seed
from fedms.core.tensors import Tensors, all_finite, part, pick, under

Names = frozenset[str]


def fedavg(layout: Layout, options: Options) -> FederatedAlgorithm:
    """Federated averaging of LoRA adapters in all blocks."""
    return grouped("fedavg", layout, options, Groups(shared=_all, private=_none))


def fedprox(layout: Layout, options: Options) -> FederatedAlgorithm:
    """FedProx: federated averaging whose clients are pulled towards what they received."""
    groups = Groups(shared=_all, private=_none, pull=options.pull)
    return grouped("fedprox", layout, options, groups)


def fedadam(layout: Layout, options: Options) -> FederatedAlgorithm:
    """FedAdam: federated averaging whose server takes Adam's steps."""
    momentum = options.server.momentum or 0.9
    adam = replace(options, server=replace(options.server, kind="adam", momentum=momentum))
    return grouped("fedadam", layout, adam, Groups(shared=_all, private=_none))


def fedra(layout: Layout, options: Options) -> FederatedAlgorithm:
    """FedRA: every client trains the adapters of blocks that are drawn anew for it every round.

    The paper's clients run the drawn blocks alone, as a smaller model. Here the whole frozen model
    runs, which every client holds.
    """
    groups = Groups(shared=_all, private=_none, drawn=options.random_blocks)
    return grouped("fedra", layout, options, groups)


def ffa(layout: Layout, options: Options) -> FederatedAlgorithm:
    """FFA-LoRA: A stays as it was at first, B is averaged, so that the average is exact."""
    groups = Groups(shared=lambda names: names - layout.down, private=_none)
    return grouped("ffa", layout, options, groups)


def fedsa(layout: Layout, options: Options) -> FederatedAlgorithm:
    """FedSA-LoRA: A is averaged; B, and a head, are the client's own."""
    groups = Groups(lambda names: names & layout.down, lambda names: names - layout.down)
    return grouped("fedsa", layout, options, groups)


def fedper(layout: Layout, options: Options) -> FederatedAlgorithm:
    """FedPer: the last blocks and the head are the client's own."""
    return grouped("fedper", layout, options, _last_blocks(layout, options))


def fedrep(layout: Layout, options: Options) -> FederatedAlgorithm:
    """FedRep: as FedPer, but the private part trains first, then the shared part.

    Two passes over a client's rows a round, and so half as many rounds (`Options.halved`).
    """
    groups = replace(_last_blocks(layout, options), apart=True)
    return grouped("fedrep", layout, options.halved(), groups)


def local(layout: Layout, options: Options) -> FederatedAlgorithm:
    """Local-only LoRA: every client trains an expert alone and sends nothing."""
    return grouped("local", layout, options, Groups(shared=_none, private=_all))


def promptfl(layout: Layout, options: Options) -> FederatedAlgorithm:
    """PromptFL: federated averaging of the head alone, whose prompts have learned words."""
    return grouped("promptfl", layout, options, _shared_head(layout))


def fedclip(layout: Layout, options: Options) -> FederatedAlgorithm:
    """FedCLIP: federated averaging of the head alone, which weighs features.

    Trained by another loss than in its authors' code: see `models.heads.AttentionHead`.
    """
    return grouped("fedclip", layout, options, _shared_head(layout))


def probe(layout: Layout, options: Options) -> FederatedAlgorithm:
    """Linear probe: every client trains a linear head alone, on the frozen model's features."""
    head = frozenset(layout.head)
    groups = Groups(shared=_none, private=lambda names: names & head)
    return grouped("probe", layout, options, groups)


@dataclass(frozen=True)
class Groups:
    """Who has what, as functions of the names of a client's active tensors.

    What is neither shared nor private stays as it was at first.

    Args:
        shared: of these names, those that train and are averaged.
        private: of these names, those that train and never leave.
        apart: private tensors train first, then shared ones, each for all epochs.
        pull: see `Fit`; towards what was received.
        drawn: so many random blocks are a client's active ones, another draw every round; None: all
            that its cap allows.
    """

    shared: Callable[[Names], Names]
    private: Callable[[Names], Names]
    apart: bool = False
    pull: float = 0.0
    drawn: int | None = None


def _all(names: Names) -> Names:
    return names


def _none(names: Names) -> Names:
    return frozenset()


def _shared_head(layout: Layout) -> Groups:
    head = frozenset(layout.head)
    return Groups(shared=lambda names: names & head, private=_none)


def _last_blocks(layout: Layout, options: Options) -> Groups:
    private = layout.expert(min(options.private_blocks, len(layout.blocks)))
    return Groups(lambda names: names - private, lambda names: names & private)


def grouped(name: str, layout: Layout, options: Options, groups: Groups) -> FederatedAlgorithm:
    """The method with these groups.

    Where there are private tensors, a client's model is its expert as it was after the best (or
    last) of its rounds; else everybody's model is the global expert.
    """
    method = _Grouped(layout, options, groups)
    return FederatedAlgorithm(
        name=name,
        rounds=options.rounds,
        init=method.init,
        plan=method.plan,
        expects=method.expects,
        client_update=method.client_update,
        server_update=method.server_update,
        view=method.view,
    )


@dataclass(frozen=True)
class _Grouped:
    """The functions of a method with these groups."""

    layout: Layout
    options: Options
    groups: Groups

    @property
    def blocks(self) -> int:
        return len(self.layout.blocks)

    @cached_property
    def shared(self) -> Names:
        return self.groups.shared(self.layout.expert(self.blocks))

    @cached_property
    def private(self) -> Names:
        return self.groups.private(self.layout.expert(self.blocks))

    @cached_property
    def still(self) -> Names:
        """What must be known of blocks in which something trains, and does not train itself."""
        trained = self.shared | self.private
        return self.layout.whole(trained) - trained

    @property
    def prior(self) -> bool:
        """Whether clients train with their class prior."""
        return (
            self.options.mix_prior == "both"
            if self.private
            else self.options.stage1_prior == "client"
        )

    def active(self, plan: RoundPlan, client: str, cap: int | None) -> Names:
        """What may train in a client's round."""
        if self.groups.drawn is None:
            return self.layout.expert(self.blocks if cap is None else min(self.blocks, cap))
        count = min(self.groups.drawn, self.blocks, cap or self.blocks)
        rng = np.random.default_rng(derive_seed(plan.seed, "blocks", plan.round, client))
        drawn = rng.permutation(self.blocks)[:count]
        return frozenset(n for i in drawn for n in self.layout.blocks[i]).union(self.layout.head)

    def init(self, learner: Learner, seed: int) -> ServerState:
        start = self.options.server.start(learner, self.shared, seed) if self.shared else {}
        tensors = {**start, **under("global", learner.initial_expert(self.still, seed))}
        stage = 2 if self.private else 1
        return ServerState(seed, round=0, stage=stage, depth=self.blocks, tensors=tensors)

    def plan(self, state: ServerState) -> RoundPlan | None:
        if state.round >= self.options.rounds:
            return None
        stage = self.options.stage(state.round)
        known = frozenset(n for n in state.tensors if n.startswith("global/"))
        constant = frozenset(f"global/{n}" for n in self.still)
        return RoundPlan(
            round=state.round,
            stage=state.stage,
            depth=self.blocks,
            seed=state.seed,
            cohort=stage.cohort,
            epochs=stage.epochs,
            rate=self.options.rate(state.round, self.options.rounds),
            broadcast=known - constant,
            constant=constant,
            upload=frozenset(f"global/{n}" for n in self.shared),
        )

    def expects(self, plan: RoundPlan, client: ClientInfo) -> Shapes:
        names = self.groups.shared(self.active(plan, client.id, client.cap))
        return {f"global/{n}": self.layout.shapes[n] for n in sorted(names)}

    def client_update(self, turn: Turn) -> ClientWork:
        learner, plan, data, state = turn.learner, turn.plan, turn.data, turn.state
        names, received = self.active(plan, data.id, data.cap), part("global", turn.broadcast)
        ours, mine = self.groups.shared(names), self.groups.private(names)
        own = {n: t for n, t in part("local", state.tensors if state else {}).items() if n in mine}
        fresh = learner.initial_expert(self.layout.whole(ours | mine), plan.seed)
        start = self.whole({**fresh, **received, **own})
        score = DIVERGED
        if not self.private:
            score = learner.score(View(Expert(self.whole(received))), data, "val")
        view = View(Expert(start, self.prior))
        pull = self.groups.pull
        for some in filter(None, (mine, ours) if self.groups.apart else (mine | ours,)):
            view = yield replace(turn.fit(view, some), pull=pull, anchor=start)
        tensors, after = view.expert.tensors, None
        depth = sum(any(n in names for n in block) for block in self.layout.blocks)
        if self.private:
            if all_finite(tensors):
                score = learner.score(view, data, "val")
            before, private = state or ClientState({}, depth), under("local", tensors)
            keep_best = self.options.keep_best
            after = remember(before, private, score, depth=depth, keep_best=keep_best)
        upload = under("global", pick(tensors, ours))
        size = self.layout.size(ours | mine)
        return ClientUpdate(data.id, plan.round, len(data.train), upload, score, depth, size, after)

    def server_update(
        self, state: ServerState, plan: RoundPlan, aggregate: Aggregate
    ) -> ServerState:
        tensors = self.options.server.move(state.tensors, part("global", aggregate.tensors))
        return replace(state, round=state.round + 1, tensors=tensors)

    def view(self, state: ServerState, client: ClientState | None, role: Role) -> View | None:
        known = part("global", state.tensors)
        if role == "global":
            return None if self.private else View(Expert(self.whole(known)))
        if client is not None:
            return View(Expert(part("local", chosen(client)), self.prior))
        if role == "local":
            return None
        prior = self.prior if self.private else self.options.counted
        return View(Expert(self.whole(known), prior))

    def whole(self, known: Tensors) -> dict[str, Tensor]:
        """What is known, with zeros for what is not known yet of its blocks: no product."""
        missing = self.layout.whole(known) - known.keys()
        return {**{n: torch.zeros(self.layout.shapes[n]) for n in sorted(missing)}, **known}
