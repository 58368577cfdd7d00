"""Your own rows: a CSV file with a column that says whose they are.

python examples/own_csv.py rows.csv --client clinic --input notes --label diagnosis
"""

from __future__ import annotations

import argparse

from datasets import Dataset

from fedms import FedMS


def main() -> None:
    """Train on a file, and say how good every client's model is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--model", default="minilm", help="a name, folder or hub id")
    parser.add_argument("--client", default="client", help="column that says whose a row is")
    parser.add_argument("--input", default="text", help="column with the text")
    parser.add_argument("--label", default="label", help="column with the class")
    parser.add_argument("--rounds", type=int, default=5, help="of each stage")
    parser.add_argument("--out", help="run folder; without it nothing is kept")
    given = parser.parse_args()

    rounds = {"rounds": given.rounds}
    fed = FedMS(given.model, stage1=rounds, stage2=rounds)
    result = fed.fit(
        Dataset.from_csv(given.file),
        input=given.input,
        label=given.label,
        partition={"by": "column", "column": given.client},
        out=given.out,
    )
    for client in result.clients:
        print(client["id"], client["test_rows"], client["test_accuracy_personal"])


if __name__ == "__main__":
    main()
