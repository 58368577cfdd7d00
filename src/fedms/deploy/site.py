"""`fedms site`: a client where its rows are, and Flower's SuperNode that asks it.

The process that has rows and foundation model stays; the SuperNode starts a small one for every
message, which finds it by a socket (`runtimes/flower/relay.py`).
"""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Listener
from pathlib import Path

from fedms.config import Config
from fedms.core.errors import UserError
from fedms.deploy import engine
from fedms.deploy.folders import SiteFolder
from fedms.deploy.parts import build_site
from fedms.deploy.terms import terms
from fedms.runtimes.flower.relay import SOCKET
from fedms.runtimes.messages import Message
from fedms.runtimes.site import FAILED, Site, answer_all, listening, read_refusal
from fedms.runtimes.workers import on_threads
from fedms.store.files import locked


def attend(
    folder: SiteFolder, config: Config, say: Callable[[str], None], state: Path | None = None
) -> None:
    """Answer the server until interrupted.

    Args:
        folder: of the site.
        config: with the site's own data.
        say: is told what happens.
        state: where the client's private states are kept; None for `state` in the folder.

    Raises:
        UserError: if data and configuration do not fit, or the SuperNode ends.
    """
    state = (state or folder.path / "state").resolve()
    with _alone(state), on_threads(config.runtime.threads):
        parts = build_site(config, folder.client, state / "scratch")
        sizes = parts.sizes
        say(
            f"site {folder.client}: {sizes.train:,} train, {sizes.val:,} val, {sizes.test:,} test "
            f"rows of {sizes.classes} of {len(config.data.classes)} classes"
        )
        what = (parts.algorithm, parts.learner, parts.client, sizes)
        every = config.checkpoint_every
        site = Site(*what, terms(config), state, parts.keep, every=every, tell=say)
        with (
            tempfile.TemporaryDirectory(prefix="fedms-") as place,
            listening(Path(place) / "socket") as line,
            engine.Processes(state / "flower", state / "logs") as processes,
        ):
            if not folder.secure:
                say(f"INSECURE: without TLS and keys; what is sent to {folder.server} can be read")
            say(f"waiting for {folder.server}; logs are in {state / 'logs'}")
            answering = threading.Thread(target=_answer, args=(site, line, say), daemon=True)
            answering.start()
            _connect(folder, Path(place) / "socket", processes, answering, say)


def _connect(
    folder: SiteFolder,
    place: Path,
    processes: engine.Processes,
    answering: threading.Thread,
    say: Callable[[str], None],
) -> None:
    """Have a SuperNode run, and another one when it ends.

    A server that has not noticed yet that an earlier one is gone lets no other in with its key: for
    a minute, after a crash.

    Raises:
        UserError: if none comes to run for a minute in many tries, or nobody is left to answer.
    """
    tries = 0
    while True:
        began = time.monotonic()
        processes.start("supernode", _supernode(folder, place))
        try:
            processes.wait(answering.is_alive)
            raise SystemExit("fedms: nobody answers any more; what ended that is above")
        except UserError as error:
            tries = 0 if time.monotonic() - began > _LIVED else tries + 1
            if tries == _TRIES:
                raise
            if tries <= 1:
                say(f"{error}; trying again until the server lets it in")
        processes.end("supernode")
        time.sleep(_PAUSE)


def _answer(site: Site, line: Listener, say: Callable[[str], None]) -> None:
    for asked, said in answer_all(site, line):
        if text := tell(asked, said):
            say(text)


def tell(asked: Message, said: Message) -> str | None:
    """A line about a question and its answer; None for what is of no interest."""
    if said.kind in ("refused", FAILED):
        return f"{said.kind}: {read_refusal(said)}"
    if said.kind == "hello":
        return f"run {asked.facts['run']}: taking part"
    if said.kind == "finished":
        return f"run {asked.facts['run']}: complete, its models are kept"
    if said.kind == "update":
        plan, rows = asked.facts["plan"], said.facts["rows"]
        stage = f"stage {plan['stage']}" if plan["stage"] else "class statistics"
        return f"round {plan['round'] + 1}: {stage}, {rows:,} rows, depth {said.facts['depth']}"
    if asked.kind == "evaluate":
        return f"scored after round {asked.facts['round']}"
    return None


def _supernode(folder: SiteFolder, socket_path: Path) -> list[str]:
    if folder.secure:
        safety = [
            *("--root-certificates", str(folder.path / "ca.crt")),
            *("--auth-supernode-private-key", str(folder.path / "node.key")),
        ]
    else:
        safety = ["--insecure"]
    return [
        engine.program("flower-supernode"),
        *("--superlink", folder.server, "--host", "127.0.0.1", "--port", str(_free_port())),
        *("--node-config", engine.quoted({SOCKET: str(socket_path)})),
        *safety,
    ]


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


_TRIES, _PAUSE, _LIVED = 20, 10.0, 60.0
"""Of a SuperNode: starts in a row, seconds between them, and after which one has started well."""


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Keep others from the same states: two would write over each other's."""
    try:
        state.mkdir(parents=True, exist_ok=True)
        state.chmod(0o700)  # private states are in it
        (state / "lock").touch(mode=0o600)
    except OSError as error:
        raise UserError(f"got state folder {state}, which cannot be used: {error}") from error
    try:
        with locked(state / "lock"):
            yield
    except BlockingIOError:
        raise UserError(
            f"got state folder {state}, which another process uses; try --state OTHER, or to end "
            "that one"
        ) from None
