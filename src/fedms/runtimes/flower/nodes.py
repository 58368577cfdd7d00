"""Flower's grid as questions to nodes and their answers, whatever a node sends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import Message as Envelope
from flwr.app import RecordDict
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError

from fedms.core.costs import Costs
from fedms.core.words import brief
from fedms.runtimes import site
from fedms.runtimes.flower.records import RecordError, join, part
from fedms.runtimes.messages import Message, MessageError, of_words, words

_MOST = 10**24
_UNREADABLE = (
    *(DecodeError, ValueError, TypeError, LookupError, AttributeError),
    *(RecursionError, MemoryError),  # over what is nested too deeply, or says that it is huge
)
"""What Flower comes to over objects that are none. An outage of the SuperLink is something else."""


@dataclass(frozen=True)
class Failure:
    """Why there is no answer; `final` where the site itself refused to give one."""

    reason: str
    final: bool = False


@dataclass(frozen=True)
class Node:
    """A node that is there: the name under which its key was let in ("": none), and since when."""

    name: str
    since: str


def pack(message: Message) -> RecordDict:
    """A message as Flower's records."""
    return join(words(message), {n: t.contiguous().numpy() for n, t in message.tensors.items()})


def unpack(content: RecordDict) -> Message:
    """What `pack` made.

    Raises:
        MessageError: if it is anything else.
    """
    try:
        said, arrays = part(content)
    except RecordError as error:
        raise MessageError(str(error)) from None
    return of_words(said, {name: torch.from_numpy(array.copy()) for name, array in arrays.items()})


class Nodes:
    """Those of a grid."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._careful = False

    def there(self) -> dict[int, Node]:
        """Those that are online now."""
        return {int(n.node_id): Node(n.name, n.last_activated_at) for n in self._grid.get_nodes()}

    def push(self, asked: Mapping[int, Message], kind: str) -> dict[str, int]:
        """Send nodes questions; the names under which answers arrive, of those that were sent."""
        contents: dict[int, RecordDict] = {}
        for message in asked.values():  # what all are sent is packed once
            contents.setdefault(id(message), pack(message))
        envelopes = [
            Envelope(contents[id(message)], dst_node_id=node, message_type=kind)
            for node, message in asked.items()
        ]
        names = list(self._grid.push_messages(envelopes)) if envelopes else []
        return {name: node for name, node in zip(names, asked, strict=False) if name}

    def pull(self, names: Iterable[str]) -> list[tuple[str, Message | Failure]]:
        """Answers that have arrived.

        Flower reads all that is there at once, and fails if one cannot be read. What was with it is
        lost then, and from then on each is read by itself.
        """
        wanted, found = list(names), []
        for some in [[name] for name in wanted] if self._careful else [wanted]:
            try:
                for envelope in self._grid.pull_messages(some) if some else ():
                    found.append((str(envelope.metadata.reply_to_message_id), _read(envelope)))
            except _UNREADABLE as error:
                reason = f"sent what cannot be read: {type(error).__name__}"
                if self._careful:
                    found.append((some[0], Failure(reason)))
                self._careful = True
        return found


def check_costs(costs: Costs) -> None:
    """Refuse what would spoil sums, or could not be written down.

    Raises:
        MessageError: if it is that.
    """
    numbers = [costs.flops, costs.peak_activation_bytes, costs.cache_bytes, *costs.seconds.values()]
    numbers.append(costs.peak_device_bytes or 0)
    if not all(0 <= number < _MOST for number in numbers):
        raise MessageError("got costs that are none")


def _read(envelope: Any) -> Message | Failure:
    """What a node replied, or why that is nothing."""
    if envelope.has_error():
        return Failure(f"failed: {brief(envelope.error.reason)}")
    try:
        message = unpack(envelope.content)
        if message.kind == "refused":
            return Failure(site.read_refusal(message), final=True)
        if message.kind == site.FAILED:
            return Failure(site.read_refusal(message))
        return message
    except MessageError as error:
        return Failure(brief(error))
