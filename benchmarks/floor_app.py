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
    arrays = ArrayRecord({f"{i:02}": Array(np.zeros(numbers, np.float32)) for i in range(TENSORS)})
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
                arrays = reply.content.array_records["arrays"]
        seconds.append(time.monotonic() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    Path(str(words["out"])).write_text(json.dumps({"seconds": seconds, "peak": peak}))


@client.train()
def echo(message: Message, context: Context) -> Message:
    """The arrays, changed, so that none is known to the engine already."""
    arrays = message.content.array_records["arrays"]
    changed = {name: Array(array.numpy() + np.float32(1)) for name, array in arrays.items()}
    return Message(RecordDict({"arrays": ArrayRecord(changed)}), reply_to=message)
