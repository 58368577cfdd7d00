"""Trainer's callbacks: which are called, with what, and that they can end a run."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import transformers

from fedms import FedMS, Result, UserError

NAMES = (
    *("on_init_end", "on_train_begin", "on_train_end", "on_epoch_begin", "on_epoch_end"),
    *("on_evaluate", "on_predict", "on_log", "on_save", "on_step_begin", "on_step_end"),
)


class Recorder(transformers.TrainerCallback):
    """Notes every call, with rounds complete by then."""

    def __init__(self):
        self.calls, self.seen = [], []


for name in NAMES:

    def method(self, args, state, control, name=name, **beside):
        self.calls.append((name, state.global_step))
        self.seen.append((name, args, beside))

    setattr(Recorder, name, method)


class Stopper:
    """No subclass of anything: ends the run after so many rounds."""

    def __init__(self, rounds):
        self.rounds = rounds

    def on_epoch_end(self, args, state, control, **beside):
        assert args.num_train_epochs == state.max_steps == 5
        control.should_training_stop = state.global_step == self.rounds


class Keeper:
    """Has seen all rounds at the end, those before a resumption too."""

    def on_train_begin(self, args, state, control, **beside):
        before = [line for line in state.log_history if "validation_accuracy" in line]
        best = max((line["validation_accuracy"] for line in before), default=None)
        assert (state.global_step, state.best_metric) == (len(state.log_history), best)

    def on_train_end(self, args, state, control, **beside):
        lines = [line for line in state.log_history if line["stage"]]
        self.history = [line["validation_accuracy"] for line in lines]


def test_calls_in_order(make, datasets):
    recorder = Recorder()
    make(callbacks=[recorder]).fit(datasets)
    assert recorder.calls[:2] == [("on_init_end", 0), ("on_train_begin", 0)]
    assert recorder.calls[-1] == ("on_train_end", 5)
    third = [name for name, step in recorder.calls if step == 3]
    assert third == [
        *("on_step_end", "on_epoch_end", "on_log", "on_evaluate"),
        *("on_predict", "on_save"),  # after it, stage 1 ends: models are scored
        *("on_epoch_begin", "on_step_begin"),
    ]
    assert sum(name == "on_epoch_begin" for name, _ in recorder.calls) == 5
    logs = [beside["logs"] for name, _, beside in recorder.seen if name == "on_log"]
    assert [line["stage"] for line in logs] == [0, 1, 1, 2, 2]
    assert all(line["upload_bytes"] > 0 for line in logs)
    (args,) = {id(a): a for name, a, _ in recorder.seen if name == "on_log"}.values()
    assert (args.seed, args.learning_rate, args.config.method) == (0, 0.05, "fedms")


@pytest.mark.quick("2")
@pytest.mark.parametrize("rounds", [2, 4])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(
    make, datasets, fitted, assert_alike, tmp_path, rounds
):
    """It has scores and models; then it ends as the one that was never stopped."""
    out = tmp_path / "run"
    result = make(callbacks=[Stopper(rounds)]).fit(datasets, out=out)
    assert not result.complete
    assert result.summary["rounds"] == len(result.rounds) == rounds
    assert result.summary["test"]["global"]["mean"] is not None
    assert len(result.predict("alice", ["red cat"])) == 1
    with pytest.raises(UserError, match="ended early"):
        Result(out).summary  # noqa: B018
    with pytest.raises(UserError, match=r"expected them again"):
        FedMS.resume(out, progress=False)
    others = {**datasets, "bob": datasets["alice"]}
    with pytest.raises(UserError, match=r"whose data \(memory\) are other ones"):
        FedMS.resume(out, others, progress=False)
    seen, last = Keeper(), max((out / "checkpoints" / "server").iterdir())
    if rounds == 4:  # what is damaged is told of, and gone back from
        last.write_bytes(last.read_bytes()[:-3])
        warned = pytest.warns(RuntimeWarning, match="which is damaged: .*an earlier checkpoint")
    else:
        warned = nullcontext()
    with warned:
        assert FedMS.resume(out, datasets, progress=False, callbacks=[seen]).complete
    assert_alike(out, fitted.run_folder)
    assert seen.history == [line["validation_accuracy"] for line in fitted.rounds if line["stage"]]


def test_early_stopping_of_transformers(make, datasets):
    early = transformers.EarlyStoppingCallback(early_stopping_patience=1)
    slow = make(callbacks=[early], training={"learning_rate": 1e-9})
    result = slow.fit(datasets)
    assert not result.complete  # nothing is learned, so that nothing improves
    assert len(result.rounds) == 3  # the first gathers statistics, the second is the best


def test_a_class_and_the_printer_will_do(make, datasets, capsys):
    make(callbacks=[transformers.trainer_callback.PrinterCallback]).fit(datasets)
    assert capsys.readouterr().out.count("upload_bytes") == 5


def test_the_bar_of_transformers_goes_along(make, datasets, capsys):
    make(callbacks=[transformers.trainer_callback.ProgressCallback]).fit(datasets)
    assert "5/5" in capsys.readouterr().err


class Logger:
    """Wants what only Trainer has."""

    def on_train_begin(self, args, state, control, **beside):
        assert args.logging_dir


def test_what_is_trainers_alone_is_told(make, datasets):
    with pytest.raises(AttributeError, match=r"args\.logging_dir is Trainer's alone"):
        make(callbacks=[Logger()]).fit(datasets)
