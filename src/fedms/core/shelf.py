"""What was loaded lately, kept up to a number of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Shelf(Generic[K, V]):
    """Loads what is asked for; what was asked for longest ago goes when there is no more room.

    One thing alone may be larger than the room: it is kept until another is asked for.

    Args:
        load: what to make of a key; what it raises is raised, and nothing is kept.
        size: bytes of what was made.
        room: bytes of all that is kept.
    """

    def __init__(self, load: Callable[[K], V], size: Callable[[V], int], room: int) -> None:
        self._load, self._size, self._room = load, size, room
        self._kept: OrderedDict[K, V] = OrderedDict()
        self.bytes = 0
        """Of what is kept now."""

    def __len__(self) -> int:
        return len(self._kept)

    def __call__(self, key: K) -> V:
        """What belongs to a key, from here or loaded now."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        found = self._kept[key] = self._load(key)
        self.bytes += self._size(found)
        while self.bytes > self._room and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self.bytes -= self._size(oldest)
        return found
