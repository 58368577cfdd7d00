"""The server's side: sites over Flower's grid, asked as a `Simulator` is asked for clients."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from flwr.app import Context, MessageType
from flwr.serverapp import Grid, ServerApp

from fedms.core.algorithm import ClientInfo, RoundPlan, Score, ServerState, View
from fedms.core.costs import Costs
from fedms.core.errors import UserError
from fedms.core.routing import Routing
from fedms.core.rows import ClientSizes, Split
from fedms.core.screening import wrong_score
from fedms.core.seeds import derive_seed, draw_cohort
from fedms.core.tensors import Tensors, pick
from fedms.core.words import brief
from fedms.runtimes import service, site
from fedms.runtimes.flower.nodes import Failure, Node, Nodes, check_costs
from fedms.runtimes.flower.waiting import Reminder
from fedms.runtimes.messages import Message, MessageError
from fedms.runtimes.rounds import Absent, Answer, Held, Late
from fedms.runtimes.simulator import SCORED, Scores, Sent, send

_ROLES = ("", "global", "local", "personal", "oracle")
_GIVE_UP = 3
"""Deadlines after which a question keeps nobody from another one."""
_NOTICE = 5.0
"""Seconds between looks, while answers are waited for, whether a node was started anew."""
_POLL = 0.1, 1.0
"""Seconds between looks for replies: at first, and at most."""


Main = Callable[[Grid, Mapping[str, str | int | float | bool]], None]
"""What a server does with a grid and what the run was submitted with."""


def serving(main: Main) -> ServerApp:
    """Flower's app of a server."""
    app = ServerApp()

    @app.main()
    def _(grid: Grid, context: Context) -> None:
        main(grid, context.run_config)

    return app


@dataclass(frozen=True)
class Met:
    """A site that is of the federation: where it is, and what it said of itself."""

    node: int
    info: ClientInfo
    sizes: ClientSizes


class Sites:
    """Implements `rounds.Clients` as `Simulator` does, over Flower's grid.

    Sites may come at any time: one that is met takes part from the next round on, and one that
    comes back, at whatever node, goes on as the client that it was. One that is still at work on
    what it was asked before is not asked again until it has answered, for three deadlines at most
    (it may have crashed, and be back); that answer counts as late.

    Args:
        grid: Flower's.
        run: the name under which sites keep what is of this run.
        terms: what must be the same everywhere, by name.
        deadline: seconds after which a site that has not answered is left out; None: for ever.
        spare: clients asked beyond a cohort, as a share of it; as many answers as the cohort has
            clients suffice, the first ones. The others are waited for before sites are scored, and
            when the run ends: for a deadline, or until they answer.
        tell: is told of sites that are refused, and why.
    """

    def __init__(
        self,
        grid: Grid,
        run: str,
        terms: Mapping[str, str],
        *,
        deadline: float | None = None,
        spare: float = 0.0,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._nodes, self._run, self._terms = Nodes(grid), run, terms
        self._deadline, self._spare, self._tell = deadline, spare, tell
        self._met: dict[str, Met] = {}
        self._there: dict[int, Node] = {}
        self._known: set[int] = set()
        self._hellos: dict[str, int] = {}
        self._open: dict[str, tuple[str, float]] = {}
        self._round = -1
        self._late: list[str] = []
        self._failed: dict[int, Failure] = {}
        self.held: Held = {}
        self._spent = Costs()

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
            self._greet()
            if len(self._met) >= least:
                return
            lacking = ", ".join(sorted({*names} - self._met.keys()))
            lacking = f" (not there: {lacking})" if lacking else ""
            remind(f"waiting for sites: {len(self._met)} of {least} have come{lacking}")
            refused = [self._failed[n].reason for n in sorted(self._refused())]
            if refused and len(self._met) + len(refused) >= least:
                raise UserError(
                    f"got {len(self._met)} of {least} sites, and {len(refused)} that refused: "
                    f"{refused[0]}"
                )
            if patience is not None and time.monotonic() - began > patience:
                raise UserError(
                    f"got {len(self._met)} of {least} sites after {patience:g} s{lacking}; "
                    "expected all of them; try to start those that lack, or to wait longer"
                )
            time.sleep(pause)
            pause = min(2 * pause, _POLL[1])

    def _refused(self) -> set[int]:
        """Nodes that are there, and refused for good."""
        final = {node for node, failure in self._failed.items() if failure.final}
        return final & self._known & self._there.keys()

    @property
    def declared(self) -> Mapping[str, ClientInfo]:
        return {client: met.info for client, met in sorted(self._met.items())}

    @property
    def sizes(self) -> list[ClientSizes]:
        """Of all sites that were met so far, by their names."""
        return [met.sizes for _, met in sorted(self._met.items())]

    def _greet(self) -> None:
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
            if client in self._met and self._met[client].node in anew:
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
        there = self._met.get(info.id)
        if there is not None and there.node != node and there.node in self._nodes.there():
            self._tell(f"a second site {info.id!r} (node {node}) was left out")
            return
        self._met[info.id] = Met(node, info, sizes)
        self.held.pop(info.id, None)
        self._open = {n: (c, since) for n, (c, since) in self._open.items() if c != info.id}

    def train(
        self, plan: RoundPlan, tensors: Tensors, cohort: Sequence[str]
    ) -> Iterator[Answer | Absent | Late]:
        """What every site that is asked answers, in order of names, as soon as it can be told."""
        if plan.round == self._round:  # once more: who is late may be there in a moment
            self._settle(cohort)
        self._round = plan.round
        waiting = sorted([*cohort, *self._spares(plan, cohort)])  # of those that the round knows of
        self._greet()
        whole = send(plan, tensors)
        arrived: dict[str, Answer | Absent] = {}
        lacking: set[str] = set()
        answers = 0

        def again(client: str, said: Message) -> Message | None:
            if said.kind != "lacks" or client in lacking:
                return None
            lacking.add(client)  # its disk is new, or lost
            self.held.pop(client, None)
            return self._part(whole, client)

        replies = self._ask({client: self._part(whole, client) for client in waiting}, again)
        for client, said in replies:
            arrived[client] = self._answer(whole, client, said)
            answers += isinstance(arrived[client], Answer)
            while waiting and waiting[0] in arrived:
                yield arrived.pop(waiting.pop(0))
            if answers == len(cohort):
                replies.close()
        for client in waiting:
            yield arrived.get(client, Absent(client, "was not waited for: others were earlier"))
        yield from map(Late, self._late)
        self._late = []

    def _spares(self, plan: RoundPlan, cohort: Sequence[str]) -> Sequence[str]:
        """Clients beyond the cohort, drawn as it was."""
        rest = sorted(self._met.keys() - {*cohort})
        count = min(len(rest), math.ceil(self._spare * len(cohort)))
        seed = derive_seed(plan.seed, "spare")
        return draw_cohort(rest, count, seed, plan.round) if count else ()

    def _part(self, whole: Sent, client: str) -> Message:
        """What one site is sent: of what stands still, what it does not have yet."""
        names = whole.plan.broadcast | (whole.plan.constant - self.held.get(client, frozenset()))
        return service.ask_train(replace(whole, tensors=pick(whole.tensors, names)), [client])

    def _answer(self, whole: Sent, client: str, said: Message | Failure) -> Answer | Absent:
        """What a site says, or why that is nothing."""
        if isinstance(said, Failure):
            return Absent(client, said.reason)
        try:
            answer = service.read_answer(said)
            check_costs(answer.costs)
        except MessageError as error:
            return Absent(client, brief(error))
        if answer.update.client != client:
            return Absent(client, f"answers as client {brief(answer.update.client)!r}")
        return answer

    def evaluate(self, state: ServerState) -> dict[Split, Scores]:
        """See `Simulator.evaluate`."""
        return self._scores(service.ask_evaluate(state))

    def finish(self, state: ServerState) -> list[str]:
        """Have every site keep its models; the names of those that did."""
        self._settle(self._met)
        self._greet()
        kept = []
        for client, said in self._ask(dict.fromkeys(self._met, service.ask_finish(state))):
            if isinstance(said, Message) and said.kind == "finished":
                kept.append(client)
                continue
            reason = said.reason if isinstance(said, Failure) else f"it answered {said.kind[:99]!r}"
            self._tell(f"site {client!r} did not keep its models: {reason}")
        return sorted(kept)

    def routing(self, state: ServerState) -> dict[str, Routing]:
        """None: it would tell labels of rows, which stay where they are."""
        return {}

    def newcomers(self, plan: RoundPlan, state: ServerState, rounds: int, rows: int) -> Scores:
        """None: every site that is there trains."""
        return {}

    def score_all(self, view: View) -> dict[Split, dict[str, Score]]:
        """See `Simulator.score_all`; for one expert without partner."""
        found = self._scores(service.ask_score_all(view))
        return {split: by_role.get("", {}) for split, by_role in found.items()}

    def spent(self) -> Costs:
        """See `Simulator.spent`."""
        spent, self._spent = self._spent, Costs()
        return spent

    def _scores(self, asked: Message) -> dict[Split, Scores]:
        """Scores of all sites that answer, each of itself alone."""
        self._settle(self._met)
        self._greet()
        found: dict[Split, Scores] = {split: {} for split in SCORED}
        for client, said in sorted(self._ask(dict.fromkeys(self._met, asked)), key=lambda p: p[0]):
            if isinstance(said, Failure):
                self._tell(f"site {client!r} was not scored: {said.reason}")
                continue
            try:
                scores, costs = service.read_scores(said)
                check_costs(costs)
            except MessageError as error:
                self._tell(f"site {client!r} was not scored: {brief(error)}")
                continue
            self._spent += costs
            for split, by_role in scores.items():
                for role, by_client in by_role.items():
                    score = by_client.get(client)
                    if score is None or split not in found or role not in _ROLES:
                        continue
                    if wrong_score(score, getattr(self._met[client].sizes, split)):
                        odd = f"a {role or 'zero-shot'} score of {brief(score)}"
                        self._tell(f"site {client!r} has {odd}")
                        continue
                    found[split].setdefault(role, {})[client] = score
        return found

    def _ask(
        self,
        asked: Mapping[str, Message],
        again: Callable[[str, Message], Message | None] = lambda client, said: None,
    ) -> Generator[tuple[str, Message | Failure]]:
        """What sites answer, as it arrives, then why others do not.

        `again` is asked of every answer whether there is another question first. Who has not
        answered when the generator is closed, or at the deadline, is not waited for.
        """
        at = {self._met[client].node: client for client in asked}
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
                    for name in [n for n, c in ids.items() if self._met[c].node in anew]:
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
                    asked_more = {self._met[client].node: site.of_run(self._run, more)}
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
                self._late += [client] if isinstance(said, Message) else []
        return found

    def _busy(self) -> set[str]:
        """Sites that are still at work on what they were asked before."""
        now, most = time.monotonic(), _GIVE_UP * (self._deadline or math.inf)
        return {client for client, since in self._open.values() if now - since < most}

    def _settle(self, clients: Iterable[str]) -> None:
        """Wait until none of these is busy any more, for a deadline at most, if there is one."""
        ends, remind = time.monotonic() + (self._deadline or math.inf), Reminder(self._tell)
        while (busy := self._busy() & {*clients}) and time.monotonic() < ends:
            remind(f"waiting for sites that are still at work: {', '.join(sorted(busy))}")
            self._notice()
            self._look({})
            time.sleep(_POLL[0])
