"""Server and client states on disk: one safetensors file each, facts as JSON in its header."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

from fedms.core.algorithm import ClientState, ServerState
from fedms.core.tensors import serialise
from fedms.store.files import safe_name, write_bytes


def save_state(path: Path, state: ServerState | ClientState) -> None:
    """Write a state atomically; the same state gives the same bytes."""
    names = [f.name for f in dataclasses.fields(state) if f.name != "tensors"]
    facts = {name: getattr(state, name) for name in names}
    metadata = {type(state).__name__: json.dumps(facts, allow_nan=False)}
    write_bytes(path, serialise(state.tensors, metadata))


def load_server_state(path: Path) -> ServerState:
    """Read what `save_state` wrote.

    Raises:
        ValueError: if the file holds no server state.
    """
    tensors, facts = _load(path, "ServerState")
    return ServerState(**{**facts, "queue": tuple(facts["queue"])}, tensors=tensors)


def load_client_state(path: Path) -> ClientState:
    """Read what `save_state` wrote.

    Raises:
        ValueError: if the file holds no client state.
    """
    tensors, facts = _load(path, "ClientState")
    kept = tuple(facts["kept"]) if facts["kept"] is not None else None
    return ClientState(**{**facts, "queue": tuple(facts["queue"]), "kept": kept}, tensors=tensors)


def _load(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        facts = (file.metadata() or {}).get(kind)
        if facts is None:
            raise ValueError(f"got {path}, which holds no {kind}")
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(facts)  # noqa: SIM118


class ClientStates:
    """The private states of all clients in a folder. A client that never trained has none.

    Of every client the newest states are kept, each under the round that it is of. If a round has
    to be done again, because the server or the client ended before both knew that it was done, the
    client goes on from the state before that round.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, client: str, before: int | None = None) -> ClientState | None:
        """The client's newest state, or its newest of rounds before one."""
        rounds = [r for r in self._rounds(client) if before is None or r < before]
        return load_client_state(self._path(client, max(rounds))) if rounds else None

    def save(self, client: str, state: ClientState, round: int) -> None:
        """Keep what `round` left, and the newest before it. States of later rounds are void."""
        save_state(self._path(client, round), state)
        rounds = set(self._rounds(client))
        before = max((r for r in rounds if r < round), default=round)
        for other in rounds - {round, before}:
            self._path(client, other).unlink()

    def _rounds(self, client: str) -> list[int]:
        folder = self._folder / safe_name(client)
        return [int(p.stem) for p in folder.glob("[0-9]*.safetensors")] if folder.is_dir() else []

    def _path(self, client: str, round: int) -> Path:
        return self._folder / safe_name(client) / f"{round:06}.safetensors"
