"""The kernels behind a step on this machine: why `auto` takes the precision it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.bench.rows import Row, alternate
from fedms.models.products import cpu_has_products, products_of

_REPEATS = 15
_ROWS, _WIDTH, _INNER = 1024, 384, 1536
_HEADS = (32, 12, 32, 32)
"""Batch, heads, tokens and width of a head."""
_LARGER = 64
"""As many times the rows, and the batch, fill an accelerator."""


def kernel_rows(*, device: torch.device) -> Iterator[Row]:
    """Matrix products and attention in both precisions, and AdamW fused and not."""
    with device:
        yield from _rows(device, 1 if device.type == "cpu" else _LARGER)


def _rows(device: torch.device, larger: int) -> Iterator[Row]:
    rows = _ROWS * larger
    products = {dtype: _product(rows, dtype, device) for dtype in (torch.float32, torch.bfloat16)}
    works = {str(dtype): work for dtype, work in products.items()}
    emulated = device.type == "cpu" and not cpu_has_products()
    if emulated:
        works["rounded"] = _rounded(products[torch.bfloat16])
    seconds = alternate(works, _REPEATS, device)
    exact, half = (seconds[str(dtype)] for dtype in products)
    name = f"{rows} × {_WIDTH} × {_INNER}"
    yield Row.of(f"matrix product {name}, bfloat16", half, "s", _REPEATS, ("float32", exact))
    for precision, spent in (("float32", exact), ("bfloat16", half)):
        rate = 2e-9 * rows * _WIDTH * _INNER / spent
        yield Row.of(f"matrix product, {precision}", rate, "GFLOP/s", _REPEATS)
    if emulated:
        label = f"matrix product {name}, bfloat16, in float32 and rounded"
        yield Row.of(label, seconds["rounded"], "s", _REPEATS, ("torch's bfloat16", half))

    kinds = [(kind, dtype) for kind in (_fused, _plain) for dtype in products]
    attention = {f"{k.__name__} {d}": _attention(k, d, larger) for k, d in kinds}
    seconds = alternate(attention, _REPEATS, device)
    for kind, dtype in kinds[1:]:
        label = f"attention and its backward pass,{kind.__name__.replace('_', ' ')}, {dtype}"
        mine, theirs = seconds[f"{kind.__name__} {dtype}"], seconds["_fused torch.float32"]
        yield Row.of(label.replace("torch.", ""), mine, "s", _REPEATS, ("fused, float32", theirs))

    seconds = alternate(
        {"fused": _adamw(fused=True), "loop": _adamw(fused=False)}, _REPEATS, device
    )
    loop = ("one tensor after another", seconds["loop"])
    yield Row.of("AdamW on 12 adapter tensors, fused", seconds["fused"], "s", _REPEATS, loop)


def _product(count: int, dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    rows, weight = (torch.randn(n, _WIDTH, generator=generator).to(dtype) for n in (count, _INNER))
    return lambda: F.linear(rows, weight)


def _rounded(product: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """As a model computes it on a CPU without instructions for it."""
    weight = torch.ones(1, dtype=torch.bfloat16)

    def work() -> Tensor:
        with products_of(weight):
            return product()

    return work


def _fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    mask = torch.zeros(len(query), 1, _HEADS[2], _HEADS[2], dtype=query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.softmax(query @ key.transpose(2, 3) * _HEADS[3] ** -0.5, -1) @ value


def _attention(
    kind: Callable[[Tensor, Tensor, Tensor], Tensor], dtype: torch.dtype, larger: int
) -> Callable[[], object]:
    shape = (_HEADS[0] * larger, *_HEADS[1:])
    parts = [torch.ones(shape, dtype=dtype, requires_grad=True) for _ in range(3)]
    return lambda: torch.autograd.grad(kind(*parts).sum(), parts)


def _adamw(*, fused: bool) -> Callable[[], object]:
    tensors = [torch.ones(8, _WIDTH, requires_grad=True) for _ in range(12)]
    for tensor in tensors:
        tensor.grad = torch.ones_like(tensor)
    return torch.optim.AdamW(tensors, fused=fused).step
