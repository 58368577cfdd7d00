"""The folder a run leaves behind (`config.toml`, `rounds.jsonl`, `summary.json`, …)."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedms.core.errors import UserError
from fedms.store.files import (
    append_json,
    locked,
    read_lines,
    safe_name,
    sweep,
    whole_folder,
    write_json,
    write_lines,
    write_text,
)
from fedms.store.marks import (
    CONFIG,
    ENVIRONMENT,
    SUMMARY,
    expect_run,
    is_run,
    read_facts,
    read_summary,
)
from fedms.store.states import ClientStates, DamagedError, ServerStates

FOUNDATION = "foundation"
"""In a run folder: the foundation model, where a program gave it."""
_HASH = "hash"
_PACKAGES = ("fedms", "torch", "transformers", "peft", "safetensors", "datasets", "numpy")


class RunFolder:
    """Paths and writers of one run folder. `create` makes it, `open` finds one.

    `every` is the number of rounds between checkpoints.
    """

    def __init__(self, path: Path, every: int = 1) -> None:
        self.path = path
        self.server_states = ServerStates(path / "checkpoints" / "server")
        self.client_states = ClientStates(path / "checkpoints" / "clients", every)

    @classmethod
    def create(
        cls,
        path: Path,
        config_toml: str,
        *,
        seed: int,
        computes: Mapping[str, Any] | None = None,
        every: int = 1,
        force: bool = False,
        foundation: Path | None = None,
    ) -> RunFolder:
        """Make a run folder with its configuration and environment, as a whole or not at all.

        Args:
            path: where; its parents are made.
            config_toml: the resolved configuration.
            seed: the run's seed.
            computes: device, precision and the like, as resolved on this machine.
            every: rounds between checkpoints.
            force: replace an earlier run's folder.
            foundation: a folder with a foundation model that is moved into it.

        Raises:
            UserError: if something is in the way, before or meanwhile, or (with `force`) is no run
                folder, or the folder cannot be written.
        """
        cls.check(path, force=force)
        try:
            with whole_folder(path) as folder:
                write_text(folder / CONFIG, config_toml)
                write_json(folder / ENVIRONMENT, {**environment(seed), **(computes or {})})
                for name in ("rounds.jsonl", "clients.jsonl"):
                    write_text(folder / name, "")
                if foundation is not None:
                    shutil.move(foundation, folder / FOUNDATION)
                cls.check(path, force=force)  # again: another process may have begun meanwhile
        except OSError as error:
            why = error.strerror or error  # not the name of the folder aside
            raise UserError(f"got run folder {path}, which cannot be written: {why}") from error
        return cls(path, every)

    @classmethod
    def open(cls, path: Path, every: int = 1) -> RunFolder:
        """One that is there.

        Raises:
            UserError: if it is no run folder.
        """
        expect_run(path)
        return cls(path, every)

    @staticmethod
    def check(path: Path, *, force: bool) -> None:
        """Make sure that a run may be put at `path`, before anything is computed.

        Raises:
            UserError: if something is in the way.
        """
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return
        if not force:
            said, begun = "which exists; try", is_run(path) and not (path / SUMMARY).exists()
            if begun and "sites" not in read_facts(path / ENVIRONMENT):
                said = f"of a run that has not ended; try fedms resume {path},"
            raise UserError(
                f"got run folder {path}, {said} another (--out; in Python out=), or to replace it "
                "(--force; force=True)"
            )
        if not is_run(path):
            raise UserError(
                f"got {path} to replace by force, which is no run folder; it was left alone"
            )
        try:
            with locked(path / CONFIG):
                pass
        except BlockingIOError:
            raise UserError(
                f"got {path} to replace by force, where another process is at work"
            ) from None

    @property
    def adapters(self) -> Path:
        """Where `global/` and `gate/` are, which all clients have."""
        return self.path / "adapters"

    def client_adapters(self, client: str) -> Path:
        """Where a client's `local/` and `gate/` are. Ids are percent-encoded as file names."""
        return self.adapters / "clients" / safe_name(client)

    @property
    def config(self) -> Path:
        """The file with the resolved configuration; whoever is at work here holds its lock."""
        return self.path / CONFIG

    def facts(self) -> dict[str, Any]:
        """What `create` wrote of machine and code.

        Raises:
            UserError: if it cannot be read.
        """
        return read_facts(self.path / ENVIRONMENT)

    def resumed(self, seed: int) -> list[str]:
        """What differs from its beginning among versions; written down if anything does."""
        facts, now = self.facts(), environment(seed)
        last = (facts.get("resumed") or [facts])[-1]["packages"]
        changed = [
            f"{name} {then}, now {now['packages'][name]}"
            for name, then in last.items()
            if name in now["packages"] and now["packages"][name] != then
        ]
        if changed:
            again = [*facts.get("resumed", ()), now]
            write_json(self.path / ENVIRONMENT, {**facts, "resumed": again})
        return changed

    def summary(self) -> dict[str, Any] | None:
        """Of a complete run, else None.

        Raises:
            UserError: if it cannot be read.
        """
        return read_summary(self.path)

    def lines(self, rounds: int) -> list[dict[str, Any]]:
        """What `add_round` wrote of the first rounds.

        Raises:
            DamagedError: if not all of it is there, as it was written.
        """
        kept = [line for line in read_lines(self.path / "rounds.jsonl") if line["round"] < rounds]
        where = self.path / "rounds.jsonl"
        if [line["round"] for line in kept] != list(range(rounds)):
            raise DamagedError(f"got {where}, which lacks some of {rounds} rounds")
        for line in kept:
            if line.get(_HASH) != _hash(line):
                raise DamagedError(f"got {where}, which is damaged in round {line['round'] + 1}")
        return kept

    def rewind(self, rounds: int) -> None:
        """Take away what is of later rounds, and what was being written."""
        sweep(self.path)
        scored = read_lines(self.path / "clients.jsonl")
        write_lines(self.path / "rounds.jsonl", self.lines(rounds))
        write_lines(self.path / "clients.jsonl", [s for s in scored if s["round"] <= rounds])

    def add_round(self, record: Mapping[str, Any]) -> None:
        append_json(self.path / "rounds.jsonl", {**record, _HASH: _hash(record)})

    def add_client(self, record: Mapping[str, Any]) -> None:
        append_json(self.path / "clients.jsonl", record)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        write_json(self.path / SUMMARY, summary)


def _hash(line: Mapping[str, Any]) -> str:
    """Of all else that a line says."""
    text = json.dumps({name: value for name, value in line.items() if name != _HASH})
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def environment(seed: int) -> dict[str, Any]:
    """Time, versions, seed, git commit and machine, as JSON values; None for what is not known."""
    return {
        "seed": seed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "git_commit": _git_commit(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": _memory(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Commit of the source tree this runs from, marked `-dirty` where the package was changed."""
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return None
    return f"{commit}-dirty" if _git("status", "--porcelain", "--", ".") else commit


def _git(*words: str) -> str | None:
    """What git says in the package's folder; None where there is no git, or it fails."""
    command = ["git", "-C", str(Path(__file__).parents[1]), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or None


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
