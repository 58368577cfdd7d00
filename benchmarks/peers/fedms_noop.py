"""What fedms' rounds cost by themselves: stage 1 of clients that send back the arrays they got.

    python benchmarks/peers/fedms_noop.py --clients 10 --rounds 5 --out RESULT.json

24 float32 tensors, 0.6 MB in all, as in `flower_noop.py`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from memory import age

from fedms.bench.rounds import idle_rounds


def main() -> None:
    """Run the rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    words = parser.parse_args()
    imported = age()
    start, rounds = idle_rounds(words.clients, words.clients, words.rounds, stage=1)
    result = {
        "peer": "fedms_noop",
        "clients": words.clients,
        "import_seconds": imported,
        "start_seconds": imported + start,
        "round_seconds": rounds,
    }
    words.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
