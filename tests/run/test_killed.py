"""Every method, killed (SIGKILL) at every phase boundary of a run, ends as if nothing had happened.

One run is killed at each boundary in turn: a process goes on until it comes to one at which none
was killed before. Random moments are `make soak`'s.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from typing import get_args

import pytest

from fedms import checkpoints
from fedms.config import Method, load_config
from fedms.course import Course
from fedms.events import Evaluated, Finished, RoundDone, Saved, Started
from fedms.run import resume, run
from fedms.runtimes.simulator import Simulator
from fedms.store.run_folder import RunFolder

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="processes are forks"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]
TINY = (
    *("data.max_rows=60", "partition.clients=2", "partition.unseen_clients=1"),
    *("stage1.rounds=1", "stage2.rounds=1", "evaluate_every=1", "runtime.threads=1"),
)
STAGES = ("fedms",)
"""Has a second round of a stage too."""
KINDS = (*STAGES, "fedavg", "ditto", "local")
"""With a server and without, with clients' own states and without; others are for `make e2e`."""
NEEDS = {"probe": ("model.head=linear",), "flexlora": ("lora.ranks.*=4",)}
BOUNDARIES = {
    "trained": (Simulator, "_answer"),  # a client kept its state, its answer is not there yet
    "aggregated": (Course, "_record"),
    "keeping": (checkpoints, "write"),
    "ended": (Course, "_save_models"),
    "completing": (RunFolder, "write_summary"),
}
EVENTS = (Started, RoundDone, Evaluated, Saved, Finished)
PHASES = {*BOUNDARIES, *(event.__name__ for event in EVENTS)}


class Killer:
    """Kills this process at the first boundary that is not among those that are written down."""

    def __init__(self, known):
        self.known, self.round = known, 0

    def __call__(self, phase):
        here = f"{phase} {self.round}\n"
        with self.known.open("a+") as file:
            file.seek(0)
            if here in file:
                return
            file.write(here)
        os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, event):
        if isinstance(event, EVENTS):
            self(type(event).__name__)

    def put(self, owner, name, phase):
        before = getattr(owner, name)

        def killing(*args, **kwargs):
            if phase == "aggregated":
                self.round = args[1].round + 1
            done = before(*args, **kwargs) if phase == "trained" else None
            self(phase)
            return done if phase == "trained" else before(*args, **kwargs)

        setattr(owner, name, killing)


def child(config, path, known):
    """Begin a run, or go on with it, until it is killed or complete."""
    kill = Killer(known)
    if path.exists():
        kill.round = max(RunFolder.open(path).server_states.rounds(), default=0)
    for phase, (owner, name) in BOUNDARIES.items():
        kill.put(owner, name, phase)
    if path.exists():
        resume(path, watch=kill.watch)
    else:
        run(config, path, watch=kill.watch)


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(m, marks=pytest.mark.slow if m in KINDS else pytest.mark.e2e)
        for m in get_args(Method)
    ],
)
def test_killed_at_every_boundary(tmp_path, method, ending, record_property):
    more = ("stage1.rounds=2",) if method in STAGES else NEEDS.get(method, ())
    config = load_config(None, [*TINY, f"method={method}", *more])
    run(config, tmp_path / "whole")
    known, kills, path = tmp_path / "known", 0, tmp_path / "run"
    fork = multiprocessing.get_context("fork")
    while True:
        process = fork.Process(target=child, args=(config, path, known))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
    met = known.read_text().splitlines()
    assert kills == len(met)
    assert {line.split()[0] for line in met} == PHASES
    assert ending(path) == ending(tmp_path / "whole")
    record_property("survived", f"{method}: killed at {kills} boundaries of a run")
