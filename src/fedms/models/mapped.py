"""Tensors in memory-mapped files that leave nothing behind."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor


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
    numbers = math.prod(shape)
    descriptor, name = tempfile.mkstemp(prefix="cache-", dir=folder)
    try:
        os.posix_fallocate(descriptor, 0, numbers * dtype.itemsize)
        flat = torch.from_file(name, shared=True, size=numbers, dtype=dtype)
    finally:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            os.unlink(name)
    return flat.view(*shape)
