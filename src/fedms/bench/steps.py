"""Training steps at every depth, with the prefix kept, beside full depth without a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedms.bench import plain
from fedms.bench.rows import Row, alternate
from fedms.core.algorithm import Expert, Fit, View
from fedms.core.rows import ClientData, Rows
from fedms.machine import pick_precision
from fedms.models import AdapterSlots, Backbone, Mixing, ModelLearner, PromptHead, Room, Training
from fedms.models.meter import Meter

_PEER = "plain transformers and PEFT, all blocks, {}, no cache"
_CLASSES = 77
_LONGEST = 60
_PLENTY = 2 * 10**9


@dataclass(frozen=True)
class Case:
    """A model and its batches.

    Args:
        tower: `text`, `vision`, `large` (CLIP ViT-L/14's tower) or `small` (glyphclip's).
        rows: a batch.
        length: tokens a text; 0: eight batches of texts of 4 to 60 tokens, 12 in the median.
        depths: at which it is measured.
        repeats: measurements.
    """

    tower: Literal["text", "vision", "large", "small"]
    rows: int
    length: int = 0
    depths: tuple[int, ...] = ()
    repeats: int = 5


_TOWERS = {
    "vision": (plain.VISION, 512),
    "large": (plain.LARGE, 768),
    "small": (plain.SMALL, 128),
}
"""Vision towers and the width of their features."""
CASES = {
    "text-16": Case("text", 32, 16, (1, 2, 3), 15),
    "text-64": Case("text", 32, 64, (1, 2, 3), 5),
    "vision": Case("vision", 16, 0, (1, 3, 6), 3),
    "large": Case("large", 32, 0, (1, 6, 12), 5),
}


def step_rows(*names: str, device: torch.device) -> Iterator[Row]:
    """Seconds and activation bytes of a step by depth, in float32 and as `auto` computes.

    On a CPU the peer computes in float32, for bfloat16 takes care to pay there; elsewhere as
    fedms does in the row.
    """
    for name in names:
        yield from _step_rows(name, CASES[name], device)


def _step_rows(name: str, case: Case, device: torch.device) -> Iterator[Row]:
    precisions = _precisions(case, device)
    peers = {
        precision: _peer(case, device, precision)
        for precision in (precisions[:1] if device.type == "cpu" else precisions)
    }
    works = {f"peer {precision}": step for precision, (step, _) in peers.items()}
    learners: dict[str, ModelLearner] = {}
    beside: dict[str, str] = {}
    for precision in precisions:
        learner = learner_of(case, precision, device)
        for depth in case.depths:
            kind = f"{name} depth {depth}/{len(learner.slots.groups)} {precision}"
            works[kind], learners[kind] = _ours(learner, case, depth), learner
            beside[kind] = precision if precision in peers else precisions[0]
    activations = {}
    for kind, learner in learners.items():
        learner.spent()
        works[kind]()
        activations[kind] = learner.spent().peak_activation_bytes
    seconds = alternate(works, case.repeats, device)
    for kind, peer in beside.items():
        other = (_PEER.format(peer), seconds[f"peer {peer}"])
        yield Row.of(f"step {kind}", seconds[kind], "s", case.repeats, other)
    for kind, peer in beside.items():
        other = (_PEER.format(peer), peers[peer][1])
        yield Row.of(f"activations {kind}", activations[kind], "bytes", 1, other)


def stack_rows(*, device: torch.device) -> Iterator[Row]:
    """Seconds of a step of eight clients, stacked, beside one client's after another's."""
    clients = 8
    for tower, rows, length, depth in (
        ("small", 8, 0, 1),
        ("small", 32, 0, 1),
        ("small", 8, 0, 3),
        ("text", 8, 16, 1),
        ("text", 32, 16, 1),
        ("text", 16, 16, 3),
        ("text", 16, 0, 3),
    ):
        case = Case(tower, rows, length)  # type: ignore[arg-type]
        mixed = tower == "text" and not length
        repeats = 3 if mixed else 9  # of eight batches each
        for precision in _precisions(case, device):
            learner = learner_of(case, precision, device)
            fits = [fit_of(learner, case, depth, client) for client in range(clients)]
            works: dict[str, Callable[[], object]] = {
                "stacked": partial(learner.fit, fits),
                "alone": partial(_one_by_one, learner, fits),
            }
            seconds = alternate(works, repeats, device)
            what = "texts of mixed lengths" if mixed else tower
            yield Row.of(
                f"{clients} clients, {what}, batch {rows}, depth {depth}, {precision}",
                seconds["stacked"],
                "s",
                repeats,
                ("one client after another", seconds["alone"]),
            )


def _one_by_one(learner: ModelLearner, fits: Sequence[Fit]) -> None:
    for fit in fits:
        learner.fit([fit])


def _precisions(case: Case, device: torch.device) -> list[str]:
    """float32, and what `runtime.precision = "auto"` would take, where it is another."""
    auto = pick_precision("auto", device, _backbone(case).width)
    return ["float32", *(["bfloat16"] if auto == torch.bfloat16 else [])]


def _backbone(case: Case) -> Backbone:
    """The frozen model with random weights."""
    with torch.random.fork_rng(devices=[]):
        if case.tower == "text":
            tokens = SimpleNamespace(pad_token_id=0)
            return Backbone("", "sentence", plain.text_model(), tokens, "mean", 384, _LONGEST)
        shape, width = _TOWERS[case.tower]
        pixels = SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.5] * 3, rescale_factor=1 / 255)
        pixels.do_rescale = pixels.do_normalize = True
        return Backbone("", "clip", plain.clip_model(shape, width), pixels, "cls", width, 0)


def _rows(case: Case, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    mixed = case.tower == "text" and not case.length
    labels = rng.integers(0, _CLASSES, 8 * case.rows if mixed else case.rows)
    if case.tower == "text":
        some = rng.lognormal(np.log(12), 0.5, len(labels)).round().clip(4, _LONGEST)
        lengths = some.astype(int) if mixed else np.full(len(labels), case.length)
        ids = [rng.integers(1000, 30000, count).astype(np.int32) for count in lengths]
        return Rows({"input_ids": ids}, labels)
    side = _TOWERS[case.tower][0]["image_size"]
    pixels = rng.integers(0, 256, (case.rows, 3, side, side)).astype(np.uint8)
    return Rows({"pixel_values": pixels}, labels)


def _classes(width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(_CLASSES, width, generator=generator), dim=-1)


def learner_of(
    case: Case,
    precision: str,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - a constant
) -> ModelLearner:
    """A learner with the case's model, which has room to keep what it likes."""
    backbone = _backbone(case)
    backbone.model.to(device)
    backbone.compute_in(getattr(torch, precision))
    slots = AdapterSlots(backbone.model, backbone.blocks("qv"), 8, 16)
    head = PromptHead(_classes(backbone.width).to(device), 20.0)
    return ModelLearner(
        backbone, slots, head, Training(batch_size=case.rows), Mixing(), Room(_PLENTY)
    )


def _ours(learner: ModelLearner, case: Case, depth: int) -> Callable[[], object]:
    """A client's whole epoch of one step: adapters in, prefix found, step, adapters out."""
    return partial(learner.fit, [fit_of(learner, case, depth)])


def fit_of(learner: ModelLearner, case: Case, depth: int, seed: int = 0) -> Fit:
    """An epoch of a client with the case's rows."""
    rows = _rows(case, seed)
    none = rows.take(np.array([], dtype=np.int64))
    client = ClientData("client", rows, none, none)
    names = learner.layout.expert(depth)
    return Fit(View(Expert(learner.initial_expert(names, 0))), names, client, 1, seed)


def _peer(
    case: Case,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - a constant
    precision: str = "float32",
) -> tuple[Callable[[], object], int]:
    """The peer's step on the same batch, and the activation bytes it saves.

    In bfloat16 its frozen weights are, and its adapters are float32, as PEFT has them by default.
    """
    backbone, rows = _backbone(case), _rows(case)
    backbone.model.to(device, getattr(torch, precision))
    batch: dict[str, Any] = backbone.collate(rows)
    if "input_ids" in batch:  # a tokenizer gives it always
        batch.setdefault("attention_mask", torch.ones_like(batch["input_ids"]))
    labels, classes = torch.from_numpy(rows.labels).to(device), _classes(backbone.width).to(device)
    step = plain.plain_step(backbone.model, classes, batch, labels)
    meter = Meter(backbone.model.parameters)
    with meter.phase("train"), meter.step("peer"):
        step()
    return step, meter.take().peak_activation_bytes
