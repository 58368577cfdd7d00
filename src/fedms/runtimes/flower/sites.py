"""The server's side: sites over Flower's grid, asked as a `Simulator` is asked for clients."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flwr.app import Context, MessageType, RecordDict
from flwr.app import Message as Envelope
from flwr.serverapp import Grid, ServerApp

from fedms.core.algorithm import ClientInfo, RoundPlan, Score, ServerState, View
from fedms.core.costs import Costs
from fedms.core.errors import UserError
from fedms.core.rows import Split
from fedms.core.tensors import Tensors, pick, wire_bytes
from fedms.runtimes import service, site
from fedms.runtimes.flower.records import RecordError, to_bytes, to_records
from fedms.runtimes.messages import Message, MessageError, decode, encode
from fedms.runtimes.rounds import Absent, Answer
from fedms.runtimes.simulator import SCORED, Scores, Sent, send
from fedms.runtimes.site import Sizes

_LONGEST = 300
"""Characters of a reason that comes from elsewhere."""
_MOST = 10**24
_ROLES = ("", "global", "local", "personal", "oracle")
_POLL = 0.1, 1.0
"""Seconds between looks for replies: at first, and at most."""


def pack(message: Message) -> RecordDict:
    """A message as Flower's records."""
    return to_records(encode(message))


def unpack(content: RecordDict) -> Message:
    """What `pack` made.

    Raises:
        MessageError: if it is anything else.
    """
    try:
        return decode(to_bytes(content))
    except RecordError as error:
        raise MessageError(str(error)) from None


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
class Failure:
    """Why there is no answer; `final` where the site itself refused to give one."""

    reason: str
    final: bool = False


@dataclass(frozen=True)
class Met:
    """A site that is of the federation: where it is, and what it said of itself."""

    node: int
    info: ClientInfo
    sizes: Sizes


class Sites:
    """Implements `rounds.Clients` as `Simulator` does, over Flower's grid.

    Args:
        grid: Flower's.
        run: the name under which sites keep what is of this run.
        terms: what must be the same everywhere, by name.
        patience: seconds after which a site that has not answered is left out; None: for ever.
        tell: is told of sites that are refused, and why.
    """

    def __init__(
        self,
        grid: Grid,
        run: str,
        terms: Mapping[str, str],
        *,
        patience: float | None = None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._grid, self._run, self._terms = grid, run, terms
        self._patience, self._tell = patience, tell
        self._met: dict[str, Met] = {}
        self._asked: set[int] = set()
        self._failed: dict[int, Failure] = {}
        self._held: dict[str, frozenset[str]] = {}
        self._spent = Costs()

    def meet(self, least: int) -> Mapping[str, Met]:
        """Wait for so many sites of the federation, and ask new ones what they are.

        Raises:
            UserError: if they are not there in time.
        """
        began, pause = time.monotonic(), _POLL[0]
        while True:
            self._ask_new()
            if len(self._met) >= least:
                return dict(sorted(self._met.items()))
            if self._patience is not None and time.monotonic() - began > self._patience:
                raise UserError(
                    f"got {len(self._met)} of {least} sites after {self._patience:g} s; expected "
                    "all of them; try to start those that lack, or a longer deadline"
                )
            time.sleep(pause)
            pause = min(2 * pause, _POLL[1])

    def _ask_new(self) -> None:
        new = sorted(set(self._grid.get_node_ids()) - self._asked)
        hello = site.ask_hello(self._run, self._terms)
        for node, said in self._exchange(dict.fromkeys(new, hello), MessageType.QUERY):
            if isinstance(said, Failure):
                if said.final:
                    self._asked.add(node)
                if said != self._failed.get(node):  # it is asked again, and told of once
                    self._tell(f"a site (node {node}) was left out: {said.reason}")
                self._failed[node] = said
                continue
            self._asked.add(node)
            try:
                info, sizes = site.read_hello(said)
            except MessageError as error:
                self._tell(f"a site (node {node}) was left out: {str(error)[:_LONGEST]}")
                continue
            there = self._met.get(info.id)
            if there is not None and there.node in set(self._grid.get_node_ids()):
                self._tell(f"a second site {info.id!r} (node {node}) was left out")
                continue
            self._met[info.id] = Met(node, info, sizes)
            self._held.pop(info.id, None)

    @property
    def declared(self) -> Mapping[str, ClientInfo]:
        return {client: met.info for client, met in sorted(self._met.items())}

    def train(
        self, plan: RoundPlan, tensors: Tensors, cohort: Sequence[str]
    ) -> Iterator[Answer | Absent]:
        """What every site of the cohort answers, in cohort order, as soon as it can be told."""
        whole, waiting = send(plan, tensors), list(cohort)
        arrived: dict[str, Answer | Absent] = {}
        asked, lacking = list(cohort), list[str]()
        while asked:
            for client, said in self._ask({client: self._part(whole, client) for client in asked}):
                if isinstance(said, Message) and said.kind == "lacks" and client not in lacking:
                    lacking.append(client)  # its disk is new, or lost
                    self._held.pop(client, None)
                    continue
                arrived[client] = self._answer(whole, client, said)
                while waiting and waiting[0] in arrived:
                    yield arrived.pop(waiting.pop(0))
            asked = [client for client in waiting if client not in arrived]

    def _part(self, whole: Sent, client: str) -> Message:
        """What one site is sent: of what stands still, what it does not have yet."""
        names = whole.plan.broadcast | (whole.plan.constant - self._held.get(client, frozenset()))
        return service.ask_train(replace(whole, tensors=pick(whole.tensors, names)), [client])

    def _answer(self, whole: Sent, client: str, said: Message | Failure) -> Answer | Absent:
        """What a site says, with bytes as they are counted here."""
        if isinstance(said, Failure):
            return Absent(client, said.reason)
        try:
            answer = service.read_answer(said)
            _check_costs(answer.costs)
        except MessageError as error:
            return Absent(client, str(error)[:_LONGEST])
        if answer.update.client != client:
            return Absent(client, f"answers as client {answer.update.client[:100]!r}")
        new = whole.plan.constant - self._held.get(client, frozenset())
        self._held[client] = whole.plan.constant
        down = whole.bytes + wire_bytes(pick(whole.tensors, new))
        return replace(answer, download_bytes=down, upload_bytes=wire_bytes(answer.update.tensors))

    def evaluate(self, state: ServerState) -> dict[Split, Scores]:
        """See `Simulator.evaluate`."""
        return self._scores(service.ask_evaluate(state))

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
        found: dict[Split, Scores] = {split: {} for split in SCORED}
        for client, said in sorted(self._ask(dict.fromkeys(self._met, asked)), key=lambda p: p[0]):
            if isinstance(said, Failure):
                self._tell(f"site {client!r} was not scored: {said.reason}")
                continue
            try:
                scores, costs = service.read_scores(said)
                _check_costs(costs)
            except MessageError as error:
                self._tell(f"site {client!r} was not scored: {str(error)[:_LONGEST]}")
                continue
            self._spent += costs
            for split, by_role in scores.items():
                for role, by_client in by_role.items():
                    score = by_client.get(client)
                    if score is None or split not in found or role not in _ROLES:
                        continue
                    if not _plausible(score, getattr(self._met[client].sizes, split)):
                        self._tell(f"site {client!r} has a {role or 'zero-shot'} score of {score}")
                        continue
                    found[split].setdefault(role, {})[client] = score
        return found

    def _ask(self, asked: Mapping[str, Message]) -> Iterator[tuple[str, Message | Failure]]:
        """What sites answer, or why they do not, as it arrives."""
        at = {self._met[client].node: client for client in asked}
        ours: dict[int, Message] = {}  # what all are asked is one message
        for message in asked.values():
            ours.setdefault(id(message), site.of_run(self._run, message))
        questions = {node: ours[id(asked[client])] for node, client in sorted(at.items())}
        for node, said in self._exchange(questions, MessageType.TRAIN):
            yield at[node], said

    def _exchange(
        self, asked: Mapping[int, Message], kind: str
    ) -> Iterator[tuple[int, Message | Failure]]:
        """Every node's reply, or why there is none: as they arrive, then those that did not."""
        contents: dict[int, RecordDict] = {}
        for message in asked.values():  # what all are sent is packed once
            contents.setdefault(id(message), pack(message))
        envelopes = [
            Envelope(contents[id(message)], dst_node_id=node, message_type=kind)
            for node, message in asked.items()
        ]
        ids: dict[str, int] = {}
        pushed = list(self._grid.push_messages(envelopes)) or [""] * len(asked)
        for name, node in zip(pushed, asked, strict=True):  # nothing: all were too large
            if name:
                ids[name] = node
            else:
                yield node, Failure("could not be asked: it is gone, or the message too large")
        began, pause = time.monotonic(), _POLL[0]
        while ids:
            late = self._patience is not None and time.monotonic() - began > self._patience
            for envelope in self._grid.pull_messages(list(ids)):
                name = str(envelope.metadata.reply_to_message_id)
                if name in ids:
                    yield ids.pop(name), _read(envelope)
                    pause = _POLL[0]
            if late or not ids:
                break
            time.sleep(pause)
            pause = min(2 * pause, _POLL[1])
        for node in ids.values():
            yield node, Failure(f"gave no answer in {self._patience:g} s")


def _plausible(score: Score, rows: int) -> bool:
    """Whether a score can be one of so many rows."""
    return (
        math.isfinite(score.loss)
        and 0 <= score.correct <= score.rows <= rows
        and -1e-3 <= score.gate_weight <= score.rows + 1e-3
    )


def _check_costs(costs: Costs) -> None:
    """Refuse what would spoil sums, or could not be written down."""
    numbers = [costs.flops, costs.peak_activation_bytes, costs.cache_bytes, *costs.seconds.values()]
    if not all(0 <= number < _MOST for number in numbers):
        raise MessageError("got costs that are none")


def _read(envelope: Any) -> Message | Failure:
    """What a node replied, or why that is nothing."""
    if envelope.has_error():
        return Failure(f"failed: {str(envelope.error.reason)[:_LONGEST]}")
    try:
        message = unpack(envelope.content)
        if message.kind == "refused":
            return Failure(site.read_refusal(message), final=True)
        return message
    except MessageError as error:
        return Failure(str(error)[:_LONGEST])
