"""The prefix cache: what lies below the lowest active block is computed once per example.

While the adapters below the boundary stand still, the hidden states that enter the boundary block
are constants of the example. They are kept in memory, up to a budget, and a training step costs
the suffix alone. The model's own forward code runs both parts: blocks that are not needed are
passed through, and the boundary block is given the kept states.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedms.core.rows import Index, Rows
from fedms.models.backbone import Backbone
from fedms.models.meter import Meter, shapes

_BATCH = 128


class _Reached(Exception):  # noqa: N818 - it is no error: it ends the prefix
    """The boundary block is about to run."""


class SplitForward:
    """Runs a backbone's blocks below a boundary, or from it on."""

    def __init__(self, backbone: Backbone, root: str) -> None:
        self._backbone = backbone
        blocks = backbone.model.get_submodule(root)
        assert isinstance(blocks, nn.ModuleList)
        self._blocks = blocks
        self.blocks = len(blocks)
        self._wraps: bool | None = None

    def prefix(self, batch: Mapping[str, Tensor], boundary: int) -> Tensor:
        """`(batch, tokens, hidden)` states that enter block `boundary` (1 or more)."""
        states: list[Tensor] = []

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states.append(args[0] if args else kwargs["hidden_states"])
            raise _Reached

        def notice(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._wraps = isinstance(output, tuple)

        handles = [
            self._blocks[boundary].register_forward_pre_hook(stop, with_kwargs=True),
            self._blocks[0].register_forward_hook(notice),
        ]
        try:
            self._backbone.features(batch)
        except _Reached:
            return states[0]
        finally:
            for handle in handles:
                handle.remove()
        raise RuntimeError(f"block {boundary} did not run")

    def suffix(self, batch: Mapping[str, Tensor], states: Tensor, boundary: int) -> Tensor:
        """`(batch, width)` features from kept states."""
        with self._passed_through(boundary, states):
            return self._backbone.features(batch)

    @contextmanager
    def _passed_through(self, boundary: int, states: Tensor) -> Iterator[None]:
        """Blocks below the boundary do nothing; the last of them hands over `states`."""
        result: Any = (states,) if self._wraps else states

        def instead(*args: Any, **kwargs: Any) -> Any:
            return result

        below: list[nn.Module] = list(self._blocks[:boundary])
        for block in below:
            block.forward = instead
        try:
            yield
        finally:
            for block in below:
                del block.forward


@dataclass(frozen=True, eq=False)
class Kept:
    """States of all examples of some rows, at one boundary, under the adapters hashed in `below`.

    `states` is `(rows, tokens, hidden)`, or `(all tokens, hidden)` with `starts` `(rows + 1,)`
    where rows differ in length.
    """

    boundary: int
    below: str
    states: Tensor
    starts: Index | None

    def take(self, index: Index) -> Tensor:
        """`(batch, longest, hidden)` states of some rows; beyond a row's end they are zero."""
        if self.starts is None:
            return self.states[torch.from_numpy(index).to(self.states.device)]
        parts = [self.states[self.starts[i] : self.starts[i + 1]] for i in index]
        return nn.utils.rnn.pad_sequence(parts, batch_first=True)

    @property
    def bytes(self) -> int:
        return self.states.numel() * self.states.element_size()


class PrefixCache:
    """At most one `Kept` for every rows object, within a budget for all.

    A kept prefix is found again only for the same rows and equal adapters below its boundary, so a
    stale one cannot be used. When the budget is spent, what comes later is not kept.

    Args:
        backbone: whose prefix.
        root: module path of its blocks.
        budget: bytes; 0 switches the cache off.
        meter: counts what filling it costs.
    """

    def __init__(self, backbone: Backbone, root: str, budget: int, meter: Meter) -> None:
        self._meter = meter
        self.split = SplitForward(backbone, root)
        self._backbone, self._budget = backbone, budget
        self._kept: weakref.WeakKeyDictionary[Rows, Kept] = weakref.WeakKeyDictionary()
        self._state: tuple[int, int] | None = None
        """Tokens (of rows that have all the same number) and width of a state, once seen."""

    @property
    def bytes(self) -> int:
        """Bytes in use."""
        return sum(kept.bytes for kept in self._kept.values())

    def find(self, rows: Rows, below: Callable[[int], str]) -> Kept | None:
        """What is kept for `rows`, if it fits the adapters whose hash below a boundary is given."""
        kept = self._kept.get(rows)
        return kept if kept and kept.below == below(kept.boundary) else None

    def keep(self, rows: Rows, boundary: int, below: str) -> Kept | None:
        """Compute and keep the prefix of `rows` under the adapters now in the model.

        Returns None, and computes nothing, where there is no prefix or no room.
        """
        if not 0 < boundary < self.split.blocks or not len(rows):
            return None
        old = self._kept.pop(rows, None)
        if old and (old.boundary, old.below) == (boundary, below):
            self._kept[rows] = old
            return old
        lengths = self._backbone.lengths(rows)
        room = self._budget - self.bytes
        kept = self._compute(rows, boundary, below, lengths, room)
        if kept:
            self._kept[rows] = kept
        return kept

    @torch.no_grad()
    def _compute(
        self,
        rows: Rows,
        boundary: int,
        below: str,
        lengths: np.ndarray[Any, Any] | None,
        room: int,
    ) -> Kept | None:
        order = np.arange(len(rows)) if lengths is None else np.argsort(lengths, kind="stable")
        starts = None if lengths is None else np.concatenate([[0], np.cumsum(lengths)])
        states: Tensor | None = None
        if not self._fits(len(rows), starts, room):
            return None
        for at in range(0, len(rows), _BATCH):
            index = order[at : at + _BATCH]
            batch = self._backbone.collate(rows.take(index))
            with self._meter.step(("prefix", boundary, *shapes(batch))):
                part = self.split.prefix(batch, boundary)
            if states is None:
                self._state = (part.shape[1], part.shape[2])
                if not self._fits(len(rows), starts, room):
                    return None
                shape = (len(rows), part.shape[1]) if starts is None else (int(starts[-1]),)
                states = torch.empty(*shape, part.shape[-1], device=part.device)
            if starts is None or lengths is None:
                states[torch.from_numpy(index)] = part.float()
                continue
            for row, i in enumerate(index):
                states[starts[i] : starts[i + 1]] = part[row, : lengths[i]]
        assert states is not None
        return Kept(boundary, below, states, starts)

    def _fits(self, rows: int, starts: Index | None, room: int) -> bool:
        """Whether states of so many rows have room, as far as their size is known by now."""
        if self._state is None:
            return room > 0
        tokens, hidden = self._state
        return 4 * hidden * (rows * tokens if starts is None else int(starts[-1])) <= room
