"""Server and client states on disk: one safetensors file each, facts as JSON in its header."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fedms.core.algorithm import ClientState, ServerState
from fedms.core.tensors import Tensors, fingerprint, serialise
from fedms.store.files import safe_name, write_bytes

_STATE, _HASH, _SAID, _BESIDE = "fedms", "hash", "said", "beside"
_END = ".safetensors"


class DamagedError(ValueError):
    """A file that holds no state, or not the one that was written."""


def save_state(path: Path, state: ServerState | ClientState, beside: Any = None) -> None:
    """Write a state atomically, with its hash; the same state gives the same bytes.

    Args:
        path: where.
        state: what.
        beside: more, as JSON values.
    """
    names = [f.name for f in dataclasses.fields(state) if f.name != "tensors"]
    facts = {type(state).__name__: {name: getattr(state, name) for name in names}}
    said = json.dumps({**facts, _BESIDE: beside}, allow_nan=False)
    # in one text, for safetensors writes several in any order
    whole = json.dumps({_HASH: _hash(said, state.tensors), _SAID: said})
    write_bytes(path, serialise(state.tensors, {_STATE: whole}))


def load_server_state(path: Path) -> tuple[ServerState, Any]:
    """Read what `save_state` wrote: a state, and what is beside it.

    Raises:
        DamagedError: if the file holds no server state, or not what was written.
    """
    tensors, said = _load(path, "ServerState")
    facts = said["ServerState"]
    state = ServerState(**{**facts, "queue": tuple(facts["queue"])}, tensors=tensors)
    return state, said[_BESIDE]


def load_client_state(path: Path) -> ClientState:
    """Read what `save_state` wrote.

    Raises:
        DamagedError: if the file holds no client state, or not what was written.
    """
    tensors, said = _load(path, "ClientState")
    facts = said["ClientState"]
    kept = tuple(facts["kept"]) if facts["kept"] is not None else None
    return ClientState(**{**facts, "queue": tuple(facts["queue"]), "kept": kept}, tensors=tensors)


def _load(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            whole = json.loads((file.metadata() or {}).get(_STATE, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise DamagedError(f"got {path}, which is damaged: {error}") from None
    said = whole.get(_SAID, "{}")
    if whole and whole.get(_HASH) != _hash(said, tensors):
        raise DamagedError(f"got {path}, which is damaged: its hash is another")
    facts: dict[str, Any] = json.loads(said)
    if kind not in facts:
        raise DamagedError(f"got {path}, which holds no {kind}")
    return tensors, facts


def _hash(said: str, tensors: Tensors) -> str:
    return hashlib.blake2b((said + fingerprint(tensors)).encode(), digest_size=16).hexdigest()


class ServerStates:
    """The server's states in a folder: the newest two, each under the rounds that led to it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, state: ServerState, beside: Any = None) -> None:
        """Keep a state, more JSON values beside it, and the newest state before it.

        Those of later rounds are void.
        """
        save_state(self.path(state.round), state, beside)
        rounds = set(self.rounds())
        before = max((r for r in rounds if r < state.round), default=state.round)
        for other in rounds - {state.round, before}:
            self.path(other).unlink()

    def load(self, rounds: int | None = None) -> tuple[ServerState, Any]:
        """The state after so many rounds (None: the newest), and what was kept beside it.

        Raises:
            DamagedError: if it is not as it was written.
        """
        return load_server_state(self.path(max(self.rounds()) if rounds is None else rounds))

    def rounds(self) -> list[int]:
        """Of states that are there, in order."""
        return _rounds(self._folder)

    def path(self, rounds: int) -> Path:
        return self._folder / f"{rounds:06}{_END}"


def _rounds(folder: Path) -> list[int]:
    try:
        names = os.listdir(folder)  # not pathlib: there may be thousands of folders
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(n.removesuffix(_END)) for n in names if n.endswith(_END) and n[0].isdigit())


class ClientStates:
    """The private states of all clients in a folder. A client that never trained has none.

    Of every client the newest states are kept, each under the round that it is of. If a round has
    to be done again, because the server or the client ended before both knew that it was done, the
    client goes on from the state before that round; so too if the server goes back to either of
    its checkpoints.

    Args:
        folder: where.
        every: rounds between the server's checkpoints, at least 1.
    """

    def __init__(self, folder: Path, every: int = 1) -> None:
        self._folder, self._every = folder, every

    def load(
        self, client: str, before: int | None = None, newest: int | None = None
    ) -> ClientState | None:
        """The client's newest state, or its newest of rounds before one.

        Args:
            client: whose.
            before: that round.
            newest: of which round it is (`newest`), where that is known.

        Raises:
            DamagedError: if it is not as it was written, or is lost.
        """
        if newest is not None and not self._path(client, newest).exists():
            raise DamagedError(f"got no {self._path(client, newest)}, which was there")
        rounds = [r for r in self._rounds(client) if before is None or r < before]
        return load_client_state(self._path(client, max(rounds))) if rounds else None

    def save(self, client: str, state: ClientState, round: int) -> None:
        """Keep what `round` left, and what may be gone on from. States of later rounds are void."""
        save_state(self._path(client, round), state)
        rounds = self._rounds(client)
        back = (round // self._every - 1) * self._every  # the server's last checkpoint but one
        before = max((r for r in rounds if r < back), default=back)
        for other in rounds:
            if other < before or other > round:
                self._path(client, other).unlink()

    def put_aside(self, client: str, before: int) -> None:
        """Go back to the state before the newest of rounds before one, whose file is kept aside."""
        path = self._path(client, max(r for r in self._rounds(client) if r < before))
        path.replace(path.with_name(f"{path.name}.damaged"))

    def newest(self, before: int) -> dict[str, int]:
        """Rounds before one that clients' newest states are of, by `safe_name` of the client."""
        names = sorted(os.listdir(self._folder)) if self._folder.is_dir() else []
        rounds = {n: [r for r in _rounds(self._folder / n) if r < before] for n in names}
        return {name: max(found) for name, found in rounds.items() if found}

    def _rounds(self, client: str) -> list[int]:
        return _rounds(self._folder / safe_name(client))

    def _path(self, client: str, round: int) -> Path:
        return self._folder / safe_name(client) / f"{round:06}{_END}"
