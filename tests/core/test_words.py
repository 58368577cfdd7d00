"""Words that data hold, on terminals."""

from __future__ import annotations

import io

import pytest
from rich.table import Table

from fedms.core.words import brief, one_line, printable
from fedms.progress import Terminal

STEERING = "a\x1b[31m\x07b\u202ec\x9b2J\x85"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain",
        "two\nlines\t",
        "שלום",
        "👩🏽‍⚕️ 診断",
        "می\u200cخواهم",
        "Qui\u00a0?",
        "東京\u3000都",
        "🏴\U000e0067\U000e007f",
    ],
)
def test_what_steers_nothing_stays(text):
    assert printable(text) == text


def test_what_steers_is_marked():
    assert printable(STEERING) == "a\ufffd[31m\ufffdb\ufffdc\ufffd2J\ufffd"
    assert one_line(f"{STEERING}\nd") == "a [31m b c 2J  d"
    assert brief("a\n" + 999 * "x") == "a " + 298 * "x"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_is_steered_by_its_own_colours_alone(terminal):
    file, system = io.StringIO(), "standard" if terminal else None
    to = Terminal(file=file, force_terminal=terminal, color_system=system, highlight=False)
    table = Table("client")
    table.add_row(f"{STEERING}-end", style="red")
    to.print(table)
    to.print(STEERING, markup=False, soft_wrap=True)
    said = file.getvalue()
    assert said.count("\ufffd[31m\ufffdb\ufffdc\ufffd2J\ufffd") == 2
    assert "-end" in said
    assert "\x1b[31ma\ufffd" in said if terminal else "\x1b" not in said
    assert "\x07" not in said
    assert "\u202e" not in said
