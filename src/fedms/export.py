"""A client's models as folders that PEFT and transformers read, with a model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from fedms.card import card
from fedms.core.errors import UserError
from fedms.models import FILES, needs_fedms, save_beside, save_merged
from fedms.newcomers import Shared
from fedms.store.files import own_folder, safe_name, write_text
from fedms.store.marks import FEDERATION
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
    `gate/`, what is known of classes (`head.json`, `prior.json`, `classes.safetensors`,
    `statistics.safetensors`, `means.safetensors`), `model.py`, which joins all of it without fedms,
    and `README.md`, a model card; of `new` also `federation/`, with which newcomers adapt
    (`fedms.newcomers`); with `merged` also `merged/`, a plain transformers model with its tokenizer
    or image processor.

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
        UserError: if there is no such model, something is in the way, or nothing can be written.
    """
    models = Models(folder, device="cpu")
    who = client or models.only()
    models.model(who)  # it can be read
    with own_folder(to, _MARK, "fedms export", force=force) as new:
        fill(models, new, who, merged=merged, licence=licence)
    return sorted(path for path in to.iterdir() if path.is_dir())


def fill(
    models: Models, new: Path, who: str, *, merged: str | None = None, licence: str = "other"
) -> None:
    """Write a client's models into an empty folder: see `export`.

    Raises:
        UserError: if there is no such model.
    """
    _copy(models, who, new)
    if who == NEW and NEW not in models.clients and Shared.is_in(models.folder):
        Shared.find(models.folder).save(new / FEDERATION, models.learner.layout)
    if merged is not None:
        if not (new / merged / "adapter_model.safetensors").is_file():
            raise UserError(f"got --merged {merged}; the model of {who} has no such adapters")
        if needs_fedms(new / merged):
            raise UserError(
                f"got --merged {merged}; with {models.config.method} this expert weighs what "
                "lies beneath it in the layers, which no plain model does"
            )
        save_merged(models.config.model.name, new, merged)
    write_text(new / _MARK, json.dumps({"client": who, "run": models.folder.name}) + "\n")
    write_text(new / "README.md", card(models, new, who, licence, merged))


def _copy(models: Models, who: str, new: Path) -> None:
    """A client's files over those that all have, and what others need to use them."""
    own = models.adapters / "clients" / safe_name(who)
    for source in [models.adapters, own] if own.is_dir() else [models.adapters]:
        for path in sorted(source.iterdir()):
            if path.name == FILES:
                continue  # of those folders, not of this one
            if path.is_file():
                shutil.copyfile(path, new / path.name)
            elif path.name != "clients":  # a client's own gate is put over what all have of it
                shutil.copytree(path, new / path.name, dirs_exist_ok=True)
    model = models.model(who)
    local = {"local": model.expert} if (new / "local").is_dir() else {}
    shared = {"global": models.common.expert} if models.common.expert else {}
    save_beside(new, models.learner, {**shared, **local})
