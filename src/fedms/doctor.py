"""Whether fedms can work here: Python, packages, devices, models, folders, optional parts.

What is installed is read from the metadata of the installed distribution, so that nothing is listed
twice; and nothing but the standard library and `packaging` is needed to be told what is missing.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

_NAME = "fedms"
_LITTLE = 10**9
"""Bytes of free disk below which it is said that they are few."""
_FOR_DEVELOPMENT = ("browser", "dev", "docs", "fuzz", "training")
"""Extras that nobody needs who uses fedms."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Args:
        name: of it.
        state: `good`; `bad`, so that the main job cannot run; or `absent`, which it can do without.
        said: what was found.
        fix: the command that mends it, if one does.
    """

    name: str
    state: Literal["good", "bad", "absent"]
    said: str
    fix: str | None = None


def examine(runs: Path = Path("runs")) -> Iterator[Check]:
    """All checks, one after the other; `runs` is where runs would be written."""
    needed = metadata.requires(_NAME) or []
    requirements = [Requirement(text) for text in needed]
    yield _python()
    always = [r for r in requirements if not r.marker or r.marker.evaluate({"extra": ""})]
    packages = [_package(requirement) for requirement in always]
    yield from packages
    if all(check.state == "good" for check in packages):
        yield from _torch()
        yield _model("glyphclip", "bad")
        yield _model("minilm", "absent")
    yield from _folder(runs)
    yield from _extras(requirements)
    yield _telemetry()


def _python() -> Check:
    wanted = metadata.metadata(_NAME)["Requires-Python"] or ""
    found = platform.python_version()
    if SpecifierSet(wanted).contains(found, prereleases=True):
        return Check("Python", "good", f"{found} ({sys.executable})")
    return Check("Python", "bad", f"{found}; expected {wanted}")


def _package(wanted: Requirement) -> Check:
    lacking = _lacking(wanted)
    if lacking:
        return Check(wanted.name, "bad", lacking[0], _install([str(wanted)]))
    return Check(wanted.name, "good", metadata.version(wanted.name))


def _lacking(wanted: Requirement) -> list[str]:
    """What of a requirement is not there, or in another version; of its extras too."""
    try:
        found = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return [f"{wanted.name} is not installed"]
    lacking = []
    if not wanted.specifier.contains(found, prereleases=True):
        lacking.append(f"{wanted.name} is {found}; expected {wanted.specifier}")
    for extra in wanted.extras:
        lacking += _lacking_of(map(Requirement, metadata.requires(wanted.name) or []), extra)
    return lacking


def _lacking_of(requirements: Iterable[Requirement], extra: str) -> list[str]:
    """The same of what an extra adds."""
    added = (r for r in requirements if r.marker and r.marker.evaluate({"extra": extra}))
    only = (r for r in added if r.marker and not r.marker.evaluate({"extra": ""}))
    return [words for requirement in only for words in _lacking(requirement)]


def _extras(requirements: list[Requirement]) -> Iterator[Check]:
    """Optional parts that the distribution declares, those for work on fedms itself last."""
    declared = metadata.metadata(_NAME).get_all("Provides-Extra") or []
    for extra in sorted(declared, key=lambda name: (name in _FOR_DEVELOPMENT, name)):
        lacking = _lacking_of(requirements, extra)
        name = f"{_NAME}[{extra}]"
        if lacking and extra in _FOR_DEVELOPMENT:
            yield Check(name, "absent", "for work on fedms itself")
        elif lacking:
            yield Check(name, "absent", "; ".join(lacking), _install([name]))
        else:
            yield Check(name, "good", "installed")


def _install(what: Iterable[str]) -> str:
    return shlex.join([sys.executable, "-m", "pip", "install", *what])


def _torch() -> Iterator[Check]:
    """Devices that torch sees."""
    try:
        import torch
    except (ImportError, OSError) as error:
        fix = _install(["--force-reinstall", "torch"])
        yield Check("torch", "bad", f"cannot be loaded: {error}", fix)
        return
    yield Check("CPU", "good", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(count))
    yield Check("CUDA", "good" if count else "absent", names or "no device")
    metal = torch.backends.mps.is_available()
    yield Check("MPS", "good" if metal else "absent", "there" if metal else "no device")


def _model(name: str, otherwise: Literal["bad", "absent"]) -> Check:
    """Whether a foundation model that comes as a package can be loaded."""
    from fedms.core.errors import UserError
    from fedms.models import load_backbone

    try:
        backbone = load_backbone(name)
    except UserError as error:
        return Check(name, otherwise, str(error))
    return Check(name, "good", f"loads; {backbone.takes}s, {backbone.width} features")


def _folder(runs: Path) -> Iterator[Check]:
    """Whether runs can be written, and how much room there is."""
    there = next(p for p in (runs.absolute(), *runs.absolute().parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        said = f"cannot be written in {there}: {error.strerror or error}"
        yield Check(str(runs), "bad", said, "fedms run --out OTHER")
        return
    yield Check(str(runs), "good", f"can be written in {there}")
    free = shutil.disk_usage(there).free
    said = f"{free / 1e9:.1f} GB free"
    yield Check("disk", "good" if free >= _LITTLE else "absent", said)


def _telemetry() -> Check:
    """What Flower would be allowed; it is set for Flower alone, and only while fedms uses it."""
    from fedms.runtimes.flower.quiet import settings

    sends = settings()["FLWR_TELEMETRY_ENABLED"] != "0"
    asked = "FLWR_TELEMETRY_ENABLED asks for it" if sends else "fedms keeps it off"
    fix = "unset FLWR_TELEMETRY_ENABLED" if sends else None
    return Check("telemetry of Flower", "absent" if sends else "good", asked, fix)
