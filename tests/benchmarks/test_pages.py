"""What writes the tables of README and docs: cells in, a block of a page out, no more touched."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedms.bench import Row
from fedms.compare import Result
from fedms.compare.records import Point, Record

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
    results, measures_of = module("results"), module("performance").measures_of
    measured = [
        *measures_of("cpu"),
        *(f"{name}-cuda" for name in measures_of("cuda") if name != "workers"),
    ]
    compared = [*module("compare").BLOCKS.values(), "accuracy-cuda"]
    cells = [cell.name for cell in results.CELLS]
    others = [module("heads").NAME, *(module(n).OUT.name for n in ("spending", "unequal"))]
    for page, names in (
        (results.README, ["results"]),
        (results.PAGE, ["sizes", "standing", "parts", "earlier", "visitors", *others, *cells]),
        (module("performance").PAGE, [*measured, *compared, "compiled", "waiting", "across"]),
        (module("robustness").PAGE, [*module("robustness").CASES]),
        (module("serving").PAGE, ["serving"]),
        (module("liars").PAGE, ["liars", "rejections"]),
    ):
        text = page.read_text(encoding="utf-8")
        for name in names:
            assert [text.count(f"<!-- {side} {name} -->") for side in ("begin", "end")] == [1, 1]
        assert text.count("<!-- begin ") == len(names)


def found(accuracies: dict[str, tuple[float, float]]) -> dict[str, list[Result]]:
    """Results of methods by mean and worst decile; costs are as many as letters in the name."""
    methods = {}
    for name, (mean, worst) in accuracies.items():
        test, spent = {"mean": mean, "worst_decile": worst}, len(name)
        cost = {"upload_bytes": spent, "download_bytes": spent, "train_flops": 0}
        record = Record({}, {}, {}, ())
        one = Result(name, 0, 1e-3, False, Path(), record, test, None, None, None, cost)
        methods[name] = [one, replace(one, seed=1)]
    return methods


def test_the_overview_has_a_line_a_cell_and_the_best_as_published(module: Any) -> None:
    results = module("results")
    methods = {"local": (0.5, 0.1), "ditto": (0.6, 0.2), "fedms": (0.75, 0.3)}
    bounds = {"centralised": (0.9, 0.9), "finetune+statistics": (0.8, 0.2)}
    text = results.overview({"x": found({**methods, **bounds})})
    assert text.splitlines()[2] == "| x | – | 0.500 | – | – | 0.800 | Ditto 0.600 | 0.750 |"


def test_where_fedms_stands_by_hand(module: Any) -> None:
    """Best means and best worst deciles may be of different methods; bounds and ours are none."""
    results = module("results")
    methods = {"local": (0.5, 0.4), "ditto": (0.6, 0.2), "fedavg": (0.4, 0.1), "fedms": (0.75, 0.3)}
    bounds = {"centralised": (0.9, 0.9), "finetune+statistics": (0.8, 0.2)}
    text = results.standing({"x": found({**methods, **bounds})})
    cells = ["x", "3", "0.750", "0.600: Ditto", "+0.150 ± 0.000"]
    cells += ["0.300", "0.400: local-only LoRA", "-0.100 ± 0.000"]
    cells += ["+87.5%: FedAvg-LoRA", "+25.0%: Ditto", "+25.0%: Ditto"]
    cells += ["-6.2%", "0.200", "+0.100 ± 0.000", "1.00", "–", "Ditto"]
    assert text.splitlines()[2] == f"| {' | '.join(cells)} |"


def test_what_an_earlier_round_would_give_by_hand(module: Any) -> None:
    """FedAvg's first seed is ahead in round 4, by validation rows and not by test rows."""
    results = module("results")
    methods = found({"local": (0.5, 0.4), "fedavg": (0.6, 0.1), "ffa": (0.55, 0.1)})
    ours = found({"fedms": (0.75, 0.3)})

    def scored(validation: float, test: float) -> Record:
        points = [(4, validation, test), (6, 0.99, 0.99), (8, 0.7, 0.6)]
        at = (Point(n, 0, 0, 0.0, val, score) for n, val, score in points)
        return Record({"evaluate_every": 4}, {}, {}, tuple(at))

    for name, first in {"local": scored(0.9, 0.9), "fedavg": scored(0.8, 0.56)}.items():
        one, two = methods[name]
        methods[name] = [replace(one, record=first), replace(two, record=scored(0.7, 0.9))]
    methods["ffa"] = [replace(r, record=scored(0.6, 0.9)) for r in methods["ffa"]]
    text = results.earlier({"x": {**methods, **ours}})
    cells = ["x", "4", "1", "-0.0100", "0.600: FedAvg-LoRA", "0.580: FedAvg-LoRA", "0.750"]
    assert text.splitlines()[2] == f"| {' | '.join(cells)} |"


def test_what_is_forgotten_is_that_method_alone(module: Any, tmp_path: Path) -> None:
    names = ["fedms-rate0.01-seed0", "fedms-even-rate0.01-seed0", "local-rate0.01-seed0"]
    for name in names:
        (tmp_path / "runs" / name).mkdir(parents=True)
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps({"run": name}) + "\n" for name in names))
    module("results").forget(tmp_path, ["fedms"])
    assert [json.loads(line)["run"] for line in path.read_text().splitlines()] == names[1:]
    assert sorted(run.name for run in (tmp_path / "runs").iterdir()) == sorted(names[1:])
    module("results").forget(tmp_path / "new", ["fedms"])


def of_clients(method: str, accuracies: dict[str, float]) -> list[Result]:
    """On two seeds, the second 0.1 better; the worst decile is the worst client."""
    (first, second) = found({method: (0.0, 0.0)})[method]
    results = []
    for result, more in ((first, 0.0), (second, 0.1)):
        scores = {client: accuracy + more for client, accuracy in accuracies.items()}
        mean = sum(scores.values()) / len(scores)
        test = {"mean": mean, "worst_decile": min(scores.values()), "per_client": scores}
        cost = {"upload_bytes": 2e6, "download_bytes": 1e6, "train_flops": 4e12}
        results.append(replace(result, test=test, cost=cost))
    return results


def test_unequal_devices_by_hand(module: Any) -> None:
    """Halves of clients, beside what they have where all devices are equal."""
    unequal = module("unequal")
    equal = {m: of_clients(m, {"a": 0.6, "b": 0.8, "c": 0.7}) for m in ("local", "fedms")}
    weak = unequal.weaker(equal)
    assert weak == ["a", "c"]
    assert [*unequal.limits("flexlora", weak)] == ["lora.ranks.a=2", "lora.ranks.c=2"]
    assert [*unequal.limits("fedms", weak)] == ["sal.caps.a=2", "sal.caps.c=2"]
    own = {"local": of_clients("local", {"a": 0.3, "b": 0.8, "c": 0.5})}
    own["fedms"] = of_clients("fedms", {"a": 0.6, "b": 0.8, "c": 0.5})
    local, ours = unequal.lines(own, equal, weak).splitlines()[2:]
    cells = ["local-only LoRA", "0.583 (0.750)", "0.450 (0.700)", "0.850 (0.850)"]
    cells += ["0.350 (0.650)", "+0.100 ± 0.000", "0.001", "3.0", "4.0"]
    assert local == f"| {' | '.join(cells)} |"
    assert ours.startswith("| **FedMS** | 0.683 (0.750) | 0.600 (0.700) |")


def test_heads_by_hand(module: Any) -> None:
    """With a linear head, in brackets with prompts, and FedMS with these beside it."""
    prompts = {"fedms": of_clients("fedms", {"a": 0.6, "b": 0.8})}
    prompts["fedper"] = of_clients("fedper", {"a": 0.5, "b": 0.5})
    heads = {"fedper": of_clients("fedper", {"a": 0.7, "b": 0.9})}
    heads["fedms-plain"] = of_clients("fedms-plain", {"a": 0.5, "b": 0.7})
    fedper, plain = module("heads").lines(prompts, heads)
    expected = ["FedPer", "0.850 (0.550)", "0.750 (0.550)", "-0.100 ± 0.000", "0.001"]
    assert fedper == expected
    assert plain[1:] == ["0.650 (–)", "0.550 (–)", "+0.100 ± 0.000", "0.001"]
