"""Updates of the largest numbers that screening accepts: no server comes to what is no number."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from fedms.algorithms import METHODS, Options, Sal, Server, Stage
from fedms.core.errors import UserError
from fedms.core.robust import SUMS, Rule
from fedms.runtimes.rounds import Rules, run_rounds
from fedms.runtimes.simulator import Simulator
from fedms.store.states import ClientStates

MOST = 1e15
OPTIONS = Options(
    Stage(3), Stage(2), Sal("schedule", every=1), server=Server(momentum=0.9), calibrate=True
)


def far_apart(tensors):
    """Sums for calibration by evidence as far apart as is accepted, and all pieces the same."""
    if "calibration/rows" not in tensors:
        return {}
    form = torch.full((6, 6), 1e8 / 6) * tensors["calibration/rows"]
    return {"calibration/spread": form, "calibration/curvature": form}


class Extreme(Simulator):
    """All but one client send the largest numbers, of either sign."""

    def train(self, plan, tensors, cohort):
        for answer in super().train(plan, tensors, cohort):
            update = answer.update
            sign = MOST * (-1) ** (plan.round + ord(update.client))
            sent = {
                n: t if n.startswith(SUMS) else torch.full_like(t, sign)
                for n, t in update.tensors.items()
            } | far_apart(update.tensors)
            liar = replace(answer, update=replace(update, tensors=sent))
            yield answer if update.client == "a" else liar


@pytest.mark.parametrize("rule", ["mean", "geometric", "clip"])
@pytest.mark.parametrize("method", METHODS)
def test_no_server_diverges_by_what_is_accepted(toy, make_toy_client, tmp_path, method, rule):
    """Clients that go on from there may diverge; that is the end of the run, or their own."""
    learner = toy(linear=True)
    clients = [make_toy_client(n, 6, ord(n)) for n in "abc"]
    algorithm = METHODS[method](learner.layout, OPTIONS)
    simulator = Extreme(algorithm, learner, clients, ClientStates(tmp_path))
    states = []
    rules = Rules(aggregation=Rule(rule))
    with suppress(UserError):
        for state, result in run_rounds(algorithm, simulator, algorithm.init(learner, 0), rules):
            states.append(state)
            assert not any("calibration" in reason for reason in result.rejected.values())
    assert states
    assert all(t.isfinite().all() for s in states for t in s.tensors.values())
