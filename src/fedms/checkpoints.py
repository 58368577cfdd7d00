"""From which a run goes on: the server's state after a round, and what is needed beside it.

A checkpoint is written last, when everything else that is of its rounds is on disk: whatever a run
was doing when it ended, it goes on as if it had ended right after its last checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedms.core.algorithm import ServerState
from fedms.core.errors import UserError
from fedms.runtimes.rounds import Held, RoundRecord, read_record
from fedms.store.files import safe_name, write_json
from fedms.store.run_folder import RunFolder
from fedms.store.states import DamagedError


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A run after some rounds.

    Args:
        state: the server's.
        held: what clients have of what stands still.
        records: of all rounds until then.
    """

    state: ServerState
    held: Held
    records: list[RoundRecord]


def write(folder: RunFolder, state: ServerState, held: Held) -> None:
    """Keep a state whose rounds are on disk."""
    alike: dict[frozenset[str], list[str]] = {}
    for client, names in sorted(held.items()):
        alike.setdefault(names, []).append(client)
    beside = [[sorted(names), clients] for names, clients in alike.items()]
    if newest := folder.client_states.newest(state.round):
        write_json(_newest(folder, state.round), newest)
    folder.server_states.save(state, beside)
    kept = {_newest(folder, rounds) for rounds in folder.server_states.rounds()}
    for other in {*_newest(folder, 0).parent.glob("*.json")} - kept:
        other.unlink()


def latest(
    folder: RunFolder, clients: Iterable[str], tell: Callable[[str], None]
) -> Checkpoint | None:
    """The newest that is whole, or None where there is none; later records are taken away.

    Args:
        folder: of the run.
        clients: whose states are in the folder, and have to be there and whole too.
        tell: is told of files that are damaged or lost.

    Raises:
        UserError: if there are checkpoints, and none is whole.
    """
    rounds = folder.server_states.rounds()
    clients = list(clients)
    for number in reversed(rounds):
        try:
            state, beside = folder.server_states.load(number)
            newest = _read_newest(folder, number)
            for client in clients:
                folder.client_states.load(client, number, newest.get(safe_name(client)))
            records = [read_record(line) for line in folder.lines(number)]
        except (DamagedError, KeyError, TypeError) as error:
            tell(f"{error}; going back to an earlier checkpoint")
            continue
        folder.rewind(number)
        return Checkpoint(state, _held(beside), records)
    if rounds:
        raise UserError(f"got {folder.path}, no checkpoint of which is whole; expected one")
    folder.rewind(0)
    return None


def _newest(folder: RunFolder, rounds: int) -> Path:
    """Of which rounds clients' states are that are here, so that one that is lost is missed.

    In a file of its own, for the server's state is the same wherever clients are.
    """
    return folder.path / "checkpoints" / "newest" / f"{rounds:06}.json"


def _read_newest(folder: RunFolder, rounds: int) -> dict[str, int]:
    """Empty where clients have none, and of checkpoints of earlier versions."""
    path = _newest(folder, rounds)
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DamagedError(f"got {path}, which is damaged: {error}") from None


def _held(beside: Any) -> Held:
    return {client: frozenset(names) for names, clients in beside for client in clients}
