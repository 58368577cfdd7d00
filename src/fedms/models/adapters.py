"""LoRA adapters in the resident model: injected once, filled in place. The only importer of peft.

Every block of the foundation model has a slot. An expert's tensors are copied into the slots;
blocks it has no tensors for are switched off, so that they cost nothing. Nothing is rebuilt or
copied per client.

LoRA: arXiv 2106.09685. Names are those in PEFT's `adapter_model.safetensors`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from fedms.core.seeds import derive_seed
from fedms.core.tensors import Tensors
from fedms.models.blocks import Blocks

_SLOT = "expert"
_PREFIX = "base_model.model."


class AdapterSlots:
    """The LoRA slots of one model, float32 whatever the model computes in.

    Args:
        model: the frozen foundation model; it is changed in place, once.
        blocks: where its blocks are.
        rank: of the low-rank matrices, at least 1.
        alpha: their product is scaled by `alpha / rank`.
    """

    def __init__(self, model: nn.Module, blocks: Blocks, rank: int, alpha: float) -> None:
        self._blocks, self._rank, self._alpha = blocks, rank, alpha
        self.root = blocks.root
        inject_adapter_in_model(self.config(range(blocks.count)), model, adapter_name=_SLOT)
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.data = parameter.data.float()
        model.requires_grad_(False)
        layers = dict(model.named_modules())
        self._layers: list[list[LoraLayer]] = []
        self.active: tuple[int, ...] = ()
        """Blocks whose adapters are computed now."""
        self.groups: tuple[tuple[str, ...], ...] = ()
        self.parameters: dict[str, nn.Parameter] = {}
        for index in range(blocks.count):
            paths = [f"{blocks.root}.{index}.{target}" for target in blocks.targets]
            found = {path: layers[path] for path in paths}
            slots = {n: p for path, m in found.items() for n, p in _slot_parameters(path, m)}
            self._layers.append([m for m in found.values() if isinstance(m, LoraLayer)])
            self.groups += (tuple(slots),)
            self.parameters.update(slots)
        self.shapes = {name: tuple(p.shape) for name, p in self.parameters.items()}
        self._switch([])

    def config(
        self, blocks: Iterator[int] | range | list[int], base: str | None = None
    ) -> LoraConfig:
        """PEFT's configuration of an adapter in these blocks."""
        numbers = "|".join(str(index) for index in blocks)
        targets = "|".join(re.escape(target) for target in self._blocks.targets)
        return LoraConfig(
            r=self._rank,
            lora_alpha=self._alpha,
            lora_dropout=0.0,
            bias="none",
            target_modules=rf"{re.escape(self._blocks.root)}\.({numbers})\.({targets})",
            base_model_name_or_path=base,
            inference_mode=True,
        )

    def initial(self, name: str, seed: int) -> Tensor:
        """A slot before training: B zero, A uniform as in PEFT, from `seed` and the name."""
        shape = self.shapes[name]
        if ".lora_B." in name:
            return torch.zeros(shape)
        bound = (1.0 / shape[1]) ** 0.5  # kaiming_uniform_ with a = sqrt(5), as PEFT does
        generator = torch.Generator().manual_seed(derive_seed(seed, "lora", name))
        uniform: Tensor = torch.rand(shape, generator=generator)
        return uniform.mul(2).sub(1).mul(bound)

    @contextmanager
    def holding(self, tensors: Tensors) -> Iterator[None]:
        """The model with an expert's adapters in it; switched off again afterwards.

        Raises:
            ValueError: if a block's tensors are incomplete or there is no slot for one.
        """
        self._load(tensors)
        try:
            yield
        finally:
            self._switch([])
            for parameter in self.parameters.values():
                parameter.requires_grad_(False)

    def _load(self, tensors: Tensors) -> None:
        unknown = tensors.keys() - self.parameters.keys()
        if unknown:
            raise ValueError(f"got a tensor {min(unknown)!r} for which the model has no slot")
        active = self.blocks_of(tensors)
        with torch.no_grad():
            for index in active:
                for name in self.groups[index]:
                    if name not in tensors:
                        raise ValueError(f"got block {index} without {name!r}; expected all of it")
                    self.parameters[name].copy_(tensors[name])
        self._switch(active)

    def _switch(self, active: list[int]) -> None:
        """Compute the adapters of these blocks only."""
        self.active = tuple(active)
        for index, layers in enumerate(self._layers):
            for layer in layers:
                layer._disable_adapters = index not in active

    def read(self, names: frozenset[str]) -> dict[str, Tensor]:
        """Copies of slots, on the CPU."""
        return {n: self.parameters[n].detach().to("cpu", copy=True) for n in sorted(names)}

    def blocks_of(self, names: Collection[str]) -> list[int]:
        """Indices of the blocks whose tensors are named, ascending."""
        return [i for i, group in enumerate(self.groups) if any(name in names for name in group)]

    def lowest(self, names: Collection[str]) -> int:
        """The first block whose tensors are named: the boundary of what stays constant.

        The number of blocks if there is none.
        """
        return min(self.blocks_of(names), default=len(self.groups))

    def save_config(self, folder: Path, tensors: Tensors, base: str) -> None:
        """Write `adapter_config.json` for an expert into an existing folder."""
        self.config(self.blocks_of(tensors), base).save_pretrained(str(folder))


def _slot_parameters(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    if not isinstance(module, LoraLayer):
        raise TypeError(f"{path} is {type(module).__name__}; expected a LoRA layer")
    for side in ("lora_A", "lora_B"):
        weights: Mapping[str, nn.Module] = getattr(module, side)
        yield f"{_PREFIX}{path}.{side}.weight", weights[_SLOT].weight  # type: ignore[misc]
