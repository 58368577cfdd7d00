"""The card of an exported model: what it is, how good, and how to use it without fedms."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedms import hub
from fedms.models import hub_id, needs_fedms, spoken
from fedms.store.marks import ADAPTED, FEDERATION
from fedms.use import NEW, Models

_ROLES = ("zero_shot", "global", "local", "personal")


@dataclass(frozen=True)
class Facts:
    """What a run's folder tells of a client.

    Args:
        rows: train, validation and test rows; empty where it does not tell.
        scores: accuracies on the client's test rows, by role.
        run: how it was trained, a line each.
    """

    rows: Mapping[str, int]
    scores: Mapping[str, float]
    run: Mapping[str, str]


_ALONE = (
    "Accuracies of the experts alone are with calibration, and class statistics where there are "
    "any, as the run has them; the bare experts in these folders score otherwise."
)


def _calibrated(folder: Path) -> bool:
    return (_read(folder / "prior.json") or {}).get("calibration") is not None


def card(models: Models, folder: Path, who: str, licence: str, merged: str | None) -> str:
    """Markdown with the hub's metadata on top.

    Args:
        models: of the run.
        folder: that was exported.
        who: whose model it is.
        licence: of the model.
        merged: the expert that is in the weights of `merged`, or None.
    """
    config, facts = models.config, _facts(models, who)
    title = f"{config.name}: {'anyone' if who == NEW else f'client {who}'}"
    head = hub.metadata(
        title,
        licence=licence,
        base=hub_id(config.model.name),
        dataset=config.data.path if config.data.source == "hub" else None,
        takes=models.takes,
        tags=["federated-learning", "personalisation", "lora", "fedms", config.method],
        scores=facts.scores,
    )
    experts = [name for name in ("global", "local") if (folder / name).is_dir()]
    rows = ", ".join(f"{count:,} {split}" for split, count in facts.rows.items())
    return "\n".join(
        [
            "---",
            head,
            "---",
            "",
            f"# {title}",
            "",
            f"Adapters of {spoken(config.model.name)} for {len(models.classes)} classes, trained "
            f"by `{config.method}` with fedms.",
            "",
            *([f"- rows of the client: {rows}"] if rows else []),
            *(f"- {name}: {value}" for name, value in facts.run.items()),
            *(f"- test accuracy, {role}: {score:.3f}" for role, score in facts.scores.items()),
            *(["", _ALONE] if len(experts) > 1 and _calibrated(folder) else []),
            "",
            *_private(folder),
            "",
            "## Without fedms",
            "",
            *_loading(models, folder, experts),
            *(_merged(models, merged) if merged else []),
            "",
            "## With fedms",
            "",
            f"    fedms predict RUN --client {shlex.quote(who)} INPUT",
            "",
        ]
    )


def _private(folder: Path) -> list[str]:
    """What the files tell of the client's rows."""
    told = ["adapters and gate were fitted to them"]
    if (folder / "prior.json").is_file():
        told.append("`prior.json` says how frequent each class is among them")
    if (folder / "means.safetensors").is_file():
        told.append("`means.safetensors` says where those of each class lie")
    if (folder / "statistics.safetensors").is_file() and (folder / FEDERATION).is_dir():
        told.append(
            f"`{FEDERATION}/` has sums of rows' features, and counts, by class, over all clients: "
            "of a class with one row that row's feature"
        )
    return [
        "**This model is made from private data.** Whoever has these files can learn something of "
        f"the rows they were trained on: {'; '.join(told)}. Nothing hides any of it."
    ]


def _loading(models: Models, folder: Path, experts: list[str]) -> list[str]:
    loader = "CLIPModel" if models.learner.backbone.kind == "clip" else "AutoModel"
    adapted = [name for name in experts if (folder / name / "adapter_config.json").is_file()]
    example = (
        "inputs = [Image.new('RGB', (28, 28))]"
        if models.takes == "image"
        else "inputs = ['some text']"
    )
    image = ["from PIL import Image"] if models.takes == "image" else []
    lines = [
        f"The foundation model is {_where(models.config.model.name)}. Experts alone, as PEFT loads "
        "them:",
        "",
        "```python",
        "from peft import PeftModel",
        f"from transformers import {loader}",
        "",
        f"base = {spoken(models.config.model.name)!r}",
    ]
    for name in adapted:
        plain = f"{loader}.from_pretrained(base)"
        lines.append(f"{name}_expert = PeftModel.from_pretrained({plain}, {name!r})")
    lines += ["```", ""]
    if adapted:
        lines += [
            "From the hub it is `PeftModel.from_pretrained(plain, 'OWNER/NAME', "
            f"subfolder={adapted[-1]!r})`.",
            "",
        ]
    if any(needs_fedms(folder / name) for name in experts):
        return [*lines, "What joins the experts inside the layers only fedms can use."]
    return [
        *lines,
        "The whole model, joined by gate, class frequencies and class statistics as it was trained "
        "(`model.py` has all of that in plain torch):",
        "",
        "```python",
        *image,
        "from model import Model",
        "",
        example,
        f"model = Model('.', base={spoken(models.config.model.name)!r})",
        "said = model.opinions(inputs)  # log-probabilities, inputs x classes",
        "print([model.classes[i] for i in said['personal'].argmax(1)], said.keys())",
        "```",
    ]


def _merged(models: Models, merged: str) -> list[str]:
    return [
        "",
        f"## The {merged} expert as a plain model",
        "",
        f"`merged/` is the foundation model with the {merged} expert's adapters in its weights: "
        "transformers loads it, and its features are the expert's. Logits are made of them by "
        "`merged/head.json` and the files beside it. The mixture, which needs both experts and the "
        "gate, is not in it, nor are calibration and class statistics.",
        "",
        "```python",
        *(["from PIL import Image"] if models.takes == "image" else []),
        "from model import Merged",
        "",
        "expert = Merged('merged')",
        "logits = expert([Image.new('RGB', (28, 28))])"
        if models.takes == "image"
        else "logits = expert(['some text'])",
        "print([expert.classes[i] for i in logits.argmax(1)])",
        "```",
    ]


def _where(name: str) -> str:
    found = hub_id(name)
    if found is not None:
        return f"`{found}`"
    if name == "glyphclip":
        return "`glyphclip`, the folder `fedms/models/glyphclip` of the package fedms"
    return f"`{spoken(name)}`, a folder that was not exported"


def _facts(models: Models, who: str) -> Facts:
    """As far as the run's folder tells."""
    config, folder = models.config, models.folder
    run = {"seed": str(config.seed)}
    if adapted := _read(folder / ADAPTED):
        return _of_newcomer(adapted, run)
    sizes, summary = _read(folder / "partition.json"), _read(folder / "summary.json")
    if not sizes or not summary:
        return Facts({}, {}, run)
    own: Mapping[str, int] = next((each for each in sizes if each["id"] == who), {})
    total = sum(each["train"] for each in sizes)
    run["federation"] = (
        f"{summary['clients']} clients, {total:,} training rows, {summary['rounds']} rounds"
    )
    made = _read(folder / "environment.json") or {}
    if made.get("packages"):
        run["made with"] = ", ".join(f"{n} {v}" for n, v in made["packages"].items() if v)
    scores = {
        role.replace("_", "-"): found[who]
        for role in _ROLES
        if who in (found := (summary["test"].get(role) or {}).get("per_client") or {})
    }
    return Facts(_rows(own), scores, run)


def _of_newcomer(adapted: Mapping[str, Any], run: Mapping[str, str]) -> Facts:
    """Somebody who took no part, and adapted."""
    rounds = "1 round" if adapted["rounds"] == 1 else f"{adapted['rounds']} rounds"
    said = f"{rounds} on the client's own rows, with what a run of others shares"
    tested = adapted["after"].get("test", {})
    scores = {role: tested[role]["accuracy"] for role in _ROLES if role in tested}
    return Facts(_rows(adapted["rows"]), scores, {**run, "adapted": said})


def _rows(sizes: Mapping[str, int]) -> dict[str, int]:
    splits = {"train": "training", "val": "validation", "test": "test"}
    return {name: sizes[split] for split, name in splits.items() if split in sizes}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
