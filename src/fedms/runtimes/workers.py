"""The simulator's clients on several processes, each with a resident model of its own.

Every client belongs to one worker for the whole run, where its prefix cache stays; workers get
equal numbers of training rows, as far as that goes. A client's update does not depend on where it
is computed and answers are taken in cohort order, so that the result is the same for every number
of workers, as long as each computes on equally many threads.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

import torch

from fedms.core.algorithm import (
    Expert,
    FederatedAlgorithm,
    Learner,
    RoundPlan,
    Score,
    ServerState,
    View,
)
from fedms.core.costs import Costs
from fedms.core.errors import UserError
from fedms.core.rows import ClientData, Split
from fedms.core.tensors import Tensors, deserialise, serialise
from fedms.runtimes.rounds import Answer
from fedms.runtimes.simulator import Scores, Sent, Simulator, declare, send
from fedms.store.states import ClientStates

Make = Callable[[int], tuple[FederatedAlgorithm, Learner]]
"""Makes a worker's algorithm and learner from its number; must be picklable."""
T = TypeVar("T")


class Workers:
    """Implements `rounds.Clients` as `Simulator` does. A context manager: processes end with it.

    Args:
        make: what every worker calls at its start.
        clients, unseen: as for the simulator; a worker gets only its own.
        states: where private states are kept; each is written by one worker.
        workers: processes, at least 1.
        threads: of each, for torch; None for an equal share of what this process would use.

    Raises:
        UserError: if a worker cannot start, or ends before its work does.
    """

    def __init__(
        self,
        make: Make,
        clients: Sequence[ClientData],
        states: ClientStates,
        unseen: Sequence[ClientData] = (),
        *,
        workers: int,
        threads: int | None = None,
    ) -> None:
        self.declared = declare(clients)
        self._at = share(clients, workers)
        here = [[c for c in clients if self._at[c.id] == k] for k in range(workers)]
        threads = threads or max(1, torch.get_num_threads() // workers)
        self._spent = Costs()
        self._pools = [
            ProcessPoolExecutor(1, get_context("spawn"), _start, (threads,)) for _ in range(workers)
        ]
        self._ids = [pool.submit(os.getpid) for pool in self._pools]
        self._built = [
            pool.submit(_build, make, k, own, states, tuple(unseen[k::workers]))
            for k, (pool, own) in enumerate(zip(self._pools, here, strict=True))
        ]

    def __enter__(self) -> Workers:
        try:
            for future in self._built:
                _result(future)
        except BaseException as error:
            self.__exit__(type(error))
            raise
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is not None:  # do not wait for work that nobody wants any more
            self._end()
        for pool in self._pools:
            pool.shutdown(wait=True, cancel_futures=True)

    def _end(self) -> None:
        for future in self._ids:
            if future.done() and not future.cancelled() and not future.exception():
                with suppress(ProcessLookupError):
                    os.kill(future.result(), signal.SIGTERM)

    def train(self, plan: RoundPlan, tensors: Tensors, cohort: Sequence[str]) -> Iterator[Answer]:
        sent = send(plan, tensors)
        packed = replace(sent, tensors={}), serialise(sent.tensors)
        begun = [self._pools[k].submit(_begin, *packed) for k in {self._at[c] for c in cohort}]
        answers = [self._pools[self._at[client]].submit(_train, client) for client in cohort]
        try:
            for future in begun:
                _result(future)
            for answer in answers:
                bare, data = _result(answer)
                yield replace(bare, update=replace(bare.update, tensors=deserialise(data)))
        finally:
            for answer in answers:
                answer.cancel()

    def evaluate(self, state: ServerState, split: Split, *, unseen: bool = False) -> Scores:
        """See `Simulator.evaluate`."""
        packed = replace(state, tensors={}), serialise(state.tensors)
        found: Scores = {}
        for scores in self._everywhere(_evaluate, *packed, split, unseen):
            for role, by_client in scores.items():
                found.setdefault(role, {}).update(by_client)
        return {role: self._sorted(by_client) for role, by_client in found.items()}

    def score_all(self, view: View, split: Split) -> dict[str, Score]:
        """See `Simulator.score_all`; for one expert without partner."""
        data = serialise(view.expert.tensors)
        parts = self._everywhere(_score_all, data, view.expert.prior, split)
        return self._sorted({client: score for part in parts for client, score in part.items()})

    def spent(self) -> Costs:
        """See `Simulator.spent`; seconds are those of all workers together."""
        spent, self._spent = self._spent, Costs()
        return spent

    def _everywhere(self, work: Callable[..., tuple[T, Costs]], *words: Any) -> list[T]:
        """What every worker answers, in the order of workers."""
        done = [_result(f) for f in [pool.submit(work, *words) for pool in self._pools]]
        self._spent = sum((costs for _, costs in done), self._spent)
        return [answer for answer, _ in done]

    def _sorted(self, scores: dict[str, Score]) -> dict[str, Score]:
        """In the order in which clients were given."""
        known = [client for client in self.declared if client in scores]
        return {client: scores[client] for client in (*known, *sorted(scores.keys() - {*known}))}


@contextmanager
def on_threads(threads: int | None) -> Iterator[None]:
    """Compute on so many threads here (None: as many as before), and then as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def share(clients: Sequence[ClientData], workers: int) -> dict[str, int]:
    """Which worker each client belongs to: the largest first, to whoever has the fewest rows."""
    load = [0] * workers
    at: dict[str, int] = {}
    for client in sorted(clients, key=lambda c: (-len(c.train), c.id)):
        at[client.id] = load.index(min(load))
        load[at[client.id]] += len(client.train)
    return at


def _result(future: Future[T]) -> T:
    try:
        return future.result()
    except BrokenExecutor as error:
        raise UserError(
            "a worker process ended before its work did, perhaps for lack of memory; "
            "try fewer runtime.workers"
        ) from error


# What follows runs in the workers.


@dataclass
class _Here:
    """The clients of a worker, and what was sent to them in the current round."""

    simulator: Simulator
    sent: Sent | None = None


_here: _Here


def _start(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _build(
    make: Make,
    worker: int,
    clients: Sequence[ClientData],
    states: ClientStates,
    unseen: Sequence[ClientData],
) -> None:
    global _here  # noqa: PLW0603 - a worker is a process, and this its only state
    _here = _Here(Simulator(*make(worker), clients, states, unseen))


def _begin(sent: Sent, data: bytes) -> None:
    _here.sent = replace(sent, tensors=deserialise(data))


def _train(client: str) -> tuple[Answer, bytes]:
    assert _here.sent is not None
    answer = _here.simulator.answer(_here.sent, client)
    bare = replace(answer, update=replace(answer.update, tensors={}, state=None))
    return bare, serialise(answer.update.tensors)


def _evaluate(state: ServerState, data: bytes, split: Split, unseen: bool) -> tuple[Scores, Costs]:
    state = replace(state, tensors=deserialise(data))
    scores = _here.simulator.evaluate(state, split, unseen=unseen)
    return scores, _here.simulator.spent()


def _score_all(data: bytes, prior: bool, split: Split) -> tuple[dict[str, Score], Costs]:
    scores = _here.simulator.score_all(View(Expert(deserialise(data), prior)), split)
    return scores, _here.simulator.spent()
