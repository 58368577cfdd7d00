"""The simulator's clients on several processes, each with a resident model of its own.

Every client belongs to one worker for the whole run, where its prefix cache stays; workers get
equal numbers of training rows, as far as that goes. A client's update does not depend on where it
is computed and answers are taken in cohort order, so that the result is the same to the byte for
every number of workers, as long as each computes on equally many threads, clients are not stacked,
and the prefix cache has room for everybody (or nobody): a prefix that is kept and one that is
computed again may differ in the last bit.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from fedms.core.algorithm import FederatedAlgorithm, Learner, RoundPlan
from fedms.core.errors import UserError
from fedms.core.rows import ClientData
from fedms.core.tensors import Tensors
from fedms.runtimes import service
from fedms.runtimes.messages import Message, decode, encode
from fedms.runtimes.rounds import Answer
from fedms.runtimes.simulator import Simulator, declare, send
from fedms.runtimes.spread import SpreadClients
from fedms.store.files import UNWRITABLE
from fedms.store.states import ClientStates

Make = Callable[[int], tuple[FederatedAlgorithm, Learner]]
"""Makes a worker's algorithm and learner from its number; must be picklable."""
PROCESSES = multiprocessing.get_context("spawn")
"""A worker begins as a program that imports all anew, whatever the host has done so far."""


class Workers(SpreadClients):
    """Implements `rounds.Clients` as `Simulator` does. A context manager: processes end with it.

    Args:
        make: what every worker calls at its start.
        clients, unseen: as for the simulator; a worker gets only its own.
        states: where private states are kept; each is written by one worker.
        workers: processes, at least 1.
        threads: of torch, in each.
        stack: as for the simulator.

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
        threads: int = 1,
        stack: int = 1,
    ) -> None:
        super().__init__()
        self.declared = declare(clients)
        self._at = share(clients, workers)
        self._parts = [
            (
                make,
                k,
                [c for c in clients if self._at[c.id] == k],
                states,
                tuple(unseen[k::workers]),
                stack,
            )
            for k in range(workers)
        ]
        self._threads = threads
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._lines: list[Connection] = []
        self._inboxes: list[deque[Any]] = [deque() for _ in self._parts]

    def __enter__(self) -> Workers:
        try:
            with _deaf():  # what a worker inherits: Ctrl-C is for the parent, which ends it
                for _ in self._parts:
                    self._launch()
            for worker, parts in enumerate(self._parts):
                self._send(worker, parts)
            for worker in range(len(self._parts)):
                self._receive(worker)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.kill()  # it waits for work, or does what nobody wants any more
            process.join()
        for line in self._lines:
            line.close()

    def _launch(self) -> None:
        mine, theirs = PROCESSES.Pipe()
        process = PROCESSES.Process(target=_serve, args=(theirs, self._threads), daemon=True)
        process.start()
        theirs.close()
        self._processes.append(process)
        self._lines.append(mine)

    def _send(self, worker: int, message: Any) -> None:
        try:
            self._lines[worker].send(message)
        except OSError:
            raise _ended() from None

    def _receive(self, worker: int) -> Any:
        """A worker's next message; those of others are put aside, so that none has to wait."""
        while not self._inboxes[worker]:
            for line in wait(self._lines):
                assert isinstance(line, Connection)
                try:
                    message = line.recv()
                except (EOFError, OSError):
                    raise _ended() from None
                self._inboxes[self._lines.index(line)].append(message)
        message = self._inboxes[worker].popleft()
        if isinstance(message, BaseException):
            raise message
        return message

    def train(self, plan: RoundPlan, tensors: Tensors, cohort: Sequence[str]) -> Iterator[Answer]:
        sent = send(plan, tensors)
        for worker in range(len(self._lines)):
            mine = [client for client in cohort if self._at[client] == worker]
            self._send(worker, encode(service.ask_train(sent, mine)))
        for client in cohort:
            yield service.read_answer(decode(self._receive(self._at[client])))

    def _ask(self, question: Message) -> Iterator[Message]:
        data = encode(question)
        for worker in range(len(self._lines)):
            self._send(worker, data)
        for worker in range(len(self._lines)):
            yield decode(self._receive(worker))


def share(clients: Sequence[ClientData], workers: int) -> dict[str, int]:
    """Which worker each client belongs to: the largest first, to whoever has the fewest rows."""
    load = [0] * workers
    at: dict[str, int] = {}
    for client in sorted(clients, key=lambda c: (-len(c.train), c.id)):
        at[client.id] = load.index(min(load))
        load[at[client.id]] += len(client.train)
    return at


def _ended() -> UserError:
    return UserError(
        "a worker process ended before its work did (its own words, if any, are above), perhaps "
        "for lack of memory; try fewer runtime.workers"
    )


@contextmanager
def on_threads(threads: int | None) -> Iterator[None]:
    """Compute on so many threads here (None: as many as before), and then as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _deaf() -> Iterator[None]:
    """Ctrl-C is ignored, and by processes that start meanwhile for good."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# What follows runs in the workers.


def _serve(line: Connection, threads: int) -> None:
    """Do what the parent asks for; an error is an answer too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        make, worker, *rest, stack = line.recv()
        clients = service.Service(Simulator(*make(worker), *rest, stack=stack))
        line.send("ready")
        while True:
            for answer in clients.answers(decode(line.recv())):
                line.send(encode(answer))
    except EOFError:  # the parent is done
        return
    except Exception as error:
        line.send(error)
        if not (isinstance(error, UserError) or getattr(error, "errno", None) in UNWRITABLE):
            raise  # with where it happened


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
