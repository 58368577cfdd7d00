"""Names and texts of any characters and lengths: they train, and stay inside the run folder."""

from __future__ import annotations

import csv
import io

import pandas as pd
import pytest

from fedms.config import load_config
from fedms.core.errors import UserError
from fedms.holdings import holdings
from fedms.run import run

WORDS = (
    "data.source=csv",
    "partition.by=column",
    "partition.column=who",
    "stage1.rounds=1",
    "stage2.rounds=1",
    "runtime.threads=1",
)
CLIENTS = ("../../outside", "/etc/passwd", "كلية الطب", "a\x1b[31m\x07b", "..", "nul\u202eeman")
CLASSES = ("", "שלום", "👩🏽‍⚕️", "<script>alert(1)</script>", "x" * 5000, "../label")
READ = pd.read_csv(io.StringIO("a\n\u0000\n"), dtype=str, na_filter=False)["a"]
NUL = "\u0000" if READ.tolist() == ["\u0000"] else "\u0001"
"""Some versions of pandas read a field of NUL as an empty one."""
TEXTS = (NUL, "\ufeff\u200b", "👩🏽‍⚕️ 診断", "word " * 5_000, "x" * 50_000, "a\x1b[2Jb", "…")


@pytest.fixture
def table(tmp_path):
    """Every client has rows of two classes, with all texts."""

    def written(classes, *more):
        path = tmp_path / "data.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            out = csv.writer(file)
            out.writerow(["text", "label", "who"])
            for k, who in enumerate(CLIENTS):
                for i in range(14):
                    out.writerow([TEXTS[i // 2], classes[(k + i % 2) % len(classes)], who])
            out.writerows(more)
        return path

    return written


@pytest.mark.slow
def test_words_of_any_kind_train(table, tmp_path, model_folder):
    path, out = table(CLASSES[1:]), tmp_path / "runs" / "one"
    words = [*WORDS, f"data.path={path}", f"model.name={model_folder('sentence')}"]
    summary = run(load_config(None, words), out)
    assert set(summary["test"]["personal"]["per_client"]) == set(CLIENTS)
    assert {p.name for p in tmp_path.iterdir()} == {"data.csv", "runs"}
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {"one"}
    kept = list((out / "adapters" / "clients").iterdir())
    assert len(kept) == len(CLIENTS)
    assert all(p.is_dir() and not p.is_symlink() for p in kept)


@pytest.mark.parametrize("text", ["", " \t", "\u2003"])
def test_rows_without_text_are_named_or_left_out_and_counted(table, tmp_path, text):
    path = table(CLASSES[1:], [text, CLASSES[1], CLIENTS[0]])
    words = [*WORDS, f"data.path={path}"]
    with pytest.raises(UserError, match=r"row 85 of data\.csv"):
        run(load_config(None, words), tmp_path / "run")
    found = holdings(load_config(None, [*words, "data.drop_empty=true"]))
    assert "; 1 rows left out, as data.drop_ says" in found.summary


def test_a_class_without_a_name_is_refused_by_row(table, tmp_path):
    path = table(CLASSES)
    with pytest.raises(UserError, match=r"row 1 of data\.csv"):
        run(load_config(None, [*WORDS, f"data.path={path}"]), tmp_path / "run")
