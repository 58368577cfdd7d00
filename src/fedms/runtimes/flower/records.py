"""fedms' messages as Flower's records, and back: bytes that `messages.decode` reads.

Tensors are an `ArrayRecord` of float32 arrays, all else is a `ConfigRecord`. Nothing here needs
torch, for a process that only passes a message on would spend most of its time importing it.
"""

from __future__ import annotations

import ast
import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

_TENSORS, _WORDS = "tensors", "words"
_NAMES = ("schema", "kind", "facts")
_MAGIC = b"\x93NUMPY"
_LONGEST = 10_000


class RecordError(ValueError):
    """Records that are none of fedms', and why."""


def to_records(data: bytes) -> RecordDict:
    """Of a message, as `messages.encode` wrote it."""
    (length,) = struct.unpack_from("<Q", data)
    words = json.loads(data[8 : 8 + length])["__metadata__"]
    return join(words, safetensors.numpy.load(data))


def to_bytes(content: RecordDict) -> bytes:
    """A message as `messages.decode` reads it, which checks what it says.

    Raises:
        RecordError: if the records are not as `join` makes them.
    """
    words, arrays = part(content)
    return safetensors.numpy.save(arrays, words)


def join(words: Mapping[str, str], arrays: Mapping[str, NDArray[np.float32]]) -> RecordDict:
    """A message's words and arrays as records."""
    found = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    return RecordDict({_TENSORS: found, _WORDS: ConfigRecord(dict(words))})


def part(content: RecordDict) -> tuple[dict[str, str], dict[str, NDArray[np.float32]]]:
    """What `join` joined; arrays are of the records' own memory, and read-only.

    Raises:
        RecordError: if the records are anything else.
    """
    if set(content) != {_TENSORS, _WORDS}:
        raise RecordError(f"got records {sorted(content)}; expected {_TENSORS} and {_WORDS}")
    arrays, words = content[_TENSORS], content[_WORDS]
    if not isinstance(arrays, ArrayRecord) or not isinstance(words, ConfigRecord):
        raise RecordError("got records of other types; expected arrays and words")
    if set(words) != {*_NAMES} or not all(isinstance(word, str) for word in words.values()):
        raise RecordError(f"got words {sorted(words)}; expected {', '.join(_NAMES)}")
    known = {name: str(words[name]) for name in _NAMES}
    return known, {name: _array(name, array) for name, array in arrays.items()}


def _array(name: str, array: Any) -> NDArray[np.float32]:
    """A float32 array, read from NumPy's format without its reader.

    That would make room for whatever shape a header claims before it looks how much there is.
    """
    data, shape = array.data, tuple(array.shape)
    try:
        if data[:6] != _MAGIC or data[6] not in (1, 2):
            raise ValueError("no array")
        wide = 2 if data[6] == 1 else 4
        start = 8 + wide + int.from_bytes(data[8 : 8 + wide], "little")
        if start > _LONGEST:
            raise ValueError(f"a header of {start} bytes")
        header = ast.literal_eval(data[8 + wide : start].decode("latin1"))
        if header != {"descr": "<f4", "fortran_order": False, "shape": shape}:
            raise ValueError(f"header {header}")
        if len(data) - start != 4 * math.prod(shape):
            raise ValueError(f"{len(data) - start} bytes for shape {shape}")
        return np.frombuffer(data, dtype="<f4", offset=start).reshape(shape)
    except (ValueError, SyntaxError, LookupError, TypeError, RecursionError, MemoryError) as error:
        raise RecordError(f"got {name[:100]!r}, which is no float32 array: {error}") from None
