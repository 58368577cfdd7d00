"""Coverage-guided fuzzing of what reads words from elsewhere.

    python fuzz/fuzz.py TARGET [SECONDS]

Targets: `message` (its bytes), `facts` (what it says, and the screening of updates), `array` (an
array in Flower's records), `config` (TOML, and settings on a command line). Whatever comes in, it
must be read, or refused with the error that says so. Starts from `fuzz/corpus/TARGET`; what leads
to new places is kept in `build/fuzz/TARGET`; an input that ends in another error is written to
`build/fuzz`, and ends it.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["fedms"]):
    import tomllib

    import torch
    from flwr.app import Array, ArrayRecord

    from fedms.config import ConfigError, load_config, validate
    from fedms.core.algorithm import ClientInfo, ClientUpdate, RoundPlan, Score
    from fedms.core.costs import Costs
    from fedms.core.rows import ClientSizes
    from fedms.core.screening import reason_to_reject
    from fedms.runtimes import messages, service, site
    from fedms.runtimes.flower import nodes
    from fedms.runtimes.rounds import Answer

HERE = Path(__file__).parent
WORK = HERE.parent / "build" / "fuzz"
_NAMES = frozenset({"global/a", "calibration/rows"})
_PLAN = RoundPlan(0, 1, 1, 0, 1.0, 1, broadcast=_NAMES, upload=_NAMES)
_INFO = ClientInfo("a", 8, validation=2)
_SHAPES = {"global/a": (2, 3), "calibration/rows": (1,)}
_WHOLE = {name: torch.ones(shape) for name, shape in _SHAPES.items()}
_TENSORS: list[dict[str, torch.Tensor]] = [
    _WHOLE,
    {},
    {**_WHOLE, "global/a": torch.full((2, 3), float("nan"))},
    {**_WHOLE, "global/a": torch.ones(3)},
    {**_WHOLE, "calibration/rows": torch.ones(1, dtype=torch.float64)},
]
_UPDATE = ClientUpdate("a", 0, 8, _WHOLE, Score(1, 2, 0.5), 1, 6)
_COSTS = messages.write(Costs())
_FACTS: dict[str, dict[str, Any]] = {
    "update": dict(service.of_answer(Answer(_UPDATE, Costs())).facts),
    "scores": {
        "scores": {"test": {"personal": {"a": messages.write(Score(1, 2, 0.5))}}},
        "costs": _COSTS,
    },
    "hello": {
        "client": messages.write(_INFO),
        "sizes": messages.write(ClientSizes("a", 8, 2, 0, 2)),
    },
}
_ODD: list[Any] = [None, True, -1, 0, 1 << 70, 1e308, float("nan"), "", "a" * 400, [], [[]], {}]


def message(data: bytes) -> None:
    """The bytes of a message."""
    try:
        _read(messages.decode(data))
    except messages.MessageError:
        return


def facts(data: bytes) -> None:
    """A true message in which some facts are others, with true tensors or odd ones beside it."""
    known = atheris.FuzzedDataProvider(data)
    kind = known.PickValueInList(sorted(_FACTS))
    found = copy.deepcopy(_FACTS[kind])
    for _ in range(known.ConsumeIntInRange(1, 4)):
        _change(found, known)
    tensors = known.PickValueInList(_TENSORS)
    text = json.dumps(found)
    try:
        words = {"schema": str(messages.SCHEMA), "kind": kind, "facts": text}
        _read(messages.of_words(words, tensors))
    except messages.MessageError:
        return


def _change(value: Any, known: Any) -> None:
    """Something in nested lists and dictionaries is taken away, or becomes something else."""
    keys = sorted(value) if isinstance(value, dict) else list(range(len(value)))
    if not keys:
        return
    key = known.PickValueInList(keys)
    if isinstance(value[key], dict | list) and known.ConsumeBool():
        _change(value[key], known)
    elif known.ConsumeBool():
        value[key] = copy.deepcopy(known.PickValueInList(_ODD))
    elif known.ConsumeBool():
        value[key] = known.ConsumeFloat() if known.ConsumeBool() else known.ConsumeInt(9)
    elif known.ConsumeBool():
        value[key] = known.ConsumeUnicodeNoSurrogates(300)
    else:
        del value[key]


def _read(said: messages.Message) -> None:
    """As everything that a message can be."""
    for read in (service.read_answer, service.read_scores, service.read_state, site.read_hello):
        try:
            found = read(said)
        except messages.MessageError:
            continue
        if isinstance(found, Answer):
            reason_to_reject(found.update, _PLAN, _SHAPES, _INFO)


def array(data: bytes) -> None:
    """An array of an update, as it is stored; the last byte says which shape it claims."""
    content = nodes.pack(messages.Message("update"))
    shape = ((2, 3), (6,), (), (1 << 40,))[data[-1] % 4 if data else 0]
    found = Array("float32", shape, "numpy.ndarray", data[:-1])
    content["tensors"] = ArrayRecord({"a": found})
    try:
        nodes.unpack(content)
    except messages.MessageError:
        return


def config(data: bytes) -> None:
    """A configuration file, or settings, a line each."""
    text = data.decode("utf-8", errors="replace")
    try:
        if text.startswith("\n"):
            load_config(None, text.split("\n")[1:])
        else:
            validate(_toml(text))
    except ConfigError:
        return


def _toml(text: str) -> dict[str, Any]:
    """As `load_config` reads a file; what is no TOML is not ours to refuse."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError):
        return {}


TARGETS: dict[str, Callable[[bytes], None]] = {
    "message": message,
    "facts": facts,
    "array": array,
    "config": config,
}


def main() -> None:
    """Fuzz one target."""
    target, seconds = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "200"
    seeds, found = HERE / "corpus" / target, WORK / target
    found.mkdir(parents=True, exist_ok=True)
    words = [
        f"-max_total_time={seconds}",
        f"-artifact_prefix={WORK}/{target}-",
        "-max_len=20000",
        "-len_control=0",
    ]
    words += ["-timeout=30", "-rss_limit_mb=4096", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *words, str(found), str(seeds)], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
