"""The command, called in this process as the shell calls it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from fedms.cli import main


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def fedms(monkeypatch, capfd, tmp_path) -> Callable[..., Ended]:
    """`fedms("run", …)` in an empty folder: exit code and what it wrote to both streams."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["fedms", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Ended(ended.value.code or 0, *capfd.readouterr())

    return call
