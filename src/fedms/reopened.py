"""The configuration of a run that is there, wherever its folder is now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedms.config import Config, load_config
from fedms.store.run_folder import FOUNDATION


def run_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """As `load_config`, of a run's own file.

    A foundation model that a program gave is in the run's folder, and named by where that was: if
    the folder was moved, or copied to another machine, it is the one beside the file.

    Raises:
        ConfigError: as `load_config`.
    """
    config = load_config(path, overrides)
    named, here = Path(config.model.name), path.resolve().parent / FOUNDATION
    if not named.is_absolute() or named.name != FOUNDATION or named.is_dir() or not here.is_dir():
        return config
    model = config.model.model_copy(update={"name": str(here)})
    return config.model_copy(update={"model": model})
