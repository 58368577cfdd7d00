"""What writes the tables of README and docs: cells in, a block of a page out, no more touched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedms.bench import Row
from fedms.compare import Result

ROOT = Path(__file__).parents[2]


def test_a_table_in_markdown(module: Any) -> None:
    text = module("pages").table(["", "a"], [["x", "1"], ["y", ""]])
    assert text == "|  | a |\n|---|---|\n| x | 1 |\n| y |  |"


def test_the_cells_of_a_row(module: Any) -> None:
    cells = module("pages").cells
    assert cells(Row.of("m", 0.5, "s", 3, ("peer", 2.0))) == ["m", "500.0 ms", "2.00 s", "0.25"]
    assert cells(Row.of("m", 3e6, "bytes", 1)) == ["m", "3.0 MB", "–", "–"]
    missed = Row.of("m", float("nan"), "s", 1, ("peer", 2.0))
    assert cells(missed) == ["m", "–", "2.00 s", "–"]


def test_a_block_is_written_over_and_the_rest_stays(module: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    frame = "# 1 µ\n<!-- begin a -->\n{}<!-- end a -->\ntext\n<!-- begin b -->\nb\n<!-- end b -->\n"
    page.write_text(frame.format(""), encoding="utf-8")
    for text in ("first – and\nmore", "second"):
        module("pages").write(page, "a", text)
        assert page.read_text(encoding="utf-8") == frame.format(text + "\n")
        assert module("pages").read(page, "a") == text


@pytest.mark.parametrize(
    "text", ["", "<!-- begin a -->", "<!-- end a -->\n<!-- begin a -->", "<!-- begin ab -->"]
)
def test_a_page_without_the_block_is_an_error(module: Any, tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match=r"no block 'a' in page.md; expected <!-- begin a -->"):
        module("pages").write(page, "a", "new")
    assert page.read_text() == text


def test_every_table_has_a_block_of_its_own(module: Any) -> None:
    results, measured = module("results"), [*module("performance").MEASURES]
    compared = [*module("compare").BLOCKS.values()]
    cells = [cell.name for cell in results.CELLS]
    for page, names in (
        (results.README, ["results"]),
        (results.PAGE, cells),
        (module("performance").PAGE, [*measured, *compared, "compiled"]),
    ):
        text = page.read_text(encoding="utf-8")
        for name in names:
            assert [text.count(f"<!-- {side} {name} -->") for side in ("begin", "end")] == [1, 1]
        assert text.count("<!-- begin ") == len(names)


def test_a_line_of_the_overview_stays_where_a_cell_was_not_run(module: Any) -> None:
    results = module("results")
    score = {"mean": 0.5}
    new = [
        Result(name, 0, 1e-3, False, Path(), score, None, None, None, {})
        for name in ("local", "fedms")
    ]
    before = results.overview({"femnist": new, "amazon5": new}, "")
    assert [line.split(" | ")[0] for line in before.splitlines()[2:]] == ["| femnist", "| amazon5"]
    assert before.splitlines()[2].endswith("| 0.500 | – | – | – | local-only LoRA 0.500 | 0.500 |")
    better = [replace(one, test={"mean": 0.75}) for one in new]
    after = results.overview({"digits": new, "amazon5": better}, before).splitlines()
    assert after[:2] == before.splitlines()[:2]
    assert after[3] == before.splitlines()[2]
    assert [line.split(" | ")[-1] for line in after[2:]] == ["0.500 |", "0.500 |", "0.750 |"]
