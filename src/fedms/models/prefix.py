"""The prefix cache: what lies below the lowest active block is computed once per example.

While the adapters below the boundary stand still, the hidden states that enter the boundary block
are constants of the example. They are kept, in memory up to a budget and then in memory-mapped
files, and a training step costs the suffix alone. The model's own forward code runs both parts:
blocks that are not needed are passed through, and the boundary block is given the kept states.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedms.core.rows import Index, Rows
from fedms.models.adapters import AdapterSlots
from fedms.models.backbone import Backbone
from fedms.models.mapped import mapped
from fedms.models.meter import Meter, sizes

_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_log = logging.getLogger(__name__)


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
        self._embeddings = _embeddings(backbone)
        self._embeds_alike = False

    def prefix(self, batch: Mapping[str, Tensor], boundary: int) -> Tensor:
        """`(batch, tokens, hidden)` states that enter block `boundary` (1 or more)."""
        states: list[Tensor] = []

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states.append(args[0] if args else kwargs["hidden_states"])
            raise _Reached

        def notice(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._wraps = isinstance(output, tuple)

        def see(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            shapes.append(output.shape if isinstance(output, Tensor) else None)

        shapes: list[Any] = []
        handles = [
            *(module.register_forward_hook(see) for module in self._embeddings),
            self._blocks[boundary].register_forward_pre_hook(stop, with_kwargs=True),
            self._blocks[0].register_forward_hook(notice),
        ]
        try:
            self._backbone.features(batch)
        except _Reached:
            self._embeds_alike = shapes == [states[0].shape]
            return states[0]
        finally:
            for handle in handles:
                handle.remove()
        raise RuntimeError(f"block {boundary} did not run")

    def suffix(self, batch: Mapping[str, Tensor], states: Tensor, boundary: int) -> Tensor:
        """`(batch, width)` features from kept states."""
        with self._passed_through(boundary, states.to(self._backbone.device, self._backbone.dtype)):
            return self._backbone.features(batch)

    def is_random(self, boundary: int) -> bool:
        """Whether dropout is on in a block below the boundary."""
        modules = (m for block in self._blocks[:boundary] for m in block.modules())
        return any(isinstance(m, _DROPOUT) and m.training and m.p > 0 for m in modules)

    @contextmanager
    def _passed_through(self, boundary: int, states: Tensor) -> Iterator[None]:
        """Blocks below the boundary do nothing; the last of them hands over `states`.

        Nor do embeddings, where what they give looks the same: a ViT's patches cost a convolution.
        """
        result: Any = (states,) if self._wraps else states

        def instead(*args: Any, **kwargs: Any) -> Any:
            return result

        below: list[nn.Module] = list(self._blocks[:boundary])
        for block in below:
            block.forward = instead
        embeddings = self._embeddings if self._embeds_alike else ()
        for module in embeddings:
            module.forward = lambda *args, **kwargs: states
        try:
            yield
        finally:
            for module in (*below, *embeddings):
                del module.forward


def _embeddings(backbone: Backbone) -> tuple[nn.Module, ...]:
    """The module that makes an image's tokens; texts look theirs up, which costs nothing."""
    if backbone.takes == "text":
        return ()
    model = backbone.model.vision_model if backbone.kind == "clip" else backbone.model
    found = getattr(model, "embeddings", None)
    return (found,) if isinstance(found, nn.Module) else ()


@dataclass(frozen=True, eq=False)
class Kept:
    """States of all examples of some rows, at one boundary, under the adapters hashed in `below`.

    `states` is `(rows, tokens, hidden)`, or `(all tokens, hidden)` with `starts` `(rows + 1,)`
    where rows differ in length; `on_disk` says whether its memory is a file.
    """

    boundary: int
    below: str
    states: Tensor
    starts: Index | None
    on_disk: bool

    @property
    def bytes(self) -> int:
        return self.states.numel() * self.states.element_size()


def take(kept: Sequence[Kept], index: Sequence[Index], tokens: int, device: torch.device) -> Tensor:
    """`(rows, tokens, hidden)` states of some rows of each; beyond a row's end they are zero.

    Args:
        kept: at least one.
        index: rows of each.
        tokens: at least as many as the longest row has; where rows are alike, theirs are taken.
        device: where they are wanted.
    """
    parts: list[Tensor] = []
    for one, at in zip(kept, index, strict=True):
        if one.starts is None:
            where = torch.from_numpy(at).to(one.states.device, non_blocking=True)
            parts.append(one.states[where].to(device, non_blocking=True))
            continue
        begins, ends, steps = one.starts[at, None], one.starts[at + 1, None], np.arange(tokens)
        where = torch.from_numpy(np.minimum(begins + steps, ends - 1))
        beyond = torch.from_numpy(begins + steps >= ends)[..., None]
        places = where.flatten().to(one.states.device, non_blocking=True)
        rows = one.states.index_select(0, places).view(*where.shape, -1)
        rows = rows.to(device, non_blocking=True)
        parts.append(rows.masked_fill_(beyond.to(device, non_blocking=True), 0))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True)
class Room:
    """Where kept prefixes may lie.

    Args:
        memory: bytes on the model's device; 0 switches the cache off.
        disk: bytes in files, when memory is full.
        folder: where files are made; None for none.
        dtype: in which states are stored; None for the one they are computed in, which loses
            nothing. bfloat16 rounds a state by at most 2^-8 of it; float16 by 2^-11, but it ends
            at 65504.
    """

    memory: int
    disk: int = 0
    folder: Path | None = None
    dtype: torch.dtype | None = None


class PrefixCache:
    """At most one `Kept` for every rows object, within a budget for all.

    A kept prefix is found again only for the same rows and equal adapters below its boundary, so a
    stale one cannot be used. When the budget is spent, what comes later is not kept. Where the
    prefix is random (dropout in a block below the boundary is on) nothing is kept, and a warning
    says so.

    Args:
        backbone: whose prefix.
        slots: its adapters.
        room: how much may be kept, and where.
        meter: counts what filling it costs.
    """

    BATCH = 128
    """Rows of a pass that fills it."""

    def __init__(self, backbone: Backbone, slots: AdapterSlots, room: Room, meter: Meter) -> None:
        self._meter, self._slots = meter, slots
        self.split = SplitForward(backbone, slots.root)
        self._backbone, self._room = backbone, room
        self._disk = room.disk if room.folder else 0
        self._kept: weakref.WeakKeyDictionary[Rows, Kept] = weakref.WeakKeyDictionary()
        self._state: tuple[int, int] | None = None
        """Tokens (of rows that have all the same number) and width of a state, once seen."""
        self._said: set[str] = set()

    @property
    def room(self) -> Room:
        return self._room

    @property
    def state(self) -> tuple[int, int] | None:
        """Tokens (of rows that have all the same number) and width of a state, once seen."""
        return self._state

    @property
    def bytes(self) -> int:
        """Bytes in use, in memory and in files."""
        return sum(kept.bytes for kept in self._kept.values())

    @property
    def disk_bytes(self) -> int:
        """Of these, bytes in files."""
        return self._used(on_disk=True)

    def find(self, rows: Rows, below: Callable[[int], str]) -> Kept | None:
        """What is kept for `rows`, if it fits the adapters whose hash below a boundary is given."""
        kept = self._kept.get(rows)
        return kept if kept and kept.below == below(kept.boundary) else None

    def keep(self, rows: Rows, boundary: int, below: str) -> Kept | None:
        """Compute and keep the prefix of `rows` under the adapters now in the model.

        Returns None, and computes nothing, where there is no prefix or no room.
        """
        if not 0 < boundary < self.split.blocks or not len(rows) or not self._room.memory:
            return None
        if self.split.is_random(boundary):
            self._say("random", "dropout is on in the foundation model, so its prefix is not kept")
            return None
        old = self._kept.pop(rows, None)
        if old and (old.boundary, old.below) == (boundary, below):
            self._kept[rows] = old
            return old
        del old  # its room is free for the new one
        kept = self._compute(rows, boundary, below, self._backbone.lengths(rows))
        if kept:
            self._kept[rows] = kept
        return kept

    @torch.no_grad()
    def _compute(
        self, rows: Rows, boundary: int, below: str, lengths: np.ndarray[Any, Any] | None
    ) -> Kept | None:
        starts = None if lengths is None else np.concatenate([[0], np.cumsum(lengths)])
        place: tuple[Tensor, bool] | None = None
        if self._state and not (place := self._place(len(rows), starts)):
            return None
        for index in self._backbone.passes(rows, self.BATCH):
            batch = self._backbone.collate(rows.take(index))
            kind = ("prefix", boundary, self._slots.active, *batch)
            with self._meter.step(kind, *sizes(batch)):
                part = self.split.prefix(batch, boundary)
            if place is None:
                self._state = (part.shape[1], part.shape[2])
                if not (place := self._place(len(rows), starts)):
                    return None
            states = place[0]
            part = part.to(states.device, states.dtype)
            if states.dtype == torch.float16 and not part.isfinite().all():
                self._say(
                    "range",
                    "states of the foundation model are beyond the range of float16, so they are "
                    "not kept; try runtime.cache_dtype=bfloat16",
                )
                self._room = replace(self._room, memory=0)
                return None
            if starts is None or lengths is None:
                states[torch.from_numpy(index)] = part
                continue
            for row, i in enumerate(index):
                states[starts[i] : starts[i + 1]] = part[row, : lengths[i]]
        assert place is not None
        return Kept(boundary, below, place[0], starts, place[1])

    def _place(self, rows: int, starts: Index | None) -> tuple[Tensor, bool] | None:
        """Room for the states of so many rows, and whether it is on disk; None if there is none."""
        assert self._state is not None
        tokens, hidden = self._state
        shape = (rows, tokens, hidden) if starts is None else (int(starts[-1]), hidden)
        dtype = self._room.dtype or self._backbone.dtype
        wanted = math.prod(shape) * dtype.itemsize
        if wanted <= self._room.memory - self._used(on_disk=False):
            with suppress(torch.OutOfMemoryError):  # the device has less than the budget: to files
                return self._in_memory(shape, dtype), False
        if self._room.folder is None or wanted > self._disk - self._used(on_disk=True):
            self._say(
                "room",
                "the prefix cache is full; what has no room is computed again every time "
                "(runtime.cache_bytes, runtime.cache_disk_bytes)",
            )
            return None
        try:
            return self._in_file(self._room.folder, shape, dtype), True
        except OSError as error:
            self._disk = 0
            self._say(
                "room",
                f"the prefix cache has no room for {wanted:,} bytes in {self._room.folder} "
                f"({error.strerror or error}); what is not kept yet is computed again every time",
            )
            return None

    def _in_memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self._backbone.device)

    def _in_file(self, folder: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return mapped(folder, shape, dtype)

    def _used(self, *, on_disk: bool) -> int:
        return sum(kept.bytes for kept in self._kept.values() if kept.on_disk == on_disk)

    def _say(self, kind: str, words: str) -> None:
        """Warn, once of a kind."""
        if kind not in self._said:
            _log.warning(words)
        self._said.add(kind)
