"""From which a run goes on: the server's state after a round, and what is needed beside it.

A checkpoint is written last, when everything else that is of its rounds is on disk: whatever a run
was doing when it ended, it goes on as if it had ended right after its last checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fedms.core.algorithm import ServerState
from fedms.core.errors import UserError
from fedms.runtimes.rounds import Held, RoundRecord, read_record
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
    folder.server_states.save(state, beside)


def latest(
    folder: RunFolder, clients: Iterable[str], tell: Callable[[str], None]
) -> Checkpoint | None:
    """The newest that is whole, or None where there is none; later records are taken away.

    Args:
        folder: of the run.
        clients: whose states are in the folder, and have to be whole too.
        tell: is told of files that are damaged.

    Raises:
        UserError: if there are checkpoints, and none is whole.
    """
    rounds = folder.server_states.rounds()
    clients = list(clients)
    for number in reversed(rounds):
        try:
            state, beside = folder.server_states.load(number)
            for client in clients:
                folder.client_states.load(client, number)
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


def _held(beside: Any) -> Held:
    return {client: frozenset(names) for names, clients in beside for client in clients}
