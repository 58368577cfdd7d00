"""A client's model as files, without the client's rows: what `export` wrote, put to use."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from fedms.core import calibration
from fedms.core.algorithm import Expert
from fedms.core.errors import UserError
from fedms.core.layout import Shapes
from fedms.core.rows import Rows
from fedms.core.tensors import Tensors, deserialise
from fedms.models.adapters import lacking
from fedms.models.export import FILES
from fedms.models.gate import gate_weights
from fedms.models.heads import VECTORS
from fedms.models.learner import ModelLearner
from fedms.models.mixture import evidence
from fedms.models.resident import Constants, Own, alone

_LONGEST = 1 << 31
"""Bytes of a file of tensors, at most."""


@dataclass(frozen=True, eq=False)
class Opinions:
    """What a model and its parts say of rows, on the CPU.

    Args:
        personal: log-probabilities `(rows, classes)` of the model.
        shared, own: of the global and the local expert alone, where it has both.
        gate_weight: `(rows,)`, the gate's weight on the global expert, where it has one.
    """

    personal: Tensor
    shared: Tensor | None = None
    own: Tensor | None = None
    gate_weight: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Seen:
    """Features of rows, `(rows, width)`, that a model needs.

    Args:
        own: under its expert.
        partner: under its partner, where it has one.
        frozen: under the foundation model, where it asks for that.
    """

    own: Tensor
    partner: Tensor | None
    frozen: Tensor | None


@dataclass(frozen=True, eq=False)
class Common:
    """What all models of a run have in common, read once.

    Args:
        learner: the foundation model of the run, which has slots for the experts.
        folder: of the run's adapters.
        expert: the global one, where there is one.
        statistics: of `statistics.safetensors`.
    """

    learner: ModelLearner
    folder: Path
    expert: Expert | None
    statistics: Tensors

    @classmethod
    def load(cls, learner: ModelLearner, folder: Path) -> Common:
        """Read what `outcome.Outcome` wrote.

        Args:
            learner: of the same foundation model, head and adapters' rank.
            folder: of what all clients have.

        Raises:
            UserError: if files are missing, damaged, or of another model.
        """
        _expect_all(folder)
        expert = _expert(learner, folder / "global")
        return cls(learner, folder, expert, _statistics(learner, folder / "statistics.safetensors"))


@dataclass(frozen=True, eq=False)
class SavedModel:
    """A model read from files. It predicts as the client's own does, to rounding.

    Args:
        learner: the foundation model of the run, which has slots for the experts.
        expert: the local expert, or the only one.
        partner, gate: the global expert and the gate of a mixture.
        facts: of `prior.json`.
        statistics: of `statistics.safetensors`, with the client's own means.
        bytes: of what it has for itself.
    """

    learner: ModelLearner
    expert: Expert
    partner: Expert | None
    gate: Tensors | None
    facts: dict[str, Any]
    statistics: Tensors
    bytes: int = 0

    @classmethod
    def load(cls, common: Common, own: Path | None) -> SavedModel:
        """Read what a client has.

        Args:
            common: what all have.
            own: the folder of what one has; None for somebody who took no part.

        Raises:
            UserError: if files are missing, damaged, or of another model.
        """
        learner, shared = common.learner, common.expert
        if own:
            _expect_all(own)
        local = _expert(learner, own / "local") if own else None
        gate = _gate(learner, own / "gate" / "gate.safetensors") if own else {}
        mixture = bool(local and shared and gate)
        expert = local or shared
        if expert is None:
            raise UserError(
                f"got {common.folder}, which has no expert; expected the adapters of a run"
            )
        place = own or common.folder
        means = _statistics(learner, place / "means.safetensors")
        facts = _facts(place / "prior.json", learner.head.classes)
        held = [means, gate, *((local.tensors, local.beneath) if local else ())]
        return cls(
            learner,
            expert,
            shared if mixture else None,
            gate if mixture else None,
            facts,
            {**common.statistics, **means},
            sum(t.nbytes for tensors in held for t in tensors.values()),
        )

    @property
    def sees_frozen(self) -> bool:
        """Whether it needs the foundation model's features: for a gate, or class statistics."""
        counted = self.facts["calibration"] is not None and bool(self.statistics)
        return self.partner is not None or counted

    @torch.no_grad()
    def predict(self, rows: Rows) -> Opinions:
        """What it says of rows, of which it does not see the labels."""
        learner = self.learner
        return self.judge(
            Seen(
                learner.features(self.expert, rows),
                None if self.partner is None else learner.features(self.partner, rows),
                learner.frozen(rows) if self.sees_frozen else None,
            )
        )

    @torch.no_grad()
    def judge(self, seen: Seen) -> Opinions:
        """What it says of rows with these features."""
        learner, features = self.learner, seen.own[None]
        own = self._own(self.expert, "local")
        logits = learner.logits(features, own)[0]
        constants = self._constants(seen)
        if constants is None:
            said = F.log_softmax(logits, -1).cpu()
            return Opinions(self._calibrated(seen, logits, logits, None, said))
        assert self.gate is not None
        gate = {name: t.to(features.device) for name, t in alone(self.gate).items()}
        mixed, _ = learner.mix(features, own, gate, constants.take(None))
        weight = gate_weights(gate, constants.frozen[None])[0, :, 0].exp().cpu()
        first, second = (F.log_softmax(x, -1).float().cpu() for x in (constants.logits, logits))
        personal = self._calibrated(seen, constants.logits, logits, weight, mixed[0].cpu())
        return Opinions(personal, first, second, weight)

    def _own(self, expert: Expert, role: str) -> Own:
        """See `Resident.own`, of files."""
        learner, device = self.learner, self.learner.backbone.device
        heads = {
            n: t[None].to(device) for n, t in expert.tensors.items() if n in learner.head.shapes
        }
        if "vectors" in self.statistics:
            heads[VECTORS] = self.statistics["vectors"][None].to(device)
        if role not in self.facts["added_to"]:
            return Own(heads, None)
        return Own(heads, torch.tensor(self.facts["log_prior"])[None, None].to(device))

    def _constants(self, seen: Seen) -> Constants | None:
        if self.partner is None or seen.partner is None or seen.frozen is None:
            return None
        own = self._own(self.partner, "global")
        logits = self.learner.logits(seen.partner[None], own)[0]
        return Constants(seen.frozen, seen.partner, logits)

    def _calibrated(
        self, seen: Seen, shared: Tensor, own: Tensor, weight: Tensor | None, mixed: Tensor
    ) -> Tensor:
        """By weights of evidence, where the model has them; as mixed otherwise."""
        weights = self.facts["calibration"]
        if weights is None:
            return mixed
        counted = torch.tensor([self.facts["log_prior"], self.facts["unseen"]])
        even = torch.full((len(mixed),), 0.5) if weight is None else weight
        both = shared.float().cpu(), own.float().cpu()
        known = evidence(*both, even, self._by_statistics(seen), counted)
        order = [weights[name] for name in calibration.EVIDENCE]
        return calibration.log_probabilities(known, torch.tensor(order))

    def _by_statistics(self, seen: Seen) -> Tensor:
        """`(rows, classes)`, see `Discriminant.scores`; zeros without class statistics."""
        said = self.statistics
        if not said or seen.frozen is None:
            return torch.zeros(len(seen.own), self.learner.head.classes)
        whitened = F.normalize(seen.frozen.cpu(), dim=-1) @ said["whitening"].T
        means = said["means"]
        return whitened @ means.T - means.square().sum(-1) / 2 + said["bias"]


def _expect_all(folder: Path) -> None:
    """That no file of a model is lost, where they are listed: not by earlier versions."""
    path = folder / FILES
    if not path.exists():
        return
    try:
        listed = [str(name) for name in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"got {path}, which cannot be read: {error}") from None
    if lost := [name for name in listed if not (folder / name).is_file()]:
        raise UserError(
            f"got no {folder / lost[0]}, which is part of the model in {folder}; expected all that "
            f"{FILES} lists; try a copy of the folder"
        )


def _gate(learner: ModelLearner, path: Path) -> dict[str, Tensor]:
    layout = learner.layout
    tensors, names = _tensors(path), {*layout.gate_adapter, *layout.gate_head}
    if tensors:
        _expect_shapes(path, tensors, {name: layout.shapes[name] for name in names}, every=True)
    return tensors


def _statistics(learner: ModelLearner, path: Path) -> dict[str, Tensor]:
    classes, width = learner.layout.classes, learner.layout.width
    each = {"means": (classes, width), "vectors": (classes, width)}
    tensors = _tensors(path)
    _expect_shapes(path, tensors, {**each, "whitening": (width, width), "bias": (classes,)})
    return tensors


def _expect_shapes(path: Path, tensors: Tensors, shapes: Shapes, *, every: bool = False) -> None:
    """That tensors are floats of these shapes; `every`: all of them."""
    if every and tensors.keys() != shapes.keys():
        raise UserError(f"got {path} with {sorted(tensors)}; expected {sorted(shapes)}")
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shapes.get(name) or not tensor.is_floating_point():
            raise UserError(
                f"got {path} with {name!r} of {tensor.dtype}, {tuple(tensor.shape)}; expected "
                f"floats, {shapes.get(name)}: what this foundation model and these classes need"
            )


def _expert(learner: ModelLearner, folder: Path) -> Expert | None:
    """The inverse of `save_expert`; None where nothing was written."""
    if not folder.is_dir():
        return None
    names = ("adapter_model", "head", "mixers", "likeness", "beneath")
    found = {name: _tensors(folder / f"{name}.safetensors") for name in names}
    tensors = {**found["adapter_model"], **found["head"], **found["mixers"]}
    layout = learner.layout
    if unknown := sorted((tensors.keys() | found["beneath"].keys()) - layout.shapes.keys()):
        raise UserError(
            f"got {folder} with a tensor {unknown[0]!r} for which the foundation model has no "
            "place; expected adapters of the same model and lora.targets"
        )
    for name in ("adapter_model", "beneath"):
        _expect_pairs(learner, folder / f"{name}.safetensors", found[name])
    if found["head"]:
        _expect_shapes(folder / "head.safetensors", found["head"], learner.head.shapes, every=True)
    _expect_shapes(folder / "mixers.safetensors", found["mixers"], layout.shapes)
    if missing := [n for block in layout.mixers for n in lacking(block, found["mixers"])]:
        raise UserError(
            f"got {folder / 'mixers.safetensors'} without {missing[0]!r}; expected all of a block"
        )
    _expect_shapes(
        folder / "likeness.safetensors", found["likeness"], {"likeness": (layout.width,)}
    )
    return Expert(tensors, beneath=found["beneath"], likeness=found["likeness"].get("likeness"))


def _expect_pairs(learner: ModelLearner, path: Path, tensors: Tensors) -> None:
    """That adapters are whole pairs (A, B), each of a rank of its own."""
    shapes: dict[str, tuple[int, ...]] = {}
    for a, b in learner.layout.pairs:
        if a not in tensors and b not in tensors:
            continue
        if a not in tensors or b not in tensors:
            raise UserError(f"got {path} without {(b if a in tensors else a)!r}; expected both")
        (_, width), (height, _) = learner.layout.shapes[a], learner.layout.shapes[b]
        rank = tensors[a].shape[0] if tensors[a].ndim else 0
        shapes |= {a: (rank, width), b: (height, rank)}
    _expect_shapes(path, tensors, shapes)


def _tensors(path: Path) -> dict[str, Tensor]:
    """Of a file; nothing where there is none."""
    try:
        if path.stat().st_size > _LONGEST:
            raise UserError(f"got {path} of {path.stat().st_size:,} bytes; expected less than 2 GB")
        return deserialise(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"got {path}, which cannot be read: {error}") from None


def _facts(path: Path, classes: int) -> dict[str, Any]:
    """What `prior_file` made; nothing is added or weighed where there is none."""
    none: dict[str, Any] = {"added_to": [], "log_prior": [], "unseen": [], "calibration": None}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return none
    except (OSError, ValueError) as error:
        raise UserError(f"got {path}, which cannot be read: {error}") from None
    weights = found.get("calibration") if isinstance(found, dict) else None
    if (
        not isinstance(found, dict)
        or any(not _numbers(found.get(name), classes) for name in ("log_prior", "unseen"))
        or not isinstance(found.get("added_to", []), list)
        or (
            weights is not None
            and not (
                isinstance(weights, dict)
                and {*weights} == {*calibration.EVIDENCE}
                and _numbers([*weights.values()], len(weights))
            )
        )
    ):
        raise UserError(f"got {path}, which is not of a model with {classes} classes")
    return {**none, **found}


def _numbers(found: Any, count: int) -> bool:
    """Whether JSON has a list of so many."""
    return (
        isinstance(found, list)
        and len(found) == count
        and all(isinstance(number, int | float) for number in found)
    )
