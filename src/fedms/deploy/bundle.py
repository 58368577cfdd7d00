"""What is submitted: an app that Flower also hands to sites, and what the server alone reads.

The app has names of what is installed everywhere, and the run's. Configuration, paths and sites'
names stay on the server, in a file that only lasts until the run has ended.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomli_w

from fedms.core.errors import UserError
from fedms.store.files import safe_name, write_json, write_text

_NAME = "fedms-run"
_LICENSE = "Apache-2.0, as fedms itself: https://www.apache.org/licenses/LICENSE-2.0\n"
_HOME = "FLWR_HOME"
"""In the environment of the app's process, as of all of Flower's."""


@dataclass(frozen=True)
class Request:
    """A run that is wanted of a server.

    Args:
        configuration: TOML.
        run: its name, under which sites keep what is theirs.
        folder: of the run, on the server, an absolute path.
        sites: how many the server waits for, at least 1.
        names: of all that may come.
        patience: seconds it waits for them; 0: for ever.
        force: whether the server replaces an earlier run's folder.
        again: whether it goes on with the run that is there.
    """

    configuration: str
    run: str
    folder: str
    sites: int
    names: tuple[str, ...] = ()
    patience: float = 0.0
    force: bool = False
    again: bool = False


@contextmanager
def requested(home: Path, request: Request) -> Iterator[None]:
    """The server can read it: `home` is where its Flower keeps its files."""
    path = _path(home, request.run)
    write_json(path, asdict(request))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def read_request(run: str) -> Request:
    """Of a run, in the server's own process.

    Raises:
        UserError: if there is none.
    """
    path = _path(Path(os.environ.get(_HOME, "")), run)
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"got run {run!r}, of which the server has no {path}: {error}") from None
    return Request(**{**facts, "names": tuple(facts["names"])})


def write_bundle(folder: Path, run: str) -> None:
    """Write the app of a run into a folder."""
    write_text(folder / "pyproject.toml", tomli_w.dumps(_project(run)))
    write_text(folder / "LICENSE", _LICENSE)


def _path(home: Path, run: str) -> Path:
    return home / "requests" / f"{safe_name(run)}.json"


def _project(run: str) -> dict[str, Any]:
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
                    "config": {"run": run},
                }
            },
        },
    }
