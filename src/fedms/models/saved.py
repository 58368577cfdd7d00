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
from fedms.core.rows import Rows
from fedms.core.tensors import Tensors, deserialise
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
class SavedModel:
    """A model read from files. It predicts as the client's own does, to rounding.

    Args:
        learner: the foundation model of the run, which has slots for the experts.
        expert: the local expert, or the only one.
        partner, gate: the global expert and the gate of a mixture.
        facts: of `prior.json`.
        statistics: of `statistics.safetensors`, with the client's own means.
    """

    learner: ModelLearner
    expert: Expert
    partner: Expert | None
    gate: Tensors | None
    facts: dict[str, Any]
    statistics: Tensors

    @classmethod
    def load(cls, learner: ModelLearner, adapters: Path, own: Path | None) -> SavedModel:
        """Read what `outcome.Outcome` wrote.

        Args:
            learner: of the same foundation model, head and adapters' rank.
            adapters: the folder of what all clients have.
            own: the folder of what one has; None for somebody who took no part.

        Raises:
            UserError: if files are missing, damaged, or of another model.
        """
        shared = _expert(learner, adapters / "global")
        local = _expert(learner, own / "local") if own else None
        gate = _tensors(own / "gate" / "gate.safetensors") if own else {}
        mixture = bool(local and shared and gate)
        expert = local or shared
        if expert is None:
            raise UserError(f"got {adapters}, which has no expert; expected the adapters of a run")
        place = own or adapters
        statistics = _tensors(adapters / "statistics.safetensors")
        statistics |= _tensors(place / "means.safetensors")
        facts = _facts(place / "prior.json", learner.head.classes)
        partner = shared if mixture else None
        return cls(learner, expert, partner, gate if mixture else None, facts, statistics)

    @torch.no_grad()
    def predict(self, rows: Rows) -> Opinions:
        """What it says of rows, of which it does not see the labels."""
        learner = self.learner
        features = learner.features(self.expert, rows)[None]
        own = self._own(self.expert, "local")
        logits = learner.logits(features, own)[0]
        constants = self._constants(rows)
        if constants is None:
            said = F.log_softmax(logits, -1).cpu()
            return Opinions(self._calibrated(rows, logits, logits, None, said))
        assert self.gate is not None
        gate = {name: t.to(features.device) for name, t in alone(self.gate).items()}
        mixed, _ = learner.mix(features, own, gate, constants.take(None))
        weight = gate_weights(gate, constants.frozen[None])[0, :, 0].exp().cpu()
        first, second = (F.log_softmax(x, -1).float().cpu() for x in (constants.logits, logits))
        personal = self._calibrated(rows, constants.logits, logits, weight, mixed[0].cpu())
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

    def _constants(self, rows: Rows) -> Constants | None:
        if self.partner is None:
            return None
        features, frozen = self.learner.features(self.partner, rows), self.learner.frozen(rows)
        logits = self.learner.logits(features[None], self._own(self.partner, "global"))[0]
        return Constants(frozen, features, logits)

    def _calibrated(
        self, rows: Rows, shared: Tensor, own: Tensor, weight: Tensor | None, mixed: Tensor
    ) -> Tensor:
        """By weights of evidence, where the model has them; as mixed otherwise."""
        weights = self.facts["calibration"]
        if weights is None:
            return mixed
        counted = torch.tensor([self.facts["log_prior"], self.facts["unseen"]])
        even = torch.full((len(rows),), 0.5) if weight is None else weight
        both = shared.float().cpu(), own.float().cpu()
        known = evidence(*both, even, self._by_statistics(rows), counted)
        order = [weights[name] for name in calibration.EVIDENCE]
        return calibration.log_probabilities(known, torch.tensor(order))

    def _by_statistics(self, rows: Rows) -> Tensor:
        """`(rows, classes)`, see `Discriminant.scores`; zeros without class statistics."""
        said = self.statistics
        if not said:
            return torch.zeros(len(rows), self.learner.head.classes)
        whitened = F.normalize(self.learner.frozen(rows).cpu(), dim=-1) @ said["whitening"].T
        means = said["means"]
        return whitened @ means.T - means.square().sum(-1) / 2 + said["bias"]


def _expert(learner: ModelLearner, folder: Path) -> Expert | None:
    """The inverse of `save_expert`; None where nothing was written."""
    if not folder.is_dir():
        return None
    names = ("adapter_model", "head", "mixers", "likeness", "beneath")
    found = {name: _tensors(folder / f"{name}.safetensors") for name in names}
    tensors = {**found["adapter_model"], **found["head"], **found["mixers"]}
    known = {**learner.layout.shapes}
    if unknown := sorted((tensors.keys() | found["beneath"].keys()) - known.keys()):
        raise UserError(
            f"got {folder} with a tensor {unknown[0]!r} for which the foundation model has no "
            "place; expected adapters of the same model and lora.targets"
        )
    return Expert(tensors, beneath=found["beneath"], likeness=found["likeness"].get("likeness"))


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
    """What `save_prior` wrote; nothing is added or weighed where there is none."""
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
        or any(len(found.get(name) or ()) != classes for name in ("log_prior", "unseen"))
        or (weights is not None and {*weights} != {*calibration.EVIDENCE})
    ):
        raise UserError(f"got {path}, which is not of a model with {classes} classes")
    return {**none, **found}
