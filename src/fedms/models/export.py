"""Experts and gates as files that others can read: PEFT's layout, and safetensors with JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from torch import Tensor

from fedms.core import calibration
from fedms.core.algorithm import Expert, View
from fedms.core.rows import ClientData
from fedms.core.tensors import Tensors, serialise
from fedms.models.adapters import merge
from fedms.models.backbone import load_backbone
from fedms.models.learner import ModelLearner
from fedms.models.mixture import class_evidence


def save_expert(folder: Path, learner: ModelLearner, expert: Expert, base: str) -> None:
    """Write an expert into a folder (made if needed), as PEFT writes an adapter.

    `PeftModel.from_pretrained(foundation_model, folder)` loads it without fedms. A linear head, if
    the expert has one, stands beside it in `head.safetensors` (`classifier.weight` and
    `classifier.bias`). An expert that adapts nothing is the foundation model: its folder is empty.

    Args:
        folder: where.
        learner: whose slots the tensors fit.
        expert: whatever lies beneath its adapters is joined with them, at a higher rank; but with
            what weighs both (mixers, likeness), which PEFT does not know, that and what lies
            beneath stand beside them in files of their own.
        base: name of the foundation model, for the configuration.
    """
    folder.mkdir(exist_ok=True)
    heads = {name: t for name, t in expert.tensors.items() if name in learner.head.shapes}
    mixers = {name: t for name, t in expert.tensors.items() if name in learner.slots.mixer_shapes}
    own = {name: t for name, t in expert.tensors.items() if name not in mixers}
    likeness = {} if expert.likeness is None else {"likeness": expert.likeness}
    joined, apart = ({}, expert.beneath) if mixers or likeness else (expert.beneath, {})
    adapters = learner.slots.of_rank(learner.adapters(own, joined))  # PEFT knows one rank
    beside = {"head": heads, "mixers": mixers, "likeness": likeness, "beneath": apart}
    for name, tensors in beside.items():
        if tensors:
            (folder / f"{name}.safetensors").write_bytes(serialise(tensors))
    if adapters:
        learner.slots.save_config(folder, adapters, base)
        metadata = {"format": "pt"}
        (folder / "adapter_model.safetensors").write_bytes(serialise(adapters, metadata))


def save_prior(path: Path, learner: ModelLearner, view: View, data: ClientData) -> None:
    """Write what the client's counts say of classes, and how its model uses that, as JSON.

    That is: to whose logits `log_prior` is added, and the weights of evidence with which the model
    is calibrated (`core.calibration`; null where it is not). Nothing is written where it uses none.
    """
    experts = {"global": view.partner, "local": view.expert}
    added_to = [name for name, expert in experts.items() if expert and expert.prior]
    if not added_to and view.calibration is None:
        return
    prior, unseen = class_evidence(
        data.train.labels, learner.head.classes, learner.mixing.smoothing
    ).tolist()
    weights = None
    if view.calibration is not None:
        weights = dict(zip(calibration.EVIDENCE, view.calibration.tolist(), strict=True))
    facts = {"added_to": added_to, "log_prior": prior, "unseen": unseen, "calibration": weights}
    path.write_text(json.dumps(facts) + "\n")


def save_statistics(path: Path, learner: ModelLearner, view: View) -> None:
    """Write what class statistics say, if the view has any, for all clients alike.

    `whitening` `(width, width)` and `means` `(classes, width)`: the score of a class is the dot
    product of its mean and the whitened feature (of the foundation model, of unit length), less
    half of the mean's squared length, plus `bias` `(classes,)`. `vectors` `(classes, width)`, if
    they are there, stand in place of embeddings of class prompts in experts' logits; beside a
    linear head, 20 times the cosine to them is added to what it says.
    """
    said = view.statistics
    if said is not None:
        means = said.means(_prompts(learner))
        tensors = {"whitening": said.matrix, "means": means, "bias": said.bias}
        for vectors in learner.vectors(view).values():
            tensors["vectors"] = vectors[0].cpu()
        path.write_bytes(serialise(tensors))


def _prompts(learner: ModelLearner) -> Tensor | None:
    prompts = learner.head.prompts
    return None if prompts is None else prompts.cpu()


def save_means(path: Path, learner: ModelLearner, view: View, data: ClientData) -> None:
    """Write a client's `means` in place of those of `save_statistics`, if it has its own."""
    said = view.statistics
    if said is not None and said.personal:
        own = learner.frozen(data.train).cpu()
        means = said.drawn(own, torch.from_numpy(data.train.labels), _prompts(learner))
        path.write_bytes(serialise({"means": means}))


def save_merged(base: str, adapters: Path, folder: Path) -> None:
    """Write the foundation model with an expert in its weights, as plain transformers models are.

    Args:
        base: the foundation model, as `load_backbone` takes it.
        adapters: PEFT's folder of the expert.
        folder: is made.
    """
    plain = load_backbone(base, device="cpu")
    merge(plain.model, adapters).save_pretrained(str(folder))
    plain.processor.save_pretrained(str(folder))


def save_gate(folder: Path, learner: ModelLearner, gate: Tensors) -> None:
    """Write `gate.safetensors`, and `gate.json` with the width and how experts are mixed."""
    folder.mkdir(exist_ok=True)
    (folder / "gate.safetensors").write_bytes(serialise(gate))
    bottleneck, width = gate["down.weight"].shape
    facts = {"width": width, **dataclasses.asdict(learner.mixing), "bottleneck": bottleneck}
    (folder / "gate.json").write_text(json.dumps(facts, indent=2) + "\n")
