"""Federated averaging of the products of low-rank matrices, which averaging A and B apart misses.

`mean(B @ A)` over clients is not `mean(B) @ mean(A)`. The server averages the products and shares
what is missing:

- FLoRA (arXiv 2409.05976): the products of a round are merged into the frozen model for good, and
  everybody starts from new adapters. (Stacking all clients' A and B, as the paper does, gives the
  same product.)
- FedEx-LoRA (arXiv 2410.09432): A and B are averaged as ever, and what their product misses of the
  average of products is merged into the frozen model.
- FlexLoRA (arXiv 2402.11505), for clients of unequal ranks: the average of products is decomposed
  into A and B again, and a client gets as many of the leading singular vectors as it has rank.

What is merged into the frozen model lies beneath the adapters as frozen pairs, one set for every
round, each sent to a client once. Their rank is at most that of the round's clients together, which
the server finds by decomposing, so that they are no larger than the clients' own pairs stacked.
The server moves to the average and not beyond: momentum would undo what makes it exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedms.algorithms.keygroups import fedavg
from fedms.algorithms.options import Options
from fedms.algorithms.server import Server
from fedms.core.algorithm import (
    Aggregate,
    ClientInfo,
    ClientState,
    ClientUpdate,
    ClientWork,
    Expert,
    FederatedAlgorithm,
    Role,
    RoundPlan,
    Score,
    ServerState,
    Turn,
    View,
)
from fedms.core.layout import Layout, Shapes
from fedms.core.seeds import derive_seed
from fedms.core.tensors import Tensors, elements, part, pick, under

_PRODUCT = "product"
_MERGED = "merged"


def flora(layout: Layout, options: Options) -> FederatedAlgorithm:
    """FLoRA: products are merged into the frozen model, adapters start anew every round."""
    return _merging("flora", layout, options, anew=True)


def fedex(layout: Layout, options: Options) -> FederatedAlgorithm:
    """FedEx-LoRA: A and B are averaged, what their product misses is merged."""
    return _merging("fedex", layout, options, anew=False)


def flexlora(layout: Layout, options: Options) -> FederatedAlgorithm:
    """FlexLoRA: clients of unequal ranks (`ClientData.rank`) share what they can hold of a product.

    A singular value is shared out equally to A and B (reconstructed).
    """
    plain = fedavg(layout, replace(options, server=Server()))
    heads = frozenset(layout.head)

    def cut(tensors: Tensors, rank: int | None) -> dict[str, Tensor]:
        """To the first `rank` rows of A and columns of B."""
        downs, ups = layout.down, {b for _, b in layout.pairs}
        return {
            n: t[:rank].clone() if n in downs else t[:, :rank].clone() if n in ups else t
            for n, t in tensors.items()
        }

    def expects(plan: RoundPlan, client: ClientInfo) -> Shapes:
        every = plain.expects(plan, client)
        empty = {n.removeprefix("global/"): torch.empty(s) for n, s in every.items()}
        return {f"global/{n}": tuple(t.shape) for n, t in cut(empty, client.rank).items()}

    def client_update(turn: Turn) -> ClientWork:
        data = turn.data
        received = cut(part("global", turn.broadcast), data.rank)
        score = turn.learner.score(View(Expert(received)), data, "val")
        active = layout.expert(data.depth(len(layout.blocks)))
        fresh = turn.learner.initial_expert(active, turn.plan.seed)
        expert = Expert({**cut(fresh, data.rank), **received}, options.stage1_prior == "client")
        return (yield from _one_round(turn, expert, active, score))

    def server_update(state: ServerState, plan: RoundPlan, aggregate: Aggregate) -> ServerState:
        products = part(_PRODUCT, aggregate.tensors)
        kept = {n: t for n, t in part("global", aggregate.tensors).items() if n in heads}
        pairs = _decomposed(layout, products, 1)
        tensors = {**state.tensors, **under("global", {**kept, **pairs})}
        return replace(state, round=state.round + 1, tensors=tensors)

    def lift(tensors: Tensors) -> Tensors:
        given = part("global", tensors)
        kept = under("global", {n: t for n, t in given.items() if n in heads})
        return {**kept, **under(_PRODUCT, _products(layout, given))}

    return replace(
        plain,
        name="flexlora",
        expects=expects,
        client_update=client_update,
        server_update=server_update,
        lift=lift,
    )


def _one_round(turn: Turn, expert: Expert, names: frozenset[str], score: Score) -> ClientWork:
    """Train these names of an expert and send them; the score is of what arrived."""
    view = yield turn.fit(View(expert), names)
    data, trained = turn.data, pick(view.expert.tensors, names)
    depth, size = data.depth(len(turn.learner.layout.blocks)), elements(trained)
    tensors = under("global", trained)
    return ClientUpdate(data.id, turn.plan.round, len(data.train), tensors, score, depth, size)


def _merging(name: str, layout: Layout, options: Options, *, anew: bool) -> FederatedAlgorithm:
    plain = fedavg(layout, replace(options, server=Server()))
    heads = frozenset(layout.head)
    prior = options.stage1_prior == "client"

    def fresh(plan: RoundPlan) -> int:
        return derive_seed(plan.seed, "anew", plan.round) if anew else plan.seed

    def plan(state: ServerState) -> RoundPlan | None:
        planned = plain.plan(state)
        if planned is None:
            return None
        merged = frozenset(n for n in state.tensors if n.startswith(f"{_MERGED}/"))
        return replace(planned, constant=planned.constant | merged)

    def client_update(turn: Turn) -> ClientWork:
        plan, received = turn.plan, part("global", turn.broadcast)
        beneath = _together(layout, turn.broadcast)
        score = turn.learner.score(View(Expert(received, beneath=beneath)), turn.data, "val")
        active = layout.expert(turn.data.depth(len(layout.blocks)))
        start = {**turn.learner.initial_expert(active, fresh(plan)), **received}
        return (yield from _one_round(turn, Expert(start, prior, beneath), active, score))

    def server_update(state: ServerState, plan: RoundPlan, aggregate: Aggregate) -> ServerState:
        average = part("global", aggregate.tensors)
        products = part(_PRODUCT, aggregate.tensors)
        missing = (
            products
            if anew
            else {
                b: products[b] - average[b] @ average[a] for a, b in layout.pairs if b in products
            }
        )
        # about their means clients' pairs add up to nothing, so that one follows from the others
        terms = aggregate.clients if anew else max(1, aggregate.clients - 1)
        kept = {n: t for n, t in average.items() if n in heads} if anew else average
        merged = under(f"{_MERGED}/{plan.round}", _decomposed(layout, missing, terms))
        tensors = {**state.tensors, **under("global", kept), **merged}
        return replace(state, round=state.round + 1, tensors=tensors)

    def view(state: ServerState, client: ClientState | None, role: Role) -> View | None:
        if role == "local":
            return None
        beneath = _together(layout, state.tensors)
        with_prior = role == "personal" and options.counted
        return View(Expert(part("global", state.tensors), with_prior, beneath))

    def lift(tensors: Tensors) -> Tensors:
        return {**tensors, **under(_PRODUCT, _products(layout, part("global", tensors)))}

    return replace(
        plain,
        name=name,
        plan=plan,
        client_update=client_update,
        server_update=server_update,
        view=view,
        lift=lift,
        fresh=fresh,
    )


def _products(layout: Layout, tensors: Tensors) -> dict[str, Tensor]:
    """`B @ A` of every pair that is there, by the name of B, in float64."""
    pairs = [(a, b) for a, b in layout.pairs if b in tensors]
    return {b: tensors[b].double() @ tensors[a].double() for a, b in pairs}


def _decomposed(layout: Layout, products: Mapping[str, Tensor], terms: int) -> dict[str, Tensor]:
    """Pairs (A, B) whose products are these, each a sum of so many products of pairs."""
    found: dict[str, Tensor] = {}
    for a, b in layout.pairs:
        if b not in products:
            continue
        u, s, v = torch.linalg.svd(products[b].double(), full_matrices=False)
        rank = min(terms * layout.shapes[a][0], len(s))
        root = s[:rank].sqrt()
        found[b] = (u[:, :rank] * root).float()
        found[a] = (root[:, None] * v[:rank]).float()
    return found


def _together(layout: Layout, tensors: Tensors) -> dict[str, Tensor]:
    """All rounds' merged pairs as one: A above A, B beside B. A block without any has none."""
    rounds: dict[int, dict[str, Tensor]] = {}
    for name, tensor in part(_MERGED, tensors).items():
        number, rest = name.split("/", 1)
        rounds.setdefault(int(number), {})[rest] = tensor
    if not rounds:
        return {}
    ordered = [rounds[number] for number in sorted(rounds)]
    found: dict[str, Tensor] = {}
    for a, b in layout.pairs:
        found |= _stacked(
            [r[a] for r in ordered if a in r], [r[b] for r in ordered if b in r], a, b
        )
    return found


def _stacked(firsts: Sequence[Tensor], seconds: Sequence[Tensor], a: str, b: str) -> Tensors:
    return {a: torch.cat(list(firsts), 0), b: torch.cat(list(seconds), 1)} if firsts else {}
