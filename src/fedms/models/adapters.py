"""LoRA adapters in the resident model: injected once, filled in place. The only importer of peft.

Every block of the foundation model has a slot. An expert's tensors are put into the slots; blocks
it has no tensors for are switched off, so that they cost nothing. Nothing is rebuilt per client.

A slot holds the adapters of several clients, stacked: rows of a batch belong to clients in turn,
the first `batch / clients` rows to the first, and each meets its own client's low-rank matrices
while all share the frozen ones.

LoRA: arXiv 2106.09685. Names are those in PEFT's `adapter_model.safetensors`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F

from fedms.core.seeds import derive_seed
from fedms.core.tensors import Tensors
from fedms.models.blocks import Blocks
from fedms.models.products import products_of

_SLOT = "expert"
_PREFIX = "base_model.model."
_NOTHING = torch.empty(0, 0, 0)


class Gate:
    """One for all projections of a block that see the same: an MLP with one hidden layer.

    The softmax of its two outputs weighs, as that of a linear gate does (`Factor.mixer`).

    Args:
        names: of weight and bias of the hidden layer, weight and bias of the outer one.
        projections: how many ask it in turn for the same input; it is computed once for all.
    """

    def __init__(self, names: tuple[str, ...], projections: int) -> None:
        self.names, self._projections = names, projections
        self.tensors: dict[str, Tensor] = {}
        """By name, with a first axis of clients; empty where nothing is weighed."""
        self._known: tuple[Tensor, Tensor] | None = None
        self._left = 0

    def clear(self) -> None:
        """Forget all."""
        self.tensors, self._known = {}, None

    def __call__(self, inputs: Tensor) -> Tensor:
        """`(clients * batch, …, in)` to `(clients * batch, …, 2)`."""
        if self._known is None or self._known[0] is not inputs:
            weight, bias, outer, last = (self.tensors[name] for name in self.names)
            hidden = F.relu(_product(inputs, weight, bias))
            self._known = inputs, F.softmax(_product(hidden, outer, last), dim=-1)
            self._left = self._projections
        share = self._known[1]
        self._left -= 1
        if not self._left:
            self._known = None  # inputs of a layer are held no longer than it needs them
        return share


class Factor(nn.Module):
    """One low-rank matrix of each of several clients.

    The first axis of its inputs must be rows of the batch, as in the encoders that are accepted.
    """

    weight: Tensor
    """`(clients, out, in)`; whoever holds the adapters owns it."""
    mixer: Tensor | None = None
    """`(clients, 2, in)`: of a linear gate, whose softmax weighs the first `own` outputs and the
    others; or None. One a projection (what others have, `algorithms.dual` says)."""
    gate: Gate | None = None
    """In place of `mixer`, where the slots have gates with hidden units."""
    share: Tensor | None = None
    """`(clients * batch,)`: the weight of the first `own` outputs in a row, or None."""

    def __init__(self, own: int) -> None:
        super().__init__()
        self.own = own

    def forward(self, inputs: Tensor) -> Tensor:
        """`(clients * batch, …, in)` to `(clients * batch, …, out)`."""
        outputs = _product(inputs, self.weight)
        if self.share is not None:
            own = self.share.view(-1, *[1] * (inputs.dim() - 1))
            share = torch.cat([own, 1 - own], dim=-1)
        elif self.mixer is not None:
            share = F.softmax(_product(inputs, self.mixer), dim=-1)
        elif self.gate is not None and self.gate.tensors:
            share = self.gate(inputs)
        else:
            return outputs
        first, second = outputs[..., : self.own], outputs[..., self.own :]
        return torch.cat([first * share[..., :1], second * share[..., 1:]], dim=-1)


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Each client's rows times its own matrix, plus its bias: see `Factor.forward`."""
    clients, out, _ = weight.shape
    if clients == 1:
        return F.linear(inputs, weight[0], None if bias is None else bias[0])
    rows = inputs.reshape(clients, -1, inputs.shape[-1])
    if bias is None:
        return torch.bmm(rows, weight.mT).view(*inputs.shape[:-1], out)
    return torch.baddbmm(bias[:, None], rows, weight.mT).view(*inputs.shape[:-1], out)


class AdapterSlots:
    """The LoRA slots of one model. Adapters are float32; their products are as the model's.

    Args:
        model: the frozen foundation model; it is changed in place, once.
        blocks: where its blocks are.
        rank: of the low-rank matrices, at least 1.
        alpha: their product is scaled by `alpha / rank`.
        gate_hidden: hidden units of the gates that weigh an expert's own product, one gate for q, k
            and v of a block and one for what comes after attention; 0: linear, one a projection.
    """

    def __init__(
        self, model: nn.Module, blocks: Blocks, rank: int, alpha: float, gate_hidden: int = 0
    ) -> None:
        self._blocks, self._rank, self._alpha = blocks, rank, alpha
        self._weight = next(model.parameters())  # computes where and in what the model computes
        self.root = blocks.root
        inject_adapter_in_model(self.config(range(blocks.count)), model, adapter_name=_SLOT)
        model.requires_grad_(False)
        layers = dict(model.named_modules())
        self._layers: list[list[LoraLayer]] = []
        self._factors: dict[str, Factor] = {}
        self.active: tuple[int, ...] = ()
        """Blocks whose adapters are computed now."""
        self.groups: tuple[tuple[str, ...], ...] = ()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.pairs: tuple[tuple[str, str], ...] = ()
        self.mixers: tuple[tuple[str, ...], ...] = ()
        self.mixer_shapes: dict[str, tuple[int, ...]] = {}
        self._mixed: dict[str, Factor] = {}
        self._gates: dict[str, Gate] = {}
        for index in range(blocks.count):
            paths = [f"{blocks.root}.{index}.{target}" for target in blocks.targets]
            found = {path: layers[path] for path in paths}
            slots = {n: f for path, m in found.items() for n, f in _slots(path, m, self.shapes)}
            self._layers.append([m for m in found.values() if isinstance(m, LoraLayer)])
            self.groups += (tuple(slots),)
            self.pairs += tuple(zip(self.groups[-1][::2], self.groups[-1][1::2], strict=True))
            self._factors.update(slots)
            mixers = self._gated(index, gate_hidden) if gate_hidden else self._linear(index)
            self.mixers += (tuple(mixers),)
            self.mixer_shapes.update(mixers)
        self._switch([])

    def _linear(self, index: int) -> dict[str, tuple[int, ...]]:
        """A linear gate for every projection of a block: names and shapes of their tensors."""
        downs = self.groups[index][::2]
        self._mixed.update({_mixer(a): self._factors[a] for a in downs})
        return {_mixer(a): (2, self.shapes[a][1]) for a in downs}

    def _gated(self, index: int, hidden: int) -> dict[str, tuple[int, ...]]:
        """A gate for all projections of a block with the same input: likewise."""
        shapes: dict[str, tuple[int, ...]] = {}
        for path, targets in self._blocks.inputs.items():
            place = f"{_PREFIX}{self.root}.{index}."
            downs = [f"{place}{target}.lora_A.weight" for target in targets]
            sizes = (hidden, self.shapes[downs[0]][1]), (hidden,), (2, hidden), (2,)
            start = f"{place}{path}." if path else place
            names = tuple(f"{start}mixer.{name}" for name in _GATE)
            shapes.update(zip(names, sizes, strict=True))
            gate = Gate(names, len(targets))
            self._gates.update(dict.fromkeys(names, gate))
            for a in downs:
                self._factors[a].gate = gate
        return shapes

    @property
    def down(self) -> frozenset[str]:
        """Names of all A matrices."""
        return frozenset(a for a, _ in self.pairs)

    def config(
        self,
        blocks: Iterator[int] | range | list[int],
        base: str | None = None,
        rank: int | None = None,
    ) -> LoraConfig:
        """PEFT's configuration of an adapter in these blocks, of the slots' rank or another."""
        rank = rank or self._rank
        numbers = "|".join(str(index) for index in blocks)
        targets = "|".join(re.escape(target) for target in self._blocks.targets)
        return LoraConfig(
            r=rank,
            lora_alpha=self._alpha * rank / self._rank,
            lora_dropout=0.0,
            bias="none",
            target_modules=rf"{re.escape(self._blocks.root)}\.({numbers})\.({targets})",
            base_model_name_or_path=base,
            inference_mode=True,
        )

    def initial(self, name: str, seed: int) -> Tensor:
        """A slot before training: B zero, A uniform as in PEFT, from `seed` and the name.

        A mixer is zero: both products have half of the weight. Of one with hidden units, their
        weights are as A is, from `seed` and the name, and all else is zero.
        """
        shape = self.shapes.get(name) or self.mixer_shapes[name]
        if ".lora_A." not in name and not name.endswith(_GATE[0]):
            return torch.zeros(shape)
        bound = (1.0 / shape[1]) ** 0.5  # kaiming_uniform_ with a = sqrt(5), as PEFT does
        generator = torch.Generator().manual_seed(derive_seed(seed, "lora", name))
        uniform: Tensor = torch.rand(shape, generator=generator)
        return uniform.mul(2).sub(1).mul(bound)

    @contextmanager
    def holding(self, tensors: Tensors) -> Iterator[None]:
        """The model with adapters in it, of one client or several; switched off again afterwards.

        Products in it are computed as `products_of` says.

        Args:
            tensors: `(clients, *shape)` each; of a block all or none.

        Raises:
            ValueError: if a block's tensors are incomplete or there is no slot for one.
        """
        unknown = tensors.keys() - self.shapes.keys() - self.mixer_shapes.keys()
        if unknown:
            raise ValueError(f"got a tensor {min(unknown)!r} for which the model has no slot")
        active = self.blocks_of(tensors)
        for index in active:
            missing = [name for name in self.groups[index] if name not in tensors]
            missing += lacking(self.mixers[index], tensors)
            if missing:
                raise ValueError(f"got block {index} without {missing[0]!r}; expected all of it")
        try:
            self.put(tensors)
            self._switch(active)
            with products_of(self._weight):
                yield
        finally:
            self._switch([])
            for factor in self._factors.values():
                factor.weight, factor.mixer, factor.share = _NOTHING, None, None
            for gate in self._gates.values():
                gate.clear()

    def put(self, tensors: Tensors) -> None:
        """Other tensors in place of those that are held, of the same names."""
        for name, tensor in tensors.items():
            placed = tensor.to(self._weight.device, self._weight.dtype)
            if name in self._mixed:
                self._mixed[name].mixer = placed
            elif name in self._gates:
                self._gates[name].tensors[name] = placed
            else:
                self._factors[name].weight = placed

    def weigh(self, shares: Tensor) -> None:
        """Weigh an expert's own product in each of the next rows, `(clients * batch,)`."""
        placed = shares.to(self._weight.device, self._weight.dtype)
        for a, _ in self.pairs:
            self._factors[a].share = placed

    def held(self) -> list[Tensor]:
        """What the slots hold now, but for linear gates."""
        gates = (gate.tensors.get(name) for name, gate in self._gates.items())
        weights = [factor.weight for factor in self._factors.values()]
        return [*weights, *(tensor for tensor in gates if tensor is not None)]

    def _switch(self, active: list[int]) -> None:
        """Compute the adapters of these blocks only."""
        self.active = tuple(active)
        for index, layers in enumerate(self._layers):
            for layer in layers:
                layer._disable_adapters = index not in active

    def blocks_of(self, names: Collection[str]) -> list[int]:
        """Indices of the blocks whose tensors are named, ascending."""
        return [i for i, group in enumerate(self.groups) if any(name in names for name in group)]

    def lowest(self, names: Collection[str]) -> int:
        """The first block whose tensors are named: the boundary of what stays constant.

        The number of blocks if there is none.
        """
        return min(self.blocks_of(names), default=len(self.groups))

    def of_rank(self, tensors: Tensors, rank: int | None = None) -> dict[str, Tensor]:
        """Adapters filled up with zeros to a rank; None: the highest of any of them."""
        down = self.down
        rank = rank or max((t.shape[0] for name, t in tensors.items() if name in down), default=0)
        return {
            name: F.pad(t, (0, 0, 0, rank - t.shape[0]) if name in down else (0, rank - t.shape[1]))
            for name, t in tensors.items()
        }

    def save_config(self, folder: Path, tensors: Tensors, base: str) -> None:
        """Write `adapter_config.json` for adapters of one rank into an existing folder."""
        rank = next(t.shape[0] for name, t in tensors.items() if name in self.down)
        self.config(self.blocks_of(tensors), base, rank).save_pretrained(str(folder))


def adapted(model: nn.Module, folder: Path) -> Any:
    """A `PeftModel`: a plain model with PEFT's adapters beside its weights; `model` is changed."""
    with torch.random.fork_rng(devices=[]):  # PEFT draws what is then overwritten
        return PeftModel.from_pretrained(model, str(folder))


def merge(model: nn.Module, folder: Path) -> Any:
    """A plain model with PEFT's adapters in its weights; `model` is changed."""
    return adapted(model, folder).merge_and_unload()


_GATE = ("inner.weight", "inner.bias", "outer.weight", "outer.bias")
"""Of `Gate.names`, after the place."""


def lacking(mixers: Collection[str], tensors: Tensors) -> list[str]:
    """Those of a block's mixers that are not there, where some are."""
    missing = [name for name in mixers if name not in tensors]
    return missing if len(missing) < len(mixers) else []


def _mixer(down: str) -> str:
    """The name of a projection's linear gate, from that of its A."""
    return down.replace(".lora_A.", ".mixer.")


def _slots(
    path: str, module: nn.Module, shapes: dict[str, tuple[int, ...]]
) -> Iterator[tuple[str, Factor]]:
    """Put slots in place of the two matrices PEFT made, and note their shapes."""
    if not isinstance(module, LoraLayer):
        raise TypeError(f"{path} is {type(module).__name__}; expected a LoRA layer")
    for side in ("lora_A", "lora_B"):
        matrices: nn.ModuleDict = getattr(module, side)
        name = f"{_PREFIX}{path}.{side}.weight"
        shapes[name] = tuple(matrices[_SLOT].weight.shape)  # type: ignore[arg-type]
        factor = matrices[_SLOT] = Factor(shapes[name][0])
        factor.weight = _NOTHING
        yield name, factor
