"""Flower's programs, as processes of ours: how they are started, asked, and ended.

All have an environment in which Flower keeps its files in a folder of the deployment, installs
nothing, and reports to nobody.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import tomli_w

from fedms.core.errors import UserError
from fedms.runtimes.flower.quiet import settings
from fedms.store.files import write_text

_GRACE = 10.0
"""Seconds that a process has to end by itself."""
_LAST_WORDS = 5
CONNECTION = "fedms"
"""Flower's name for the server."""


def environment(home: Path) -> dict[str, str]:
    """For programs of Flower, which find each other by `PATH`; `home` keeps their files."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, **settings(), "FLWR_HOME": str(home), "PATH": beside}


def connect(home: Path, host: str, port: int, authority: Path | None) -> None:
    """Write down where `ask` finds the server: on this machine."""
    facts: dict[str, Any] = {"address": f"[{host}]:{port}" if ":" in host else f"{host}:{port}"}
    facts |= {"root-certificates": str(authority)} if authority else {"insecure": True}
    text = tomli_w.dumps({"superlink": {"default": CONNECTION, CONNECTION: facts}})
    write_text(home / "config.toml", text)


def ask(home: Path, *words: str, timeout: float = 60.0, alone: bool = False) -> dict[str, Any]:
    """What `flwr` answers to a command, as JSON.

    Args:
        home: of the deployment.
        words: the command.
        timeout: seconds that it has.
        alone: whether Ctrl-C is not for it.

    Raises:
        UserError: if it fails; with its words.
    """
    command = [program("flwr"), *words, "--format", "json"]
    try:
        done = subprocess.run(  # noqa: S603 - our own words
            command,
            env=environment(home),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            start_new_session=alone,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"flwr {words[0]} gave no answer in {timeout:g} s") from None
    text = done.stdout
    try:
        found: dict[str, Any] = json.loads(text[text.index("{") : text.rindex("}") + 1])
    except ValueError:
        found = {}
    if done.returncode or not found.get("success"):
        said = str(found.get("error-message") or done.stderr or text).strip()
        raise UserError(f"flwr {words[0]} failed: {said[-500:]}")
    return found


def program(name: str) -> str:
    """Path of a program of Flower's, or of another on `PATH`.

    Raises:
        UserError: if it is not installed.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        hint = "pip install 'fedms[flower]'" if name.startswith("fl") else f"to install {name}"
        raise UserError(f"got no program {name}; try {hint}")
    return found


class Processes:
    """Programs that run until the `with` block ends; with this process they end in any case.

    Args:
        home: where Flower keeps its files.
        logs: where their words go, a file each.
    """

    def __init__(self, home: Path, logs: Path) -> None:
        self._home, self._logs = home, logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Processes:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in reversed(self._running.values()):
            _signal(process, signal.SIGTERM)
        ends = time.monotonic() + _GRACE
        for process in self._running.values():
            _bury(process, ends)

    def end(self, name: str) -> None:
        """End one, and what it left behind."""
        process = self._running.pop(name)
        _signal(process, signal.SIGTERM)
        _bury(process, time.monotonic() + _GRACE)

    def start(self, name: str, words: Sequence[str], cwd: Path | None = None) -> None:
        """Start a program under a name of ours."""
        guard = [sys.executable, "-m", "fedms.deploy.guard", str(os.getpid()), *words]
        with self.log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(  # noqa: S603 - our own words
                guard,
                env=environment(self._home),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us, who end it
            )

    def log(self, name: str) -> Path:
        """File with a program's words."""
        return self._logs / f"{name}.log"

    def check(self) -> None:
        """Make sure that all are running.

        Raises:
            UserError: if one has ended; with its last words.
        """
        for name, process in self._running.items():
            if process.poll() is not None:
                raise UserError(
                    f"{name} ended with exit code {process.returncode}: "
                    f"{last_words(self.log(name))}; more is in {self.log(name)}"
                )

    def wait(self, going: Callable[[], bool] = lambda: True) -> None:
        """Wait until one ends, or for as long as something else goes on.

        Raises:
            UserError: if one ends.
        """
        while going():
            self.check()
            time.sleep(0.5)


def last_words(log: Path) -> str:
    """The end of what a program said."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " / ".join(lines[-_LAST_WORDS:]) or "without a word"


def quoted(words: Mapping[str, str]) -> str:
    """Words of a SuperNode's `--node-config`."""
    return " ".join(f'{name}="{value}"' for name, value in words.items())


def _bury(process: subprocess.Popen[bytes], ends: float) -> None:
    """Wait for a program that was told to end, until then, and end what is left of it."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(max(0.1, ends - time.monotonic()))
    _signal(process, signal.SIGKILL)
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """To a program and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
