"""The app that Flower hands to sites: names of what is installed there, and no data."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomli_w

from fedms.config import Config, dump_config
from fedms.core.errors import UserError
from fedms.store.files import whole_folder, write_text

_NAME = "fedms-run"
_LICENSE = "Apache-2.0, as fedms itself: https://www.apache.org/licenses/LICENSE-2.0\n"


def write_bundle(
    folder: Path,
    config: Config,
    *,
    run: str,
    out: Path,
    sites: int,
    patience: float = 0.0,
    force: bool = False,
    again: bool = False,
) -> None:
    """Write the app of a run, in place of what is there, as a whole.

    Args:
        folder: where.
        config: of the run, as `folders` writes it: without what is private to a machine.
        run: its name, under which sites keep what is theirs.
        out: the run folder on the server, an absolute path.
        sites: how many the server waits for, at least 1.
        patience: seconds it waits for them; 0: for ever.
        force: whether the server replaces an earlier run's folder.
        again: whether it goes on with the run that is there.

    Raises:
        UserError: if something else is in the folder.
    """
    words: dict[str, str | int | float | bool] = {
        "configuration": dump_config(config),
        "run": run,
        "folder": str(out),
        "sites": sites,
        "patience": float(patience),
        "force": force,
        "again": again,
    }
    if folder.exists() and any(folder.iterdir()) and not _is_bundle(folder):
        raise UserError(f"got folder {folder}, which is no app of a run; try to move it away")
    with whole_folder(folder) as new:
        write_text(new / "pyproject.toml", tomli_w.dumps(_project(words)))
        write_text(new / "LICENSE", _LICENSE)


def _is_bundle(folder: Path) -> bool:
    project = folder / "pyproject.toml"
    return project.is_file() and f'name = "{_NAME}"' in project.read_text(encoding="utf-8")


def _project(words: Mapping[str, str | int | float | bool]) -> dict[str, Any]:
    flower = version("flwr")
    return {
        "build-system": {"requires": ["hatchling"], "build-backend": "hatchling.build"},
        "project": {
            "name": _NAME,
            "version": version("fedms"),
            "description": "A run of fedms, which is installed on every machine of it.",
            "license": {"file": "LICENSE"},
            "dependencies": [f"flwr>={flower}"],
        },
        "tool": {
            "hatch": {"build": {"targets": {"wheel": {"packages": ["."]}}}},
            "flwr": {
                "app": {
                    "publisher": "fedms",
                    "fab-format-version": 1,
                    "flwr-version-target": flower,
                    "fab-include": ["LICENSE"],
                    "components": {
                        "serverapp": "fedms.deploy.app:app",
                        "clientapp": "fedms.runtimes.flower.relay:app",
                    },
                    "config": dict(words),
                }
            },
        },
    }
