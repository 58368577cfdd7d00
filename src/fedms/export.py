"""A client's models as folders that PEFT and transformers read, with a model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedms.core.errors import UserError
from fedms.models import save_merged
from fedms.store.files import safe_name, whole_folder, write_text
from fedms.use import NEW, Models

_MARK = "fedms.json"


def export(
    folder: Path,
    to: Path,
    client: str | None = None,
    *,
    merged: str | None = None,
    licence: str = "other",
    force: bool = False,
) -> list[Path]:
    """Write a client's models into a folder that is made, as a whole or not at all.

    That is `global/` and `local/` (PEFT adapters, with a head beside them if they have one),
    `gate/`, what is known of classes (`head.json`, `prior.json`, `statistics.safetensors`,
    `means.safetensors`) and `README.md`, a model card; with `merged` also `merged/`, a plain
    transformers model with its tokenizer or image processor.

    Args:
        folder: of a run, or of a site's run.
        to: where.
        client: whose; `new`: of somebody who took no part; None: of the only one.
        merged: `local` or `global`, the expert that is put into the foundation model's weights.
        licence: for the model card.
        force: replace what was exported there before.

    Returns:
        the folders that were written.

    Raises:
        UserError: if there is no such model, or something is in the way.
    """
    models = Models(folder, device="cpu")
    who = client or models.only()
    models.model(who)  # it can be read
    if to.exists() and any(to.iterdir()) and not (force and (to / _MARK).is_file()):
        raise UserError(
            f"got --to {to}, which exists; expected a new folder, or with --force one that "
            "fedms export made"
        )
    own = models.adapters / "clients" / safe_name(who)
    sources = [models.adapters, own] if own.is_dir() else [models.adapters]
    with whole_folder(to) as new:
        for source in sources:
            for path in sorted(source.iterdir()):
                if path.is_file():
                    shutil.copyfile(path, new / path.name)
                elif path.name != "clients":  # a client's own gate is put over what all have of it
                    shutil.copytree(path, new / path.name, dirs_exist_ok=True)
        if merged is not None:
            if not (new / merged / "adapter_model.safetensors").is_file():
                raise UserError(f"got --merged {merged}; the model of {who} has no such adapters")
            save_merged(models.config.model.name, new / merged, new / "merged")
        write_text(new / _MARK, json.dumps({"client": who, "run": models.folder.name}) + "\n")
        write_text(new / "README.md", _card(models, new, who, licence))
    return sorted(path for path in to.iterdir() if path.is_dir())


def _card(models: Models, folder: Path, who: str, licence: str) -> str:
    config = models.config
    experts = [name for name in ("global", "local") if (folder / name).is_dir()]
    facts = _facts(models.folder, who)
    lines = [
        "---",
        f"license: {json.dumps(licence)}",
        f"base_model: {json.dumps(config.model.name)}",
        "library_name: peft",
        "tags: [federated-learning, personalisation, lora, fedms]",
        "---",
        "",
        f"# {config.name}: {'anyone' if who == NEW else f'client {who}'}",
        "",
        f"Adapters of {config.model.name} for {len(models.classes)} classes, trained by "
        f"`{config.method}` with [fedms](https://pypi.org/project/fedms/), seed {config.seed}.",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
        "## Without fedms",
        "",
        "```python",
        "from peft import PeftModel",
        f"from transformers import {_loader(models)}",
        "",
        f"plain = {_loader(models)}.from_pretrained({models.learner.backbone.name!r})",
        *(f'{name}_expert = PeftModel.from_pretrained(plain, "{name}")' for name in experts[-1:]),
        "```",
        "",
        f"In `{experts[-1]}/` are PEFT adapters" + ("; so in `global/`." if experts[1:] else "."),
        "`head.json` names the classes in order and says how they are scored: where it says "
        "`prompt`, by `temperature` times the cosine of the feature and the class's `vectors` of "
        "`statistics.safetensors`, or the embedding of its prompt where there are no vectors.",
        "`gate/gate.safetensors` is the gate, `prior.json` has the log of class frequencies, and "
        "the weights by which experts, gate, frequencies and class statistics are joined.",
        "",
        "`PeftModel.push_to_hub` publishes an adapter. These files tell how frequent classes are "
        "among the rows they were trained on, and `means.safetensors` where these rows lie.",
        "",
        "## With fedms",
        "",
        "    fedms predict RUN --client " + who + " INPUT",
        "",
    ]
    return "\n".join(lines)


def _loader(models: Models) -> str:
    return "CLIPModel" if models.learner.backbone.kind == "clip" else "AutoModel"


def _facts(folder: Path, who: str) -> Mapping[str, Any]:
    """Of the client's rows and scores, as far as the run tells."""
    found: dict[str, Any] = {}
    try:
        sizes = json.loads((folder / "partition.json").read_text(encoding="utf-8"))
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return found
    for each in sizes:
        if each["id"] == who:
            found["rows"] = f"{each['train']} train, {each['val']} validation, {each['test']} test"
    for role in ("zero_shot", "global", "local", "personal"):
        scores = (summary["test"].get(role) or {}).get("per_client", {})
        if who in scores:
            found[f"test accuracy, {role.replace('_', '-')}"] = f"{scores[who]:.3f}"
    return found
