"""A site's Flower app: what arrives goes to the site's own process, and its answer back.

Flower starts a process for every message, which would import torch and load the foundation model
each time. The site's process (`fedms site`) has both and stays; it listens on a socket that only
its own user can open, whose path the SuperNode was given as `fedms-socket`.
"""

from __future__ import annotations

from multiprocessing.connection import Client

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedms.runtimes.flower.records import RecordError, to_bytes, to_records

SOCKET = "fedms-socket"
"""Name of the path in the SuperNode's `--node-config`."""

app = ClientApp()


@app.train()
@app.query()
def reply(message: Message, context: Context) -> Message:
    """The site's answer."""
    answer = ask(str(context.node_config[SOCKET]), message.content)
    return Message(answer, reply_to=message)


def ask(socket: str, content: RecordDict) -> RecordDict:
    """What the process behind a socket answers.

    Raises:
        RecordError: if the message is none of fedms'.
        OSError: if nobody is there.
    """
    data = to_bytes(content)
    try:
        with Client(socket, family="AF_UNIX") as line:
            line.send_bytes(data)
            return to_records(line.recv_bytes())
    except (OSError, EOFError) as error:
        raise ConnectionError(
            f"the site's own process gave no answer at {socket} ({error}); try to start it: "
            "fedms site"
        ) from None


__all__ = ["SOCKET", "RecordError", "app", "ask", "reply"]
