"""What Flower's engine takes by itself: a ServerApp and a ClientApp that send arrays to and fro."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

TENSORS, POLL = 32, 0.1

app = ServerApp()
client = ClientApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Rounds with two nodes, and what each took."""
    words = context.run_config
    numbers = max(1, round(float(words["size"]) * 1e6 / 4 / TENSORS))
    noise = np.random.default_rng(0)
    arrays = ArrayRecord(
        {f"{i:02}": Array(noise.standard_normal(numbers, np.float32)) for i in range(TENSORS)}
    )
    while len(nodes := list(grid.get_node_ids())) < 2:
        time.sleep(POLL)
    seconds = []
    for _ in range(int(words["rounds"])):
        began = time.monotonic()
        content = RecordDict({"arrays": arrays})
        ids = set(grid.push_messages([Message(content, node, MessageType.TRAIN) for node in nodes]))
        while ids:
            time.sleep(POLL)
            for reply in grid.pull_messages(ids):
                ids.discard(reply.metadata.reply_to_message_id)
                arrays = _moved(reply.content.array_records["arrays"], 1.0)
        seconds.append(time.monotonic() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    Path(str(words["out"])).write_text(json.dumps({"seconds": seconds, "peak": peak}))


@client.train()
def echo(message: Message, context: Context) -> Message:
    """The arrays, moved, so that nobody has sent them before: the engine stores contents once."""
    arrays = _moved(message.content.array_records["arrays"], 0.1 + (context.node_id % 7919) / 7919)
    return Message(RecordDict({"arrays": arrays}), reply_to=message)


def _moved(arrays: ArrayRecord, by: float) -> ArrayRecord:
    return ArrayRecord({n: Array(array.numpy() + np.float32(by)) for n, array in arrays.items()})
