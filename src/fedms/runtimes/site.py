"""A client where its rows are: what it answers, and what it keeps between questions and restarts.

Whatever carries the messages, the client behind them is a `Simulator`'s: one algorithm, wherever it
runs. Its private state is on its own disk (`ClientStates`), and so is what stands still, which is
sent once: a site that was started anew goes on from there.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Listener
from pathlib import Path

from safetensors import SafetensorError

from fedms.core.algorithm import (
    ClientInfo,
    ClientState,
    FederatedAlgorithm,
    Learner,
    RoundPlan,
    ServerState,
)
from fedms.core.errors import UserError
from fedms.core.rows import ClientData, ClientSizes
from fedms.core.tensors import Tensors, deserialise, pick, serialise
from fedms.core.words import one_line
from fedms.runtimes import service
from fedms.runtimes.messages import Message, MessageError, decode, encode, write
from fedms.runtimes.simulator import Simulator, declare
from fedms.store.files import append_json, safe_name, write_bytes
from fedms.store.states import ClientStates, DamagedError

_LONGEST_RUN = _LONGEST_NAME = 200
_MOST_ROWS = 10**9
FAILED = "failed"
"""Kind of a message that says what went wrong with a question; it may go well another time."""
_ANSWERED = ("hello", "train", "evaluate", "score_all", "finish")
"""Not where its gate sends rows: that tells their labels."""
Keep = Callable[[Path, ServerState, ClientState | None], None]


class Site:
    """One client behind messages.

    Args:
        algorithm, learner: what the client runs.
        data: its rows.
        sizes: of them, as it tells the server.
        terms: what must be the same at the server and at every site, by name.
        folder: where its states and scores are kept, one folder a run.
        keep: writes its models into a folder, of the server's last state and its own.
        every: rounds between the server's checkpoints.
        tell: is told of private states that are damaged, which nobody else learns.
    """

    def __init__(
        self,
        algorithm: FederatedAlgorithm,
        learner: Learner,
        data: ClientData,
        sizes: ClientSizes,
        terms: Mapping[str, str],
        folder: Path,
        keep: Keep = lambda folder, state, own: None,
        *,
        every: int = 1,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._algorithm, self._learner, self._data = algorithm, learner, data
        self._sizes, self._terms, self._folder, self._keep = sizes, terms, folder, keep
        self._every, self._tell = every, tell
        self._run = self._fault = ""

    def answer(self, asked: Message) -> Message:
        """The answer to any question; where there is none, why: `refused` what it does not do, or
        `failed`, which it may do when it is asked again.
        """
        try:
            return self._from_whole_states(asked)
        except (UserError, MessageError) as error:
            return refusal(str(error))
        except Exception as error:  # noqa: BLE001 - a question must not end the site
            if repr(error) != self._fault:  # for who runs it; the server is told no more than what
                traceback.print_exc()
            self._fault = repr(error)
            reason = f"site {self._data.id!r} failed: {type(error).__name__}"
            return Message(FAILED, {"reason": reason})

    def _from_whole_states(self, asked: Message) -> Message:
        """The answer from the newest private state that is whole; damaged ones are put aside."""
        while True:
            try:
                return self._answer(asked)
            except DamagedError as error:
                self._states.put_aside(self._data.id, _round(asked))
                self._tell(f"{error}; going back to an earlier state")

    def _answer(self, asked: Message) -> Message:
        if asked.kind not in _ANSWERED:
            raise MessageError(f"got a message {asked.kind!r}; expected one that a site answers")
        self._open(asked.fact("run", str))
        if asked.kind == "hello":
            return self._hello(asked)
        if asked.kind == "train":
            plan = asked.fact("plan", RoundPlan)
            asked = Message(asked.kind, asked.facts, self._with_constants(plan, asked.tensors))
            if lacking := sorted((plan.broadcast | plan.constant) - asked.tensors.keys()):
                return Message("lacks", {"names": lacking})
        if asked.kind == "finish":
            state = service.read_state(asked)
            own = self._states.load(self._data.id, state.round)
            self._keep(self._here / "adapters", state, own)
            return Message("finished")
        (answer,) = self._service.answers(asked)
        if asked.kind == "evaluate":
            scores = {"round": asked.facts["round"], **answer.facts["scores"]}
            append_json(self._here / "scores.jsonl", scores)
        return answer

    def _hello(self, asked: Message) -> Message:
        """What the client is, if it is of the same federation as the server."""
        theirs = asked.fact("terms", dict[str, str])
        for name, value in self._terms.items():
            if theirs.get(name) != value:
                raise UserError(
                    f"site {self._data.id!r} has {name} {value}, the server {theirs.get(name)}; "
                    "expected the same configuration, classes and foundation model everywhere"
                )
        (info,) = declare([self._data]).values()
        return Message("hello", {"client": write(info), "sizes": write(self._sizes)})

    def _open(self, run: str) -> None:
        """Go on with a run from what is on disk, or with a new one."""
        if run == self._run:
            return
        if not 0 < len(run) <= _LONGEST_RUN:
            raise MessageError(f"got a run of {len(run)} characters; expected 1 to {_LONGEST_RUN}")
        self._here = self._folder / safe_name(run)
        self._here.mkdir(parents=True, exist_ok=True)
        self._states = ClientStates(self._here / "clients", self._every)
        simulator = Simulator(self._algorithm, self._learner, [self._data], self._states)
        self._service = service.Service(simulator)
        self._kept = self._here / "constants.safetensors"
        self._constants = self._read()
        self._run = run

    def _read(self) -> Tensors:
        """What stands still; nothing where there is no whole file."""
        try:
            return deserialise(self._kept.read_bytes())
        except (OSError, ValueError, SafetensorError):
            return {}

    def _with_constants(self, plan: RoundPlan, sent: Tensors) -> Tensors:
        """What was sent, and what was sent once; that is kept from now on."""
        new = pick(sent, plan.constant & sent.keys())
        if new:
            self._constants = {**self._constants, **new}
            write_bytes(self._kept, serialise(self._constants))
        return {**pick(self._constants, plan.constant & self._constants.keys()), **sent}


def _round(asked: Message) -> int:
    """Before which private states are that a question is about."""
    if asked.kind == "train":
        return int(asked.fact("plan", RoundPlan).round)
    return int(asked.fact("round", int))


def refusal(reason: str) -> Message:
    """Why there is no answer."""
    return Message("refused", {"reason": reason})


def read_refusal(message: Message) -> str:
    """The reason, in one line that names no more than it says."""
    return one_line(message.fact("reason", str))[:500]


def read_hello(message: Message) -> tuple[ClientInfo, ClientSizes]:
    """What a site says of itself.

    Raises:
        MessageError: if it is anything else, or cannot be.
    """
    if message.kind != "hello":
        raise MessageError(f"got a message {message.kind!r}; expected 'hello'")
    info, sizes = message.fact("client", ClientInfo), message.fact("sizes", ClientSizes)
    counts = (info.rows - 1, info.validation, sizes.val, sizes.test, sizes.classes - 1)
    limits = [limit for limit in (info.cap, info.rank) if limit is not None]
    if not (
        0 < len(info.id) <= _LONGEST_NAME
        and info.id.isprintable()
        and all(0 <= count < _MOST_ROWS for count in counts)
        and all(0 < limit < _MOST_ROWS for limit in limits)
        and (info.id, info.rows, info.validation) == (sizes.id, sizes.train, sizes.val)
    ):
        raise MessageError(f"got a site that cannot be: {str(info)[:200]}, {sizes}")
    return info, sizes


def ask_hello(run: str, terms: Mapping[str, str]) -> Message:
    """Ask a site what it is."""
    return Message("hello", {"run": run, "terms": dict(terms)})


def of_run(run: str, asked: Message) -> Message:
    """A question about one run."""
    return Message(asked.kind, {**asked.facts, "run": run}, asked.tensors)


@contextmanager
def listening(address: Path) -> Iterator[Listener]:
    """A socket that only its own user can open; it is gone afterwards.

    Raises:
        UserError: if something is in the way, or the path is too long for a socket.
    """
    try:
        address.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if address.parent.stat().st_mode & 0o077:
            raise PermissionError(f"{address.parent} is open to others")
        if address.is_socket():
            address.unlink()  # of a process that was killed
        line = Listener(str(address), family="AF_UNIX")
    except OSError as error:
        raise UserError(
            f"got socket {address}, which cannot be made ({error}); expected a short path in a "
            "folder of one's own; try TMPDIR=/tmp"
        ) from None
    with line:
        address.chmod(0o600)
        yield line


def answer_all(site: Site, line: Listener) -> Iterator[tuple[Message, Message]]:
    """Answer whoever asks, one after the other, for ever; yields questions with their answers."""
    while True:
        asked = said = Message("nothing")
        with suppress(EOFError, OSError), line.accept() as asking:  # or it went away
            data = asking.recv_bytes()
            try:
                asked = decode(data)
            except MessageError as error:
                said = refusal(str(error))
            else:
                said = site.answer(asked)
            asking.send_bytes(encode(said))
        yield asked, said
