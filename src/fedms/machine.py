"""What is left to the machine: device, precision, threads."""

from __future__ import annotations

import re
from typing import Any

import torch

from fedms import models
from fedms.config import DEVICE, Config
from fedms.core.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_WIDE = 256
"""Features from which bfloat16 pays on a CPU (docs/performance.md)."""


def pick_device(wanted: str, worker: int = 0) -> str:
    """`auto` takes CUDA where there is one, else the CPU; workers take turns with CUDA devices.

    Raises:
        UserError: if the device is not there.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(DEVICE, wanted):
        raise UserError(f"got device {wanted!r}; expected auto, cpu, mps, cuda or cuda:N")
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there[wanted.split(":", maxsplit=1)[0]]:
        raise UserError(
            f"got runtime.device = {wanted!r}, which is not there; try runtime.device=auto"
        )
    count = torch.cuda.device_count()
    if wanted.startswith("cuda:") and int(wanted[5:]) >= count:
        raise UserError(f"got runtime.device = {wanted!r}; expected cuda:0 to cuda:{count - 1}")
    return f"cuda:{worker % count}" if wanted == "cuda" else wanted


def device_name(device: str) -> str:
    """What a device is called by its maker, else as it is here."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def pick_precision(wanted: str, device: torch.device, width: int) -> torch.dtype:
    """`auto` takes bfloat16 where the hardware has it and the model is wide enough to gain.

    Hardware is CUDA from compute capability 8.0, or a CPU with AMX tiles or AVX-512's products of
    bfloat16. Elsewhere bfloat16 is as slow as float32, or slower (`models.products`).

    Args:
        wanted: as configured.
        device: that computes.
        width: of the model's features.
    """
    if wanted != "auto":
        return DTYPES[wanted]
    if device.type == "cuda":
        has = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        has = device.type == "cpu" and models.cpu_has_products()
    return torch.bfloat16 if has and width >= _WIDE else torch.float32


def computes(config: Config, width: int, workers: int) -> dict[str, Any]:
    """What is left to the machine: device, precision at a feature width, threads of a worker."""
    device = pick_device(config.runtime.device)
    precision = pick_precision(config.runtime.precision, torch.device(device), width)
    threads = config.runtime.threads or max(1, torch.get_num_threads() // workers)
    return {
        "device": device if workers == 1 else device.split(":")[0],
        "device_name": device_name(device),
        "precision": str(precision).removeprefix("torch."),
        "threads": threads,
    }
