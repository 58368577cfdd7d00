"""Experts and gates as files that others can read: PEFT's layout, and safetensors with JSON."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedms.core import calibration
from fedms.core.algorithm import Expert, View
from fedms.core.errors import UserError
from fedms.core.rows import ClientData
from fedms.core.tensors import Tensors, deserialise, serialise
from fedms.models.adapters import adapted, merge
from fedms.models.backbone import load_backbone
from fedms.models.heads import ContextHead
from fedms.models.learner import ModelLearner
from fedms.models.mixture import class_evidence
from fedms.models.names import spoken
from fedms.models.pretrained import quiet

FILES = "files.json"
"""In a folder of what a client, or what all clients have: all other files of that."""


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


def prior_file(learner: ModelLearner, view: View, data: ClientData) -> bytes:
    """What the client's counts say of classes, and how its model uses that, as JSON.

    That is: to whose logits `log_prior` is added (`local`: also the only expert, of a client that
    has the shared one), and the weights of evidence with which the model is calibrated
    (`core.calibration`; null where it is not). Empty where it uses none.
    """
    experts = {"global": view.partner, "local": view.expert}
    added_to = [name for name, expert in experts.items() if expert and expert.prior]
    if not added_to and view.calibration is None:
        return b""
    prior, unseen = class_evidence(
        data.train.labels, learner.head.classes, learner.mixing.smoothing
    ).tolist()
    weights = None
    if view.calibration is not None:
        weights = dict(zip(calibration.EVIDENCE, view.calibration.tolist(), strict=True))
    facts = {"added_to": added_to, "log_prior": prior, "unseen": unseen, "calibration": weights}
    return f"{json.dumps(facts)}\n".encode()


def statistics_file(learner: ModelLearner, view: View) -> bytes:
    """What class statistics say, for all clients alike; empty if the view has none.

    `whitening` `(width, width)` and `means` `(classes, width)`: the score of a class is the dot
    product of its mean and the whitened feature (of the foundation model, of unit length), less
    half of the mean's squared length, plus `bias` `(classes,)`. `vectors` `(classes, width)`, if
    they are there, stand in place of embeddings of class prompts in experts' logits; beside a
    linear head, 20 times the cosine to them is added to what it says.
    """
    said = view.statistics
    if said is None:
        return b""
    means = said.means(_prompts(learner))
    tensors = {"whitening": said.matrix, "means": means, "bias": said.bias}
    for vectors in learner.vectors(view).values():
        tensors["vectors"] = vectors[0].cpu()
    return serialise(tensors)


def _prompts(learner: ModelLearner) -> Tensor | None:
    prompts = learner.head.prompts
    return None if prompts is None else prompts.cpu()


def means_file(learner: ModelLearner, view: View, data: ClientData) -> bytes:
    """A client's `means` and `vectors`, in place of those of `statistics_file`; empty if none.

    Means where they are its own; vectors where it has a class of which the sums of all had no row.
    """
    said, labels, tensors = view.statistics, torch.from_numpy(data.train.labels), {}
    if said is not None and said.personal:
        own = learner.frozen(data.train).cpu()
        tensors["means"] = said.drawn(own, labels, _prompts(learner))
    if said is not None and said.lacks(labels):
        for vectors in learner.vectors(view, data).values():
            tensors["vectors"] = vectors[0].cpu()
    return serialise(tensors) if tensors else b""


def save_beside(folder: Path, learner: ModelLearner, experts: Mapping[str, Expert]) -> None:
    """Write what adapters need to be used without fedms, into a folder of copies of a run's files.

    That is `model.py`, which joins everything; `classes.safetensors`, where experts look for
    classes when there are no class vectors (in an expert's folder, where it learned them); how
    features are made and what cosines are multiplied by, into `head.json`. The foundation model is
    named there, and in PEFT's configurations, as others know it.

    Args:
        folder: with `head.json`, and a folder for each expert.
        learner: of the run.
        experts: by the names of their folders.
    """
    head, backbone = learner.head, learner.backbone
    facts = json.loads((folder / "head.json").read_text(encoding="utf-8"))
    facts |= {"model": spoken(facts["model"]), "temperature": head.temperature}
    made = {"kind": backbone.kind, "pooling": backbone.pooling, "max_length": backbone.max_length}
    text = json.dumps({**facts, "foundation": made}, indent=2, ensure_ascii=False)
    (folder / "head.json").write_text(f"{text}\n", encoding="utf-8")
    if head.prompts is not None:
        _save_vectors(folder, head.prompts)
    for name, expert in experts.items():
        found = head.learned(expert.tensors) if isinstance(head, ContextHead) else None
        if found is not None:
            _save_vectors(folder / name, found)
        _rename_base(folder / name / "adapter_config.json", facts["model"])
    shutil.copyfile(Path(__file__).with_name("standalone.py"), folder / "model.py")


def _save_vectors(folder: Path, vectors: Tensor) -> None:
    content = serialise({"vectors": vectors.detach().cpu()})
    (folder / "classes.safetensors").write_bytes(content)


def _rename_base(path: Path, name: str) -> None:
    """The foundation model's name in PEFT's configuration."""
    if path.is_file():
        facts = json.loads(path.read_text(encoding="utf-8"))
        text = json.dumps({**facts, "base_model_name_or_path": name}, indent=2)
        path.write_text(f"{text}\n", encoding="utf-8")


def save_merged(base: str, exported: Path, role: str) -> None:
    """Write the foundation model with an expert in its weights, as plain transformers models are.

    Beside it stands what makes logits of its features: `head.json`, and if there are any
    `head.safetensors` (a linear head), `classes.safetensors` (class vectors) and
    `prior.safetensors` (what is added to logits).

    Args:
        base: the foundation model, as `load_backbone` takes it.
        exported: folder with what `save_beside` wrote; `merged` is made in it.
        role: of the expert, `global` or `local`.
    """
    own, folder = exported / role, exported / "merged"
    plain = load_backbone(base, device="cpu")
    with quiet():
        merge(plain.model, own).save_pretrained(str(folder))
        plain.processor.save_pretrained(str(folder))
    facts = json.loads((exported / "head.json").read_text(encoding="utf-8"))
    text = json.dumps({**facts, "expert": role}, indent=2, ensure_ascii=False)
    (folder / "head.json").write_text(f"{text}\n", encoding="utf-8")
    if (own / "head.safetensors").is_file():
        shutil.copyfile(own / "head.safetensors", folder / "head.safetensors")
    names = ("means", "statistics") if facts["kind"] != "context" else ()
    for found in (
        _read(own / "classes.safetensors"),
        *(_read(exported / f"{name}.safetensors") for name in names),
        _read(exported / "classes.safetensors"),
    ):
        if "vectors" in found:
            _save_vectors(folder, found["vectors"])
            break
    prior = exported / "prior.json"
    counted = json.loads(prior.read_text(encoding="utf-8")) if prior.is_file() else {}
    said = role if (exported / "local").is_dir() else "local"
    if said in counted.get("added_to", ()):
        added = {"log_prior": torch.tensor(counted["log_prior"])}
        (folder / "prior.safetensors").write_bytes(serialise(added))


def list_of(folder: Path, but: str | None = None) -> bytes:
    """Which files a model has, as JSON, so that one which is lost is missed.

    Args:
        folder: of the model.
        but: a folder in it that is none of the model's.
    """
    files = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and p.name != FILES)
    # what is being written elsewhere, or was left by who was killed, begins with a dot
    names = sorted(f.as_posix() for f in files if f.parts[0] != but and f.parts[0][0] != ".")
    return f"{json.dumps(names, indent=2)}\n".encode()


def needs_fedms(expert: Path) -> bool:
    """Whether an expert's folder has what PEFT does not know, so that its adapters are not all."""
    return any((expert / f"{n}.safetensors").is_file() for n in ("mixers", "likeness", "beneath"))


def _read(path: Path) -> Tensors:
    return deserialise(path.read_bytes()) if path.is_file() else {}


def peft_model(base: str, adapters: Path) -> Any:
    """A `peft.PeftModel` of the foundation model and an expert, on the CPU; nothing is drawn.

    Raises:
        UserError: if the expert adapts nothing.
    """
    if not (adapters / "adapter_model.safetensors").is_file():
        raise UserError(f"got {adapters}, in which there are no adapters; expected some of a run")
    return adapted(load_backbone(base, device="cpu").model, adapters)


def save_gate(folder: Path, learner: ModelLearner, gate: Tensors) -> None:
    """Write `gate.safetensors`, and `gate.json` with the width and how experts are mixed."""
    folder.mkdir(exist_ok=True)
    (folder / "gate.safetensors").write_bytes(serialise(gate))
    bottleneck, width = gate["down.weight"].shape
    facts = {"width": width, **dataclasses.asdict(learner.mixing), "bottleneck": bottleneck}
    (folder / "gate.json").write_text(json.dumps(facts, indent=2) + "\n")
