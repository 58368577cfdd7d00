"""What a run shows on a terminal: the partition, a line per round, and the table at the end."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_drawn = random.getstate()  # rich draws a number when it is imported: a host's own are left alone
from rich.console import Console, ConsoleOptions, RenderableType  # noqa: E402
from rich.markup import escape  # noqa: E402
from rich.progress import BarColumn  # noqa: E402
from rich.progress import Progress as Bar  # noqa: E402
from rich.segment import Segment  # noqa: E402
from rich.table import Table  # noqa: E402
from rich.text import Text  # noqa: E402

random.setstate(_drawn)

from fedms.bench import Row  # noqa: E402
from fedms.config import Config  # noqa: E402
from fedms.core.units import size  # noqa: E402
from fedms.core.words import printable  # noqa: E402
from fedms.events import Evaluated, Event, Finished, RoundDone, Started, Warned  # noqa: E402
from fedms.report import NAME, ROLES  # noqa: E402

_LONGEST_PARTITION = 20


class Terminal(Console):
    """A console that names of clients and classes cannot steer, whatever they hold."""

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(printable(text), **how)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)


def compare_line(event: Event) -> str | None:
    """What a comparison tells of a run's event: rounds, and how it ended."""
    match event:
        case RoundDone():
            return f"round {event.record.round + 1}/{event.rounds}, {event.seconds_left:.0f} s left"
        case Finished():
            return f"test accuracy {event.summary['test']['personal']['mean']:.3f}"
    return None


class Progress:
    """Prints events as they come; call it with each.

    On a terminal there is a bar below them while it is entered as a context.

    Args:
        config: of the run.
        console: where; None for standard output.
        quiet: print how the run ended, alone.
    """

    def __init__(
        self, config: Config, console: Console | None = None, *, quiet: bool = False
    ) -> None:
        self._config, self._console = config, console or Terminal(highlight=False)
        self._quiet = quiet
        self._bar = Bar(
            *("{task.fields[stage]}", BarColumn(), "{task.completed:.0f}/{task.total:.0f} rounds"),
            "{task.fields[left]}",
            console=self._console,
            transient=True,
            refresh_per_second=2,
            disable=quiet or not self._console.is_terminal,
        )

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if not self._bar.disable:  # before 14.3.4, rich then writes an empty line
            self._bar.stop()

    def __call__(self, event: Event) -> None:
        if self._quiet and not isinstance(event, Finished | Warned):
            return
        self._advance(event)
        match event:
            case Started():
                self._started(event)
            case RoundDone():
                self._round(event)
            case Evaluated():
                words = ", ".join(f"{ROLES[r]} {a:.3f}" for r, a in event.test.items())
                self._console.print(
                    f"  test accuracy after round {event.round}: {words}",
                    style="dim",
                    soft_wrap=True,
                )
            case Warned():
                self._console.print(event.text, style="yellow", markup=False, soft_wrap=True)
            case Finished():
                self._finished(event)

    def _advance(self, event: Event) -> None:
        """Move the bar."""
        match event:
            case Started():
                self._bar.add_task("", total=event.rounds, stage="", left="")
            case RoundDone():
                record = event.record
                for task in self._bar.task_ids:
                    self._bar.update(
                        task,
                        completed=record.round + 1,
                        stage=f"stage {record.stage}",
                        left=f"{event.seconds_left:.0f} s left",
                    )
            case Finished():
                self._stop()

    def _started(self, event: Started) -> None:
        experiment, config = event.experiment, self._config
        self._console.print(
            f"[bold]{config.method}[/bold] on {config.name}: {escape(config.model.name)}, "
            f"{event.rounds} rounds, seed {config.seed}"
        )
        self._console.print(experiment.partition_summary)
        table = Table("client", box=None, pad_edge=False)
        columns = ("train", "val", "test", "classes")
        for name in columns:
            table.add_column(name, justify="right")
        for sizes in experiment.partition[:_LONGEST_PARTITION]:
            table.add_row(escape(sizes.id), *(f"{getattr(sizes, name):,}" for name in columns))
        self._console.print(table)
        rest = len(experiment.partition) - _LONGEST_PARTITION
        if rest > 0:
            self._console.print(f"… and {rest} more clients")

    def _round(self, event: RoundDone) -> None:
        record = event.record
        score = "–" if record.validation is None else f"{record.validation:.3f}"
        depths = sorted(set(record.client_depths))
        depth = str(depths[0]) if len(depths) == 1 else f"{depths[0]}–{depths[-1]}"
        what = f"depth {depth}/{event.blocks}  validation {score}"
        if record.stage == 0:
            what = "class statistics"
        self._console.print(
            f"stage {record.stage}  round {record.round + 1:>3}/{event.rounds}  "
            f"{what}  sent {size(event.sent_bytes)}  "
            f"{event.seconds:.0f} s, {event.seconds_left:.0f} s left",
            soft_wrap=True,
        )
        for client, reason in record.rejected.items():
            self._console.print(
                f"  rejected client {client}: {reason}", style="yellow", markup=False
            )

        for client, reason in record.warned.items():
            self._console.print(f"  odd client {client}: {reason}", style="yellow", markup=False)
        if record.late:
            self._console.print(
                f"  late, and not counted: {', '.join(record.late)}", style="yellow", markup=False
            )

    def _finished(self, event: Finished) -> None:
        summary = event.summary
        table = Table("test accuracy")
        for name in ("mean", "worst decile", "weighted", "spread"):
            table.add_column(name, justify="right")
        for role, name in ROLES.items():
            scores = summary["test"].get(role)
            if scores is not None:
                label = self._config.method if role == "personal" else name
                keys = ("mean", "worst_decile", "weighted", "std")
                table.add_row(label, *(f"{scores[key]:.3f}" for key in keys))
        self._console.print(table)
        cost = summary["cost"]
        share = cost["trainable_parameters"] / cost["total_parameters"]
        took = "" if cost["wall_seconds"] is None else f"; {cost['wall_seconds']:.0f} s"
        self._console.print(
            f"{size(cost['upload_bytes'])} up and {size(cost['download_bytes'])} down over all "
            f"clients; at most {share:.2%} of {cost['total_parameters']:,} parameters "
            f"trained{took}",
            soft_wrap=True,
        )
        if unused := summary.get("not_used"):
            self._console.print(
                f"not used: {unused} updates; rounds.jsonl says why", style="yellow", soft_wrap=True
            )
        self._console.print(f"run folder: {event.folder}", markup=False, soft_wrap=True)
        report = (
            f"no report: {event.problem}" if event.problem else f"report: {event.folder / NAME}"
        )
        self._console.print(report, markup=False, soft_wrap=True)


def bench_table(
    rows: Sequence[Row], machine: Mapping[str, Any], console: Console | None = None
) -> None:
    """Print what was measured, and where."""
    console = console or Terminal(highlight=False)
    table = Table("measure")
    for name in ("fedms", "peer", "fedms / peer"):
        table.add_column(name, justify="right")
    for row in rows:
        ours, peer = figure(row.ours, row.unit), figure(row.peer, row.unit)
        ratio = "–" if row.ratio is None else f"{row.ratio:.2f}"
        table.add_row(escape(row.measure), ours, peer, ratio)
    console.print(table)
    peers = sorted({row.peer_name for row in rows if row.peer_name})
    for name in peers:
        console.print(f"peer: {name}", markup=False, soft_wrap=True)
    packages = machine["packages"]
    console.print(
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads; "
        f"device {machine['device']}; torch "
        f"{packages['torch']}, Python {machine['python']}; commit {machine['git_commit']}",
        markup=False,
        soft_wrap=True,
    )


def figure(value: float | None, unit: str) -> str:
    """A figure as people read it; a dash for none."""
    if value is None or math.isnan(value):
        return "–"
    if unit == "s":
        return f"{value * 1e3:.1f} ms" if value < 1 else f"{value:.2f} s"
    if unit == "share":
        return f"{value:.3f}"
    return size(round(value)) if unit == "bytes" else f"{value:.2f} {unit}"
