"""The server's side: sites over Flower's grid, asked as a `Simulator` is asked for clients."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedms.core.algorithm import ClientInfo, RoundPlan, Score, ServerState, View
from fedms.core.costs import Costs
from fedms.core.routing import Routing
from fedms.core.rows import ClientSizes, Split
from fedms.core.screening import wrong_score
from fedms.core.seeds import derive_seed, draw_cohort
from fedms.core.tensors import Tensors, pick
from fedms.core.words import brief
from fedms.runtimes import service
from fedms.runtimes.flower.meeting import Meeting
from fedms.runtimes.flower.nodes import Failure, check_costs
from fedms.runtimes.messages import Message, MessageError
from fedms.runtimes.rounds import Absent, Answer, Held, Late
from fedms.runtimes.simulator import SCORED, Scores, Sent, send

_ROLES = ("", "global", "local", "personal", "oracle")


Main = Callable[[Grid, Mapping[str, str | int | float | bool]], None]
"""What a server does with a grid and what the run was submitted with."""


def serving(main: Main) -> ServerApp:
    """Flower's app of a server."""
    app = ServerApp()

    @app.main()
    def _(grid: Grid, context: Context) -> None:
        main(grid, context.run_config)

    return app


class Sites:
    """Implements `rounds.Clients` as `Simulator` does, over Flower's grid; a `Meeting` asks them.

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
        self._meeting = Meeting(grid, run, terms, deadline, tell)
        self._spare, self._tell = spare, tell
        self._round = -1
        self.held: Held = self._meeting.held
        self._spent = Costs()

    def meet(self, least: int, patience: float | None = None, names: Collection[str] = ()) -> None:
        """See `Meeting.meet`."""
        self._meeting.meet(least, patience, names)

    @property
    def declared(self) -> Mapping[str, ClientInfo]:
        return {client: met.info for client, met in sorted(self._meeting.met.items())}

    @property
    def sizes(self) -> list[ClientSizes]:
        """Of all sites that were met so far, by their names."""
        return [met.sizes for _, met in sorted(self._meeting.met.items())]

    def train(
        self, plan: RoundPlan, tensors: Tensors, cohort: Sequence[str]
    ) -> Iterator[Answer | Absent | Late]:
        """What every site that is asked answers, in order of names, as soon as it can be told."""
        if plan.round == self._round:  # once more: who is late may be there in a moment
            self._meeting.settle(cohort)
        self._round = plan.round
        waiting = sorted([*cohort, *self._spares(plan, cohort)])  # of those that the round knows of
        self._meeting.greet()
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

        asked = {client: self._part(whole, client) for client in waiting}
        replies = self._meeting.ask(asked, again)
        for client, said in replies:
            arrived[client] = self._answer(whole, client, said)
            answers += isinstance(arrived[client], Answer)
            while waiting and waiting[0] in arrived:
                yield arrived.pop(waiting.pop(0))
            if answers == len(cohort):
                replies.close()
        for client in waiting:
            yield arrived.get(client, Absent(client, "was not waited for: others were earlier"))
        yield from map(Late, self._meeting.late)
        self._meeting.late = []

    def _spares(self, plan: RoundPlan, cohort: Sequence[str]) -> Sequence[str]:
        """Clients beyond the cohort, drawn as it was."""
        rest = sorted(self._meeting.met.keys() - {*cohort})
        count = min(len(rest), math.ceil(self._spare * len(cohort)))
        seed = derive_seed(plan.seed, "spare")
        return draw_cohort(rest, count, seed, plan.trained) if count else ()

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
        self._meeting.settle(self._meeting.met)
        self._meeting.greet()
        everyone, kept = dict.fromkeys(self._meeting.met, service.ask_finish(state)), []
        for client, said in self._meeting.ask(everyone):
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
        self._meeting.settle(self._meeting.met)
        self._meeting.greet()
        found: dict[Split, Scores] = {split: {} for split in SCORED}
        everyone = dict.fromkeys(self._meeting.met, asked)
        for client, said in sorted(self._meeting.ask(everyone), key=lambda p: p[0]):
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
                    if wrong_score(score, getattr(self._meeting.met[client].sizes, split)):
                        odd = f"a {role or 'zero-shot'} score of {brief(score)}"
                        self._tell(f"site {client!r} has {odd}")
                        continue
                    found[split].setdefault(role, {})[client] = score
        return found
