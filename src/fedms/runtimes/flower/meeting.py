"""Sites that come and go over Flower's grid: who is there, and who still owes an answer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from dataclasses import dataclass

from flwr.app import MessageType
from flwr.serverapp import Grid

from fedms.core.algorithm import ClientInfo
from fedms.core.errors import UserError
from fedms.core.rows import ClientSizes
from fedms.core.words import brief
from fedms.runtimes import site
from fedms.runtimes.flower.nodes import Failure, Node, Nodes
from fedms.runtimes.flower.waiting import Reminder
from fedms.runtimes.messages import Message, MessageError
from fedms.runtimes.rounds import Held

_GIVE_UP = 3
"""Deadlines after which a question keeps nobody from another one."""
_NOTICE = 5.0
"""Seconds between looks, while answers are waited for, whether a node was started anew."""
_POLL = 0.1, 1.0
"""Seconds between looks for replies: at first, and at most."""


@dataclass(frozen=True)
class Met:
    """A site that is of the federation: where it is, and what it said of itself."""

    node: int
    info: ClientInfo
    sizes: ClientSizes


class Meeting:
    """Meets sites, and asks them what `Sites` wants to know.

    Sites may come at any time: one that is met takes part from the next round on, and one that
    comes back, at whatever node, goes on as the client that it was. One that is still at work on
    what it was asked before is not asked again until it has answered, for three deadlines at most
    (it may have crashed, and be back); that answer counts as late.

    Args:
        grid, run, terms, deadline, tell: as for `Sites`.

    Fields:
        met: sites of the federation, by their names.
        held: what they have of what stands still; of one that is met anew, nothing.
        late: who has answered what nobody waited for any more.
    """

    def __init__(
        self,
        grid: Grid,
        run: str,
        terms: Mapping[str, str],
        deadline: float | None,
        tell: Callable[[str], None],
    ) -> None:
        self._nodes, self._run, self._terms = Nodes(grid), run, terms
        self._deadline, self._tell = deadline, tell
        self.met: dict[str, Met] = {}
        self._there: dict[int, Node] = {}
        self._known: set[int] = set()
        self._hellos: dict[str, int] = {}
        self._open: dict[str, tuple[str, float]] = {}
        self.late: list[str] = []
        self._failed: dict[int, Failure] = {}
        self.held: Held = {}

    def meet(self, least: int, patience: float | None = None, names: Collection[str] = ()) -> None:
        """Wait for so many sites of the federation, for so many seconds at most.

        Args:
            least: how many.
            patience: for how long; None: for ever.
            names: of all that may come, for saying who lacks.

        Raises:
            UserError: if they are not there in time, or so many are there that refuse to take part
                that they cannot be.
        """
        began, pause, remind = time.monotonic(), _POLL[0], Reminder(self._tell)
        while True:
            self.greet()
            if len(self.met) >= least:
                return
            lacking = ", ".join(sorted({*names} - self.met.keys()))
            lacking = f" (not there: {lacking})" if lacking else ""
            remind(f"waiting for sites: {len(self.met)} of {least} have come{lacking}")
            refused = [self._failed[n].reason for n in sorted(self._refused())]
            if refused and len(self.met) + len(refused) >= least:
                raise UserError(
                    f"got {len(self.met)} of {least} sites, and {len(refused)} that refused: "
                    f"{refused[0]}"
                )
            if patience is not None and time.monotonic() - began > patience:
                raise UserError(
                    f"got {len(self.met)} of {least} sites after {patience:g} s{lacking}; "
                    "expected all of them; try to start those that lack, or to wait longer"
                )
            time.sleep(pause)
            pause = min(2 * pause, _POLL[1])

    def _refused(self) -> set[int]:
        """Nodes that are there, and refused for good."""
        final = {node for node, failure in self._failed.items() if failure.final}
        return final & self._known & self._there.keys()

    def greet(self) -> None:
        """Ask new nodes what they are, and hear those that answered; waits for nobody."""
        self._notice()
        new = sorted(self._there.keys() - self._known - {*self._hellos.values()})
        hello = site.ask_hello(self._run, self._terms)
        self._hellos |= self._nodes.push(dict.fromkeys(new, hello), MessageType.QUERY)
        self._look({})

    def _notice(self) -> set[int]:
        """See which nodes are there; of those that were started anew nothing is known any more.

        What such a node was asked before may be lost with what it was: nobody waits for it.
        """
        there = self._nodes.there()
        anew = {n for n, node in self._there.items() if n in there and there[n] != node}
        self._there |= there
        self._there = {n: node for n, node in self._there.items() if n in there or n in self._known}
        self._known -= anew
        self._hellos = {name: n for name, n in self._hellos.items() if n not in anew}
        for name, (client, _) in self._open.items():
            if client in self.met and self.met[client].node in anew:
                self._open[name] = client, -math.inf
        return anew

    def _hear(self, node: int, said: Message | Failure) -> None:
        """What a node says when it is asked what it is; it is asked again if it has gone since.

        Whose key a node has that is gone is not known, and so not whether it is who it says.
        """
        if node not in self._there:
            return
        if isinstance(said, Failure):
            if said.final:
                self._known.add(node)
            if said != self._failed.get(node):  # it is asked again, and told of once
                self._tell(f"a site (node {node}) was left out: {said.reason}")
            self._failed[node] = said
            return
        self._known.add(node)
        try:
            info, sizes = site.read_hello(said)
        except MessageError as error:
            self._tell(f"a site (node {node}) was left out: {brief(error)}")
            return
        name = self._there[node].name
        if name and name != info.id:
            self._tell(f"site {name!r} (node {node}) was left out: it says that it is {info.id!r}")
            return
        there = self.met.get(info.id)
        if there is not None and there.node != node and there.node in self._nodes.there():
            self._tell(f"a second site {info.id!r} (node {node}) was left out")
            return
        self.met[info.id] = Met(node, info, sizes)
        self.held.pop(info.id, None)
        self._open = {n: (c, since) for n, (c, since) in self._open.items() if c != info.id}

    def ask(
        self,
        asked: Mapping[str, Message],
        again: Callable[[str, Message], Message | None] = lambda client, said: None,
    ) -> Generator[tuple[str, Message | Failure]]:
        """What sites answer, as it arrives, then why others do not.

        `again` is asked of every answer whether there is another question first. Who has not
        answered when the generator is closed, or at the deadline, is not waited for.
        """
        at = {self.met[client].node: client for client in asked}
        busy = self._busy()
        for client in sorted(busy & asked.keys()):
            yield client, Failure("is still at work on what it was asked before")
        ours: dict[int, Message] = {}  # what all are asked is one message
        for message in asked.values():
            ours.setdefault(id(message), site.of_run(self._run, message))
        questions = {n: ours[id(asked[c])] for n, c in sorted(at.items()) if c not in busy}
        ids = {name: at[n] for name, n in self._nodes.push(questions, MessageType.TRAIN).items()}
        for client in sorted(asked.keys() - busy - {*ids.values()}):
            yield client, Failure("could not be asked: it is gone, or the message too large")
        began = noticed = time.monotonic()
        pause = _POLL[0]
        try:
            while ids:
                if time.monotonic() - noticed > _NOTICE:
                    noticed, anew = time.monotonic(), self._notice()
                    for name in [n for n, c in ids.items() if self.met[c].node in anew]:
                        self._open[name] = ids[name], -math.inf
                        yield ids.pop(name), Failure("was started anew while it was at work")
                late = self._deadline is not None and time.monotonic() - began > self._deadline
                # all of them first: if it is closed at one, the others have answered too
                for client, said in [(ids.pop(name), said) for name, said in self._look(ids)]:
                    pause = _POLL[0]
                    more = again(client, said) if isinstance(said, Message) else None
                    if more is None:
                        yield client, said
                        continue
                    asked_more = {self.met[client].node: site.of_run(self._run, more)}
                    ids |= dict.fromkeys(self._nodes.push(asked_more, MessageType.TRAIN), client)
                if late:
                    break
                time.sleep(pause if ids else 0)
                pause = min(2 * pause, _POLL[1])
            for client in ids.values():
                yield client, Failure(f"gave no answer in {self._deadline:g} s")
        finally:
            self._open |= {name: (client, began) for name, client in ids.items()}

    def _look(self, ids: Mapping[str, str]) -> list[tuple[str, Message | Failure]]:
        """Answers that have arrived to some questions; others are heard, or counted as late."""
        found: list[tuple[str, Message | Failure]] = []
        for name, said in self._nodes.pull([*ids, *self._hellos, *self._open]):
            if name in ids:
                found.append((name, said))
            elif name in self._hellos:
                self._hear(self._hellos.pop(name), said)
            elif name in self._open:
                client, _ = self._open.pop(name)
                self.late += [client] if isinstance(said, Message) else []
        return found

    def _busy(self) -> set[str]:
        """Sites that are still at work on what they were asked before."""
        now, most = time.monotonic(), _GIVE_UP * (self._deadline or math.inf)
        return {client for client, since in self._open.values() if now - since < most}

    def settle(self, clients: Iterable[str]) -> None:
        """Wait until none of these is busy any more, for a deadline at most, if there is one."""
        ends, remind = time.monotonic() + (self._deadline or math.inf), Reminder(self._tell)
        while (busy := self._busy() & {*clients}) and time.monotonic() < ends:
            remind(f"waiting for sites that are still at work: {', '.join(sorted(busy))}")
            self._notice()
            self._look({})
            time.sleep(_POLL[0])
