"""A run's events as calls of Trainer's callbacks. A round is Trainer's epoch, and its step.

Any object will do whose methods have Trainer's names; those it lacks are not called. The library
has no other callbacks than these: inside it, events are told (`fedms.events`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedms import measures
from fedms.config import Config
from fedms.core.errors import UserError
from fedms.events import Evaluated, Event, Finished, RoundBegins, RoundDone, Saved, Started
from fedms.runtimes.rounds import RoundRecord, read_record
from fedms.store.files import read_lines


@dataclass(frozen=True)
class Arguments:
    """What callbacks read of a run's settings, by the names of Trainer's; `config` has them all."""

    config: Config
    output_dir: str = ""
    num_train_epochs: int = 0
    seed: int = 0
    learning_rate: float = 0.0
    per_device_train_batch_size: int = 0
    metric_for_best_model: str = "eval_accuracy"
    greater_is_better: bool = True
    load_best_model_at_end: bool = False
    eval_strategy: str = "epoch"
    logging_strategy: str = "epoch"
    save_strategy: str = "epoch"
    disable_tqdm: bool = True

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"args.{name} is Trainer's alone; args.config has all settings; for trackers, try "
            'tracking={"to": "tensorboard"} in place of a callback'
        )


@dataclass
class State:
    """Where a run is, by the names of Trainer's.

    Args:
        epoch, global_step: complete rounds.
        max_steps, num_train_epochs: all rounds.
        best_metric: the highest validation accuracy before this round.
        log_history: what `on_log` was told.
    """

    epoch: float = 0.0
    global_step: int = 0
    max_steps: int = 0
    num_train_epochs: int = 0
    best_metric: float | None = None
    best_global_step: int | None = None
    log_history: list[dict[str, float]] = field(default_factory=list)
    is_local_process_zero: bool = True
    is_world_process_zero: bool = True
    is_hyper_param_search: bool = False
    total_flos: float = 0.0


@dataclass
class Control:
    """What callbacks ask for: `should_training_stop` is heard, and the run ends after the round.

    The others are there for callbacks that set them; models are scored and kept when the
    configuration says so.
    """

    should_training_stop: bool = False
    should_epoch_stop: bool = False
    should_save: bool = False
    should_evaluate: bool = False
    should_log: bool = False


def checked(callbacks: Any) -> list[Any]:
    """A list of callbacks.

    Raises:
        UserError: if it is none, or something in it has no method with a name of Trainer's.
    """
    if not isinstance(callbacks, list | tuple):
        raise UserError(f"got {callbacks!r} for callbacks; expected a list; try callbacks=[…]")
    for one in callbacks:
        if not any(name.startswith("on_") for name in dir(one)):
            raise UserError(
                f"got {one!r} for a callback; expected an object with methods as on_epoch_end; "
                'trackers go by name: try tracking={"to": "tensorboard"}'
            )
    return list(callbacks)


class Callbacks:
    """Watches a run for some objects with Trainer's methods.

    Args:
        callbacks: them, or classes of them.
        config: of the run.
    """

    def __init__(self, callbacks: Sequence[Any], config: Config) -> None:
        self._callbacks = [c() if isinstance(c, type) else c for c in callbacks]
        self._arguments, self._state, self.control = Arguments(config), State(), Control()

    def __call__(self, event: Event) -> None:
        match event:
            case Started():
                self._begin(event)
            case RoundBegins():
                self._state.epoch, self._state.global_step = float(event.round), event.round
                self._tell("on_epoch_begin")
                self._tell("on_step_begin")
            case RoundDone():
                self._round(event)
            case Evaluated():
                self._tell("on_predict", metrics=measures.of_scores(event.test))
            case Saved():
                self._tell("on_save")
            case Finished():
                self._tell("on_train_end", metrics=measures.of_summary(event.summary))

    def stop(self) -> bool:
        """Whether one asked for it."""
        return self.control.should_training_stop

    def _begin(self, event: Started) -> None:
        config, rounds = self._arguments.config, event.rounds
        self._arguments = Arguments(
            config,
            str(event.folder),
            rounds,
            config.seed,
            config.training.learning_rate,
            config.training.batch_size,
        )
        self._state.max_steps = self._state.num_train_epochs = rounds
        for line in read_lines(event.folder / "rounds.jsonl"):  # of a run that goes on
            record = read_record(line)
            self._count(record)
            self._compare(record.validation)
        self._tell("on_init_end")
        self._tell("on_train_begin")

    def _round(self, event: RoundDone) -> None:
        self._count(event.record)
        state, score = self._state, event.record.validation
        self._tell("on_step_end")
        self._tell("on_epoch_end")
        self._tell("on_log", logs=dict(state.log_history[-1]))
        if score is not None:
            self._tell("on_evaluate", metrics={"eval_accuracy": score, "epoch": state.epoch})
        self._compare(score)

    def _count(self, record: RoundRecord) -> None:
        """One more round."""
        state = self._state
        state.epoch, state.global_step = float(record.round + 1), record.round + 1
        state.total_flos += record.costs.flops or 0
        state.log_history.append({**measures.of_round(record), "epoch": state.epoch})

    def _compare(self, score: float | None) -> None:
        """With the best, after callbacks have, as Trainer does."""
        state = self._state
        if score is not None and (state.best_metric is None or score > state.best_metric):
            state.best_metric, state.best_global_step = score, state.global_step

    def _tell(self, name: str, **beside: Mapping[str, float]) -> None:
        for callback in self._callbacks:
            method = getattr(callback, name, None)
            given = (
                None
                if method is None
                else method(self._arguments, self._state, self.control, **beside)
            )
            if given is not None:  # as Trainer lets it
                self.control = given
