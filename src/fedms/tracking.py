"""Trackers that follow a run: each is a process that is told of rounds (`trackers`).

A run does not wait for them before its end, and does not fail with them: that one failed is told
once.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from fedms import measures
from fedms.config import Config, untracked
from fedms.core.errors import UserError
from fedms.events import Evaluated, Event, Finished, RoundDone, Started, Warned

Watch = Callable[[Event], None]
_PATIENCE = 120.0
"""Seconds in which a tracker has to end, when the run has."""
_EXTRA = {"mlflow": "mlflow-skinny"}
_QUIET = {
    "DO_NOT_TRACK": "true",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
}
"""In the environment of trackers' processes: their libraries do not tell their makers of it."""
_ELSEWHERE = {"TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_WEBHOOK_URL"}
"""Not in it: where Trackio would send to though the configuration does not say so."""


def check(config: Config) -> None:
    """Make sure that trackers are installed.

    Raises:
        UserError: if one is not.
    """
    for name in config.tracking.trackers:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f'got tracking.to = "{name}" without {_EXTRA.get(name, name)}; try '
                f'pip install "fedms[{name}]"'
            )


@contextmanager
def tracked(config: Config, folder: Path, watch: Watch) -> Iterator[Watch]:
    """A watch that also tells the trackers of a configuration; they have ended afterwards.

    Raises:
        UserError: as `check`.
    """
    check(config)
    with ExitStack() as stack:
        names = config.tracking.trackers
        following = [stack.enter_context(_Following(name, config, folder, watch)) for name in names]

        def tell(event: Event) -> None:
            for one in following:
                one(event)
            watch(event)

        yield tell


class _Following:
    """One tracker's process. Lines are written by a thread, so that nobody waits for it."""

    def __init__(self, name: str, config: Config, folder: Path, watch: Watch) -> None:
        self._name, self._watch, self._failed = name, watch, False
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._rounds, self._step = 0, 0
        place = (folder / "tracking" / name).resolve()
        place.mkdir(parents=True, exist_ok=True)
        self._log = place.with_suffix(".log")
        wanted = config.tracking
        self._send(
            name=f"{config.name}-{config.method}-seed{config.seed}",
            project=wanted.project,
            folder=str(place),
            config=_flat(config),
            mlflow_uri=wanted.mlflow_uri,
            wandb_mode=wanted.wandb_mode,
            trackio_space=wanted.trackio_space,
        )
        inherited = {k: value for k, value in os.environ.items() if k not in _ELSEWHERE}
        self._environment = {**inherited, **_QUIET, "TRACKIO_DIR": str(place)}

    def __enter__(self) -> _Following:
        words = [sys.executable, "-m", "fedms.trackers", self._name]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603
                words,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,  # an interruption is the run's alone
                text=True,
            )
        self._writer = Thread(target=self._write, daemon=True)
        self._writer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._lines.put(None)
        try:
            code = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._writer.join()
        if code:
            self._fail()

    def __call__(self, event: Event) -> None:
        match event:
            case Started():
                self._rounds = event.rounds
            case RoundDone():
                self._step = event.record.round + 1
                values = {**measures.of_round(event.record), "sent_bytes": event.sent_bytes}
                self._send(step=self._step, values=values)
            case Evaluated():
                self._send(step=self._step, values=measures.of_scores(event.test))
            case Finished():
                complete = event.summary["rounds"] == self._rounds
                self._send(summary=measures.of_summary(event.summary), complete=complete)
        if self._process.poll():
            self._fail()

    def _send(self, **facts: Any) -> None:
        self._lines.put(json.dumps(facts) + "\n")

    def _write(self) -> None:
        """What is in line, until its end or the process's."""
        assert self._process.stdin is not None
        with suppress(OSError), self._process.stdin as pipe:
            while (line := self._lines.get()) is not None:
                pipe.write(line)
                pipe.flush()

    def _fail(self) -> None:
        """Tell of it, once."""
        if not self._failed:
            self._failed = True
            said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            reason = said[-1] if said else f"it ended with {self._process.returncode}"
            self._watch(Warned(f"{self._name} tracks this run no longer: {reason} ({self._log})"))


def _flat(config: Config) -> Mapping[str, Any]:
    """By `section.key`."""
    flat: dict[str, Any] = {}
    for key, value in untracked(config).model_dump(mode="json", exclude={"tracking"}).items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    return flat
