"""Flower's simulation engine: every client is a virtual node, and Ray's workers answer for them.

For who has a Ray cluster; on one machine the simulator's own workers do the same with less. A
worker makes data and model once, of the configuration, and can answer for any client: private
states are files that all workers see, as the data must be. Ray decides who computes what; a
client's update does not depend on where that is.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ray
from flwr.app import Context, MessageType
from flwr.app import Message as Envelope
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from fedms.core.algorithm import RoundPlan
from fedms.core.errors import UserError
from fedms.core.tensors import Tensors
from fedms.core.words import brief
from fedms.runtimes import service
from fedms.runtimes.flower.nodes import Failure, Nodes, pack, unpack
from fedms.runtimes.flower.quiet import quiet
from fedms.runtimes.messages import Message
from fedms.runtimes.rounds import Answer
from fedms.runtimes.simulator import declare, send
from fedms.runtimes.site import read_refusal, refusal
from fedms.runtimes.spread import SpreadClients
from fedms.runtimes.workers import on_threads
from fedms.store.states import DamagedError

_POLL = 0.02, 0.5
"""Seconds between looks for answers: at first, and at most."""
_START = 300.0
"""Seconds that Ray has to start."""
_OF, _HELLO = "of", "hello"
_LOG = logging.getLogger("flwr")


Make = Callable[[], service.AnyClient]
"""Makes a worker's clients; picklable, hashable, and small, for it goes with every message."""


@dataclass(frozen=True)
class Room:
    """What Ray gives to clients.

    Args:
        workers: on this machine, if no Ray cluster is joined (`RAY_ADDRESS`); as many as there is
            room for otherwise.
        threads: processors of each, of which torch uses all.
        gpus: share of a GPU of each.
    """

    workers: int
    threads: int
    gpus: float = 0.0


class VirtualClients(SpreadClients):
    """Implements `rounds.ScoredClients` as `Simulator` does. A context manager: Ray ends with it.

    Args:
        make: what every worker calls once.
        here: what this process has, which makes the same.
        room: what Ray gives.

    Raises:
        UserError: if Ray does not start, or a client fails.
    """

    def __init__(self, make: Make, here: service.AnyClient, room: Room) -> None:
        super().__init__()
        self.declared = declare(here.clients)
        self._names, self._room = here.names(), room
        self._client = answering(make, room.threads)
        self._nodes: Nodes | None = None
        self._done = threading.Event()
        self._engine = threading.Thread(target=self._simulate, daemon=True)
        self._grids: queue.Queue[Grid] = queue.Queue()
        self._at: dict[str, int] = {}
        self._fault = ""
        self._level = _LOG.level

    def __enter__(self) -> VirtualClients:
        if ray.is_initialized():
            raise UserError(
                "got a process that uses Ray already, which Flower would end; expected one that "
                "does not; to use a cluster, set RAY_ADDRESS"
            )
        self._level = _LOG.level
        _LOG.setLevel(logging.ERROR)
        try:
            with quiet(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
                self._engine.start()
                self._at = self._meet()
                some = self._names[: self._room.workers]
                for _ in self._answers(dict.fromkeys(some, Message(_HELLO))):
                    pass  # Ray is there, and has made what it needs
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._engine.join()
        _LOG.setLevel(self._level)

    def _meet(self) -> dict[str, int]:
        """A node for every client."""
        try:
            grid = self._grids.get(timeout=_START)
        except queue.Empty:
            raise UserError(f"Flower's simulation did not start in {_START:g} s") from None
        self._nodes = Nodes(grid)
        while len(there := sorted(self._nodes.there())) < len(self._names):
            self._check()
            time.sleep(_POLL[0])
        return dict(zip(self._names, there, strict=True))

    def _check(self) -> None:
        """Make sure that the engine runs."""
        if not self._engine.is_alive():
            raise UserError(f"Flower's simulation ended before its work did: {self._fault}")

    def train(self, plan: RoundPlan, tensors: Tensors, cohort: Sequence[str]) -> Iterator[Answer]:
        sent = send(plan, tensors)
        questions = {client: service.ask_train(sent, [client]) for client in cohort}
        for _, said in self._answers(questions):
            yield service.read_answer(said)

    def _ask(self, question: Message) -> Iterator[Message]:
        for _, said in self._answers(dict.fromkeys(self._names, question)):
            yield said

    def _answers(self, questions: Mapping[str, Message]) -> Iterator[tuple[str, Message]]:
        """Of clients, in the order of the questions, as soon as those before have come."""
        assert self._nodes is not None
        asked = {self._at[client]: _of(client, q) for client, q in questions.items()}
        at = {node: client for client, node in self._at.items()}
        sent = self._nodes.push(asked, MessageType.TRAIN)
        open_ = {name: at[node] for name, node in sent.items()}
        come: dict[str, Message] = {}
        pause = _POLL[0]
        for client in questions:
            while client not in come:
                self._check()
                found = self._nodes.pull(open_)
                for name, said in found:
                    who = open_.pop(name)
                    come[who] = _whole(who, said)
                pause = _POLL[0] if found else min(2 * pause, _POLL[1])
                if client not in come:
                    time.sleep(pause)
            yield client, come.pop(client)

    def _simulate(self) -> None:
        """Have the engine run until everything is done; in a thread of its own."""
        server = ServerApp()

        @server.main()
        def _(grid: Grid, context: Context) -> None:
            self._grids.put(grid)
            self._done.wait()

        room = self._room
        resources = {"num_cpus": room.threads, "num_gpus": room.gpus}
        init: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if not os.environ.get("RAY_ADDRESS"):
            init["num_cpus"] = room.workers * room.threads
        config = {"client_resources": resources, "init_args": init}
        try:
            run_simulation(server, self._client, len(self._names), backend_config=config)
        except BaseException as error:  # noqa: BLE001 - told where the clients are asked
            self._fault = brief(error.__cause__ or error)


def _whole(client: str, said: Message | Failure) -> Message:
    if isinstance(said, Failure):
        raise UserError(f"client {client!r} of Flower's simulation {said.reason}")
    if said.kind == "refused":
        raise UserError(read_refusal(said))
    return said


def answering(make: Make, threads: int) -> ClientApp:
    """Flower's app of every virtual node."""
    app = ClientApp()

    @app.train()
    def _(message: Envelope, context: Context) -> Envelope:
        return Envelope(pack(_answer(make, threads, unpack(message.content))), reply_to=message)

    return app


def _answer(make: Make, threads: int, asked: Message) -> Message:
    """What a worker answers; it makes everything when it is asked first."""
    try:
        with on_threads(threads):
            clients = _made(make)
            if asked.kind == _HELLO:
                return Message(_HELLO)
            (answer,) = clients.of(asked.fact(_OF, str)).answers(asked)
    except (UserError, DamagedError) as error:
        return refusal(str(error))
    return answer


@lru_cache(maxsize=1)
def _made(make: Make) -> service.AnyClient:
    return make()


def _of(client: str, asked: Message) -> Message:
    """A question about one client."""
    return Message(asked.kind, {**asked.facts, _OF: client}, asked.tensors)
