"""Tensors in memory-mapped files that leave nothing behind."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

_RESERVE = 10**9
"""Bytes that are left free on the disk, for the run itself and for others."""


def mapped(folder: Path, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor on the CPU whose memory is a file in `folder`.

    The file loses its name at once, so that its space is free again when the tensor is gone, or
    the process, however it ends. Its blocks are allocated first: a full disk is an error here, and
    not a crash when the tensor is written.

    Raises:
        OSError: if the file cannot be made, or the disk (or a quota) has no room for it.
    """
    if not hasattr(os, "posix_fallocate"):
        raise OSError("this system cannot reserve room in a file")
    size = math.prod(shape) * dtype.itemsize
    free = shutil.disk_usage(folder).free
    if free - size < _RESERVE:
        raise OSError(f"{free:,} bytes are free, of which {_RESERVE:,} are left to others")
    descriptor, name = tempfile.mkstemp(prefix="cache-", dir=folder)
    try:
        os.unlink(name)
        os.posix_fallocate(descriptor, 0, size)
        # unlike Python's mmap, torch keeps no descriptor open
        flat = torch.from_file(f"/dev/fd/{descriptor}", True, math.prod(shape), dtype=dtype)
    finally:
        os.close(descriptor)
    return flat.view(*shape)
