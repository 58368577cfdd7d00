"""A private state that is lost is missed: its client does not begin anew without a word."""

from __future__ import annotations

import shutil

import pytest

from fedms import checkpoints
from fedms.core.errors import UserError
from fedms.events import RoundDone
from fedms.run import resume, run
from fedms.store.run_folder import RunFolder

COHORT = "stage2.cohort=2"
"""Of three clients, so that one's newest state may be of an earlier round."""


class EndError(Exception):
    """The process ends here."""


def ended(config, path, rounds):
    """A run that ends when so many rounds are done; the last one has no checkpoint."""

    def watch(event):
        if isinstance(event, RoundDone) and event.record.round + 1 == rounds:
            raise EndError

    with pytest.raises(EndError):
        run(config, path, watch=watch)
    return RunFolder.open(path, config.checkpoint_every)


@pytest.fixture(scope="module")
def begun(tmp_path_factory, small):
    """Two of four rounds of stage 2 are kept, and the third is done."""
    path = tmp_path_factory.mktemp("begun") / "run"
    return ended(small("stage1.rounds=1", "stage2.rounds=4", COHORT), path, 4).path


@pytest.fixture
def copied(begun, tmp_path):
    return RunFolder.open(shutil.copytree(begun, tmp_path / "run"))


def files(folder):
    return sorted((folder.path / "checkpoints" / "clients").rglob("*.safetensors"))


def latest(folder):
    told = []
    found = checkpoints.latest(folder, ("0", "1", "2"), told.append)
    return found.state.round, told


def test_what_is_newer_than_a_checkpoint_is_no_part_of_it(copied):
    last = max(copied.server_states.rounds())
    newer = [file for file in files(copied) if int(file.stem) >= last]
    assert newer  # the round that was done after it
    for file in newer:
        file.unlink()
    assert latest(copied) == (last, [])


def test_a_lost_state_is_told_of_and_the_checkpoint_before_used(copied, begun, ending, tmp_path):
    before, _ = copied.server_states.rounds()
    (lost, *_) = [file for file in files(copied) if int(file.stem) == before]
    lost.unlink()
    told = []
    resume(copied.path, tell=told.append)
    assert told == [f"got no {lost}, which was there; going back to an earlier checkpoint"]
    whole = shutil.copytree(begun, tmp_path / "whole")
    resume(whole)
    assert ending(copied.path) == ending(whole)


def test_without_any_of_a_clients_states_there_is_no_going_on(copied):
    before, _ = copied.server_states.rounds()
    (lost, *_) = [file for file in files(copied) if int(file.stem) < before]
    shutil.rmtree(lost.parent)
    with pytest.raises(UserError, match="no checkpoint of which is whole"):
        latest(copied)


def test_a_checkpoint_of_an_earlier_version_is_read(copied):
    """Nothing says there of which rounds states are."""
    shutil.rmtree(copied.path / "checkpoints" / "newest")
    shutil.rmtree(copied.path / "checkpoints" / "clients")
    assert latest(copied) == (max(copied.server_states.rounds()), [])


def test_a_damaged_list_of_states_is_told_of(copied):
    before, last = copied.server_states.rounds()
    lists = sorted((copied.path / "checkpoints" / "newest").iterdir())
    assert [int(path.stem) for path in lists] == [before, last]
    lists[1].write_text("[")
    found, (said,) = latest(copied)
    assert found == before
    assert f"got {lists[1]}, which is damaged" in said


@pytest.mark.quick("4")
@pytest.mark.parametrize("rounds", [3, 4, 5])
def test_nothing_is_missed_that_was_not_lost(small, tmp_path, rounds):
    """With rare checkpoints, between which clients' older states go."""
    words = ("stage1.rounds=1", "stage2.rounds=4", COHORT, "checkpoint_every=2")
    told, folder = [], ended(small(*words), tmp_path / "run", rounds)
    assert len(folder.server_states.rounds()) == (rounds - 1) // 2
    resume(folder.path, tell=told.append)
    assert told == []
