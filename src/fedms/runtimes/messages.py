"""Messages between a server and whoever has clients: facts as JSON, tensors beside them.

One vocabulary, over a pipe to another process as over an engine to another site. What arrives may
come from anybody: it is read strictly, and what does not fit is a `MessageError` that says why.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError

from fedms.core.tensors import Tensors, deserialise, serialise

SCHEMA = 1
"""Of these messages; another one is refused."""
_LONGEST_HEADER = 10_000_000
"""Bytes of a message's header, at most; names and shapes of ten thousand tensors take one."""


class MessageError(ValueError):
    """A message that cannot be read, and why."""


@dataclass(frozen=True, eq=False)
class Message:
    """What is asked or answered.

    Args:
        kind: what it is.
        facts: JSON values by name; `write` and `fact` turn dataclasses into them and back.
        tensors: by name.
    """

    kind: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=dict)

    def fact(self, name: str, kind: Any) -> Any:
        """One fact as a built-in type or a dataclass without tensors, read strictly.

        Raises:
            MessageError: if it is missing, or something is missing in it, too much or of another
                type.
        """
        if name not in self.facts:
            raise MessageError(f"got a message {self.kind!r} without {name}")
        try:
            return _adapter(kind).validate_json(json.dumps(self.facts[name]), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join([name, *map(str, first["loc"])])
            raise MessageError(f"got {where} of a message {self.kind!r}: {first['msg']}") from None


def write(value: Any) -> Any:
    """JSON values of a built-in value or a dataclass without tensors."""
    return _adapter(cast(Hashable, type(value))).dump_python(value, mode="json")


def words(message: Message) -> dict[str, str]:
    """All of a message but its tensors."""
    facts = json.dumps(message.facts)  # of an update that diverged, a loss may be no number
    return {"schema": str(SCHEMA), "kind": message.kind, "facts": facts}


def of_words(words: Mapping[str, str], tensors: Tensors) -> Message:
    """The message that has these `words`.

    Raises:
        MessageError: if there is none.
    """
    try:
        if words["schema"] != str(SCHEMA):
            raise ValueError(f"schema {words['schema']!r}; expected {SCHEMA}")
        facts = json.loads(words["facts"])
        if not isinstance(facts, dict):
            raise TypeError("facts without names")
        return Message(words["kind"], facts, tensors)
    except (LookupError, ValueError, TypeError, RecursionError) as error:
        raise MessageError(f"got what is no message: {error}") from None


def encode(message: Message) -> bytes:
    """As the bytes of a safetensors file with the rest in its header."""
    return serialise(message.tensors, words(message))


def decode(data: bytes) -> Message:
    """What `encode` made.

    Raises:
        MessageError: if it is anything else.
    """
    try:
        (length,) = struct.unpack_from("<Q", data)
        if length > min(_LONGEST_HEADER, len(data) - 8):
            raise ValueError(f"a header of {length} bytes in {len(data)}")
        found = json.loads(data[8 : 8 + length])["__metadata__"]
        return of_words(found, deserialise(data))
    except (
        struct.error,
        LookupError,
        ValueError,
        TypeError,
        RecursionError,
        SafetensorError,
    ) as error:
        if isinstance(error, MessageError):
            raise
        raise MessageError(f"got what is no message: {error}") from None


@lru_cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, kind))
