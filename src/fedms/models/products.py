"""Products in bfloat16, also on CPUs that have no instructions for them.

There torch takes them one number after another, many times slower than in float32
(docs/performance.md). So operands are turned into float32, which holds them exactly, and the result
is rounded: what the hardware does elsewhere, whose sums are float32 too.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_NATIVE = ("amx_tile", "avx512_bf16")
"""What CPUs compute products of bfloat16 with, as torch asks for it (not every version for all)."""
_aten = torch.ops.aten
_PRODUCTS = {
    *(_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default),
    *(_aten.convolution.default, _aten.convolution_backward.default),
    *(_aten.linear.default, _aten.matmul.default),  # in inference mode, not taken apart before
}


def cpu_has_products() -> bool:
    """Whether this machine's CPU has instructions for products of bfloat16."""
    known = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in _NATIVE)
    return any(supported() for supported in known if supported)


def products_of(weight: Tensor) -> AbstractContextManager[object]:
    """Within it, products are computed as is fastest for a model with such a weight."""
    if weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and not cpu_has_products():
        return _InFloat32()  # type: ignore[no-untyped-call]
    return nullcontext()


class _InFloat32(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Computes products of bfloat16 in float32, and rounds."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _PRODUCTS or args[0].dtype != torch.bfloat16:
            return func(*args, **kwargs)
        result = func(*(_to(x, torch.float32) for x in args), **kwargs)
        if isinstance(result, tuple):
            return tuple(_to(x, torch.bfloat16) for x in result)
        return _to(result, torch.bfloat16)


def _to(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) else value
