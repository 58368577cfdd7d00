"""TensorBoard: event files in the run folder, for `tensorboard --logdir`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from fedms.trackers import Opened


class TensorBoard:
    """Scalars a round; configuration and final numbers as text."""

    def __init__(self, run: Opened) -> None:
        self._writer, self._step = EventFileWriter(run.folder), 0
        self._text("config", run.config)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._step = step
        for name, value in values.items():
            self._add(scalar_pb(name, value))

    def finish(self, summary: Mapping[str, float], *, complete: bool) -> None:
        self._text("summary", {"complete": complete, **summary})
        self._writer.close()

    def _text(self, name: str, values: Mapping[str, Any]) -> None:
        lines = [f"    {key} = {json.dumps(value)}" for key, value in values.items()]
        self._add(text_pb(name, "\n".join(lines)))

    def _add(self, summary: Any) -> None:
        self._writer.add_event(Event(wall_time=time.time(), step=self._step, summary=summary))


opened = TensorBoard
