"""Write the inputs that fuzzing starts from: `fuzz/corpus`.

python fuzz/seeds.py
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedms.config import Config, dump_config
from fedms.core.algorithm import ClientInfo, ClientUpdate, Score
from fedms.core.costs import Costs
from fedms.core.rows import ClientSizes
from fedms.runtimes import messages, service
from fedms.runtimes.rounds import Answer

CORPUS = Path(__file__).parent / "corpus"


def main() -> None:
    """Write them."""
    tensors = {"global/a": torch.ones(2, 3), "calibration/rows": torch.ones(1)}
    update = ClientUpdate("a", 0, 8, tensors, Score(1, 2, 0.5), 1, 6)
    hello = {"client": messages.write(ClientInfo("a", 8, None, None, 2))}
    hello["sizes"] = messages.write(ClientSizes("a", 8, 2, 0, 2))
    row = {"test": {"personal": {"a": messages.write(Score(1, 2, 0.5))}}}
    costs = messages.write(Costs())
    written = {
        "message/update": messages.encode(service.of_answer(Answer(update, Costs()))),
        "message/hello": messages.encode(messages.Message("hello", hello)),
        "message/scores": messages.encode(
            messages.Message("scores", {"scores": row, "costs": costs})
        ),
        "facts/any": bytes(range(64)),
        "array/npy": _npy(np.ones((2, 3), np.float32)) + b"\0",
        "array/line": _npy(np.ones(6, np.float32)) + b"\1",
        "config/default.toml": dump_config(Config()).encode(),
        "config/settings": b"\nstage1.rounds=3\ndata.path=\nsal.caps.a=2\n",
    }
    for name, data in written.items():
        (CORPUS / name).parent.mkdir(parents=True, exist_ok=True)
        (CORPUS / name).write_bytes(data)


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


if __name__ == "__main__":
    main()
