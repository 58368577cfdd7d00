"""What a process that has clients does when it is asked, and how it is asked.

Whatever carries the messages (pipes of `workers`, an engine between sites), the clients behind them
are a `Simulator`'s: one algorithm, wherever it runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedms.core.algorithm import (
    ClientUpdate,
    Expert,
    FederatedAlgorithm,
    Learner,
    RoundPlan,
    Score,
    ServerState,
    View,
)
from fedms.core.costs import Costs
from fedms.core.routing import Routing
from fedms.core.rows import ClientData, Split
from fedms.runtimes.messages import Message, MessageError, write
from fedms.runtimes.rounds import Answer
from fedms.runtimes.simulator import Scores, Sent, Simulator
from fedms.store.states import ClientStates

_UPDATE = {"client": str, "round": int, "rows": int, "depth": int, "trained_parameters": int}
_STATE = {"seed": int, "round": int, "stage": int, "depth": int, "queue": tuple[float, ...]}


class Service:
    """A simulator behind messages."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    def answers(self, asked: Message) -> Iterator[Message]:
        """One answer a client to `train`, one to everything else.

        Raises:
            MessageError: if the question cannot be read.
        """
        if asked.kind == "train":
            plan = asked.fact("plan", RoundPlan)
            sent = Sent(plan, asked.tensors)
            for answer in self._simulator.answers(sent, asked.fact("clients", list[str])):
                yield of_answer(answer)
            return
        if asked.kind == "routing":
            found = self._simulator.routing(read_state(asked))
            yield Message("routing", {"clients": {c: write(r) for c, r in found.items()}})
            return
        scores = self._scores(asked)
        facts = {
            "scores": {split: _write_scores(found) for split, found in scores.items()},
            "costs": write(self._simulator.spent()),
        }
        yield Message("scores", facts)

    def _scores(self, asked: Message) -> dict[Split, Scores]:
        clients = self._simulator
        if asked.kind == "evaluate":
            return clients.evaluate(read_state(asked))
        if asked.kind == "newcomers":
            words = asked.fact("plan", RoundPlan), read_state(asked)
            rounds, rows = asked.fact("rounds", int), asked.fact("rows", int)
            return {"test": clients.newcomers(*words, rounds, rows)}
        if asked.kind == "score_all":
            view = View(Expert(asked.tensors, asked.fact("prior", bool)))
            return {split: {"": scores} for split, scores in clients.score_all(view).items()}
        raise MessageError(f"got a message {asked.kind!r}; expected one that a client answers")


@dataclass(frozen=True, eq=False)
class AnyClient:
    """All clients of a run in one process, each behind messages by itself.

    Args:
        algorithm, learner: what clients run.
        clients: those that train.
        unseen: those that never train.
        scored: those that are scored.
        states: where private states are kept.
    """

    algorithm: FederatedAlgorithm
    learner: Learner
    clients: Sequence[ClientData]
    unseen: Sequence[ClientData]
    scored: Sequence[ClientData]
    states: ClientStates

    def of(self, client: str) -> Service:
        """One client, as if there were no other."""
        groups = self.clients, self.unseen, self.scored
        trained, unseen, scored = ([c for c in group if c.id == client] for group in groups)
        what = self.algorithm, self.learner, trained, self.states, unseen
        return Service(Simulator(*what, scored=scored))

    def names(self) -> list[str]:
        """Of all, in their order."""
        return list(dict.fromkeys(c.id for c in (*self.clients, *self.scored, *self.unseen)))


def ask_train(sent: Sent, clients: Sequence[str]) -> Message:
    """Have clients perform a round; each answers as `read_answer` reads it."""
    facts = {"plan": write(sent.plan), "clients": list(clients)}
    return Message("train", facts, sent.tensors)


def ask_evaluate(state: ServerState) -> Message:
    """See `Simulator.evaluate`; answered as `read_scores` reads it, like those that follow."""
    return Message("evaluate", _facts(state), state.tensors)


def ask_routing(state: ServerState) -> Message:
    """See `Simulator.routing`; it tells labels of rows: for processes of one machine only."""
    return Message("routing", _facts(state), state.tensors)


def read_routing(message: Message) -> dict[str, Routing]:
    """What `Simulator.routing` found, by client.

    Raises:
        MessageError: if the message is anything else.
    """
    _need(message, "routing")
    found: dict[str, Routing] = message.fact("clients", dict[str, Routing])
    return found


def ask_newcomers(plan: RoundPlan, state: ServerState, rounds: int, rows: int) -> Message:
    """See `Simulator.newcomers`; they are test scores."""
    facts = {**_facts(state), "plan": write(plan), "rounds": rounds, "rows": rows}
    return Message("newcomers", facts, state.tensors)


def ask_finish(state: ServerState) -> Message:
    """Have a site keep its models of the run, which ends with this state."""
    return Message("finish", _facts(state), state.tensors)


def ask_score_all(view: View) -> Message:
    """See `Simulator.score_all`, under the role ""; for one expert without partner."""
    return Message("score_all", {"prior": view.expert.prior}, view.expert.tensors)


def of_answer(answer: Answer) -> Message:
    """A client's update without its private state, and what it cost."""
    update = answer.update
    facts = {
        **{name: write(getattr(update, name)) for name in (*_UPDATE, "score")},
        "costs": write(answer.costs),
    }
    return Message("update", facts, update.tensors)


def read_answer(message: Message) -> Answer:
    """What `of_answer` wrote.

    Raises:
        MessageError: if the message is anything else.
    """
    _need(message, "update")
    known = {name: message.fact(name, kind) for name, kind in _UPDATE.items()}
    update = ClientUpdate(**known, score=message.fact("score", Score), tensors=message.tensors)
    return Answer(update, message.fact("costs", Costs))


def read_scores(message: Message) -> tuple[dict[Split, Scores], Costs]:
    """Scores by split, role and client, and what they cost.

    Raises:
        MessageError: if the message is anything else.
    """
    _need(message, "scores")
    scores = message.fact("scores", dict[Split, dict[str, dict[str, Score]]])
    return scores, message.fact("costs", Costs)


def read_state(message: Message) -> ServerState:
    """The server's state that a message has with it.

    Raises:
        MessageError: if there is none.
    """
    facts = {name: message.fact(name, kind) for name, kind in _STATE.items()}
    return ServerState(**facts, tensors=message.tensors)


def _write_scores(scores: Scores) -> Mapping[str, Mapping[str, object]]:
    """JSON values of scores."""
    return {r: {client: write(s) for client, s in by.items()} for r, by in scores.items()}


def _facts(state: ServerState) -> dict[str, object]:
    return {name: write(getattr(state, name)) for name in _STATE}


def _need(message: Message, kind: str) -> None:
    if message.kind != kind:
        raise MessageError(f"got a message {message.kind!r}; expected {kind!r}")
