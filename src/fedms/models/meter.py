"""What training costs: FLOPs, activation bytes and seconds, measured rather than estimated.

A step of a kind that was seen before (same blocks, same shapes) costs what the first of that kind
cost, so that counting does not slow a run down: FLOPs by torch's counter, activation bytes by
autograd's hooks for saved tensors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from fedms.core.costs import Costs, Phase


class Meter:
    """Adds up costs until they are taken.

    Args:
        weights: the model's parameters, which autograd saves too but which are no activations.
        device: whose queue is waited for where a phase ends.
    """

    def __init__(
        self,
        weights: Callable[[], Iterable[Tensor]],
        device: torch.device = torch.device("cpu"),  # noqa: B008 - a constant
    ) -> None:
        self._weights, self._device = weights, device
        self._known: dict[Hashable, Costs] = {}
        self._spent = Costs()
        self._counting = True

    def take(self) -> Costs:
        """What was spent since the last call."""
        spent, self._spent = self._spent, Costs()
        return spent

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Counts the seconds of a phase; of evaluation nothing else."""
        outer, self._counting = self._counting, name != "evaluate"
        began = time.perf_counter()
        try:
            yield
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
        finally:
            self._counting = outer
            self._spent += Costs(seconds={name: time.perf_counter() - began})

    @contextmanager
    def step(self, kind: Hashable) -> Iterator[None]:
        """Counts a step; `kind` must tell apart steps of different cost."""
        if not self._counting:
            yield
            return
        if kind in self._known:
            yield
        else:
            weights = {w.untyped_storage().data_ptr() for w in self._weights()}
            saved: dict[int, int] = {}

            def pack(tensor: Tensor) -> Tensor:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in weights:
                    saved[storage.data_ptr()] = storage.nbytes()
                return tensor

            counter = FlopCounterMode(display=False, custom_mapping=_ATTENTION)
            with counter, torch.autograd.graph.saved_tensors_hooks(pack, _same):
                yield
            self._known[kind] = Costs(counter.get_total_flops(), sum(saved.values()))
        self._spent += self._known[kind]


def peak_bytes(device: torch.device) -> int | None:
    """The most that was allocated on a CUDA device since the last call; None for other devices."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def shapes(batch: Mapping[str, Tensor]) -> tuple[tuple[int, ...], ...]:
    """Shapes of a batch's tensors: steps of equal shapes cost the same."""
    return tuple(tuple(tensor.shape) for tensor in batch.values())


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _forward(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _backward(gradient: Any, query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
    return int(
        sdpa_backward_flop_count(gradient, query, key, value)  # type: ignore[no-untyped-call]
    )


_ATTENTION: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}
"""Attention on the CPU, which torch's counter does not know."""
