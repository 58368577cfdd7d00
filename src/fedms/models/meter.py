"""What training costs: FLOPs, activation bytes and seconds, measured rather than estimated.

FLOPs by torch's counter, activation bytes by autograd's hooks for saved tensors. Both slow a step
down several times, and texts come in hundreds of shapes. So a step of a kind and size that was seen
before costs what the first one cost; and once the law is known by which a kind's costs follow from
its sizes, nothing is counted any more. The law is found in what was counted, and taken only if it
gives all of that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

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
        self._laws: dict[Hashable, _Law] = {}
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
            wait(self._device)
        finally:
            self._counting = outer
            self._spent += Costs(seconds={name: time.perf_counter() - began})

    def charge(self, costs: Costs) -> None:
        """Add costs of work that is not done here; of evaluation nothing."""
        if self._counting:
            self._spent += costs

    @contextmanager
    def step(
        self, kind: Hashable, *sizes: int, clients: int = 1, real: float = 1.0
    ) -> Iterator[None]:
        """Counts a step, whose activations are shared by its clients equally.

        Args:
            kind: must tell apart steps whose costs differ by more than their sizes.
            sizes: of this step, e.g. its clients, rows and tokens a row. Costs must be linear in
                each, and at most quadratic in the last one, as they are in a transformer.
            clients: whose step it is.
            real: the share of rows that count; the others fill up what is computed at once.
        """
        if not self._counting:
            yield
            return
        law = self._laws.setdefault(kind, _Law())
        cost = law.cost(sizes)
        if cost:
            yield
        else:
            with self._count() as counted:
                yield
            cost = law.add(sizes, *counted)
        kept = round(cost.peak_activation_bytes / clients)
        self._spent += Costs(flops=round(cost.flops * real), peak_activation_bytes=kept)

    @contextmanager
    def _count(self) -> Iterator[list[int]]:
        """Gives a list that holds FLOPs and activation bytes when the context has ended."""
        weights = {w.untyped_storage().data_ptr() for w in self._weights()}
        saved: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        counter = _Flops()
        counted: list[int] = []
        with counter, torch.autograd.graph.saved_tensors_hooks(pack, _same):
            yield counted
        counted += [counter.total, sum(saved.values())]


class _Flops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what torch's formulas say of every operation: `FlopCounterMode` without its tables.

    That one follows modules too, with hooks on each of them, which takes longer than a small step.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is None:  # as in inference mode, where nothing has been taken apart before
            with self:
                result = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if result is NotImplemented else result
        result = func(*args, **kwargs)
        self.total += formula(*args, **kwargs, out_val=result)
        return result


class _Law:
    """What steps of one kind cost, by their sizes."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], Costs] = {}
        self._counted: list[tuple[tuple[int, ...], tuple[int, int]]] = []

    def add(self, sizes: tuple[int, ...], flops: int, activation_bytes: int) -> Costs:
        """Note what a step was counted to cost."""
        self._counted.append((sizes, (flops, activation_bytes)))
        return self._note(sizes, flops, activation_bytes)

    def cost(self, sizes: tuple[int, ...]) -> Costs | None:
        """What a step of these sizes costs; None if that has to be counted."""
        if sizes not in self._known and (found := self._derived(sizes)):
            self._note(sizes, *found)
        return self._known.get(sizes)

    def _note(self, sizes: tuple[int, ...], flops: int, activation_bytes: int) -> Costs:
        cost = Costs(flops=flops, peak_activation_bytes=activation_bytes)
        self._known[sizes] = cost
        return cost

    def _derived(self, sizes: tuple[int, ...]) -> list[int] | None:
        """From a polynomial through all that was counted.

        None if there is none yet that two more counts confirm than it has coefficients, or if the
        counts leave open what it is at these sizes.
        """
        if not sizes or len(self._counted) < 3:
            return None
        terms = np.array([polynomial(known) for known, _ in self._counted])
        scale = np.abs(terms).max(0)
        terms, wanted = terms / scale, polynomial(sizes) / scale
        costs = np.array([counted for _, counted in self._counted], dtype=float)
        law, _, rank, _ = np.linalg.lstsq(terms, costs, rcond=_EXACT)
        if len(terms) < rank + 2 or not np.allclose(terms @ law, costs, rtol=_EXACT, atol=0):
            return None
        mix = np.linalg.lstsq(terms.T, wanted, rcond=_EXACT)[0]
        if not np.allclose(terms.T @ mix, wanted, rtol=0, atol=_EXACT * np.abs(wanted).max()):
            return None
        return [round(cost) for cost in wanted @ law]


_EXACT = 1e-9
"""Relative error of what is equal in float64."""


def polynomial(sizes: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What costs are sums of: one and every size but the last, times powers 0, 1, 2 of the last."""
    *counts, last = map(float, sizes)
    return np.outer([1.0, *counts], [1.0, last, last * last]).ravel()


def wait(device: torch.device) -> None:
    """Until a device has done all that it was told; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_bytes(device: torch.device) -> int | None:
    """The most that was allocated on a CUDA device since the last call; None for other devices."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def sizes(batch: Mapping[str, Tensor]) -> tuple[int, int]:
    """Rows of a batch and tokens a row. Images of one model are all of one size."""
    shape = next(iter(batch.values())).shape
    return shape[0], shape[1]


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _forward(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))  # type: ignore[no-untyped-call]


def _backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any
) -> int:
    shapes = (t.shape for t in (gradient, query, key, value))
    return int(sdpa_backward_flop_count(*shapes))  # type: ignore[no-untyped-call]


_FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}
"""Of operations, FLOPs by their arguments; torch's do not have attention on the CPU."""
