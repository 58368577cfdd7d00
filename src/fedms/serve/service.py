"""All clients' models, asked by many at once: rows of several requests are one batch."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from fedms import data
from fedms.core.errors import UserError
from fedms.core.rows import Rows, join
from fedms.serve.batching import Batcher
from fedms.serve.limits import DamagedError, Limits, NotFoundError, OverloadedError
from fedms.use import Models, Said

_log = logging.getLogger(__name__)
_Asked = tuple[str, Rows]


class Service:
    """Answers requests. One thread reads inputs, another has the models.

    Args:
        models: of a run; nothing else may use them.
        limits: of requests.
    """

    def __init__(self, models: Models, limits: Limits | None = None) -> None:
        self.models, self.limits = models, limits or Limits()
        self._reader = ThreadPoolExecutor(1, "fedms-reader")
        self._thinker = ThreadPoolExecutor(1, "fedms-models")
        self._batcher = Batcher[_Asked, list[Said]](
            self._perform, self._thinker, self.limits.batch, self.limits.wait
        )
        self._held = 0

    async def predict(self, client: str, inputs: Sequence[str]) -> list[Said]:
        """What a client's model says of texts, or of pictures in base64.

        Raises:
            NotFoundError: if there is no such client.
            OverloadedError: if too much is waiting.
            UserError: if an input cannot be used; it is named by its place.
        """
        self._check(client, inputs)
        self._held += len(inputs)
        try:
            loop = asyncio.get_running_loop()
            rows = await loop.run_in_executor(self._reader, self._read, inputs)
            return await self._batcher.ask((client, rows), len(rows))
        finally:
            self._held -= len(inputs)

    async def close(self) -> None:
        """End both threads; what is being computed is finished."""
        await self._batcher.close()
        self._reader.shutdown()
        self._thinker.shutdown()

    def _check(self, client: str, inputs: Sequence[str]) -> None:
        limits = self.limits
        if not self.models.has(client):
            raise NotFoundError("got a client without a model here; expected one of GET /clients")
        if len(inputs) > limits.inputs:
            raise UserError(
                f"got {len(inputs)} inputs; expected at most {limits.inputs}; try several requests"
            )
        if self._held + len(inputs) > limits.waiting:
            raise OverloadedError(
                f"got more than {limits.waiting} rows at a time; try again in a second"
            )

    def _read(self, inputs: Sequence[str]) -> Rows:
        """Inputs as the model takes them; of pictures one at a time is in memory."""
        where = [f"inputs[{i}]" for i in range(len(inputs))]
        if self.models.takes == "text":
            for text, place in zip(inputs, where, strict=True):
                _check_text(text, place, self.limits.characters)
            return self.models.encoded(data.Table("text", inputs, [""] * len(inputs)))
        pictures = zip(inputs, where, strict=True)
        return join([self._picture(text, place) for text, place in pictures])

    def _picture(self, text: str, place: str) -> Rows:
        content = _decoded(text, place)
        image = data.decode_image(content, place, self.limits.pixels)
        return self.models.encoded(data.Table("image", [image], [""]))

    def _perform(self, asked: Sequence[_Asked]) -> list[list[Said] | Exception]:
        """Answers of a batch. A model that cannot be read is the error of those who asked it."""
        answers: dict[int, list[Said] | Exception] = {}
        parts = []
        for i, (client, rows) in enumerate(asked):
            try:
                parts.append((i, self.models.model(client), rows))
            except UserError as error:
                _log.error("%s", error)
                answers[i] = DamagedError(
                    "got a model here that cannot be read; tell who runs the service"
                )
        said = self.models.together([(model, rows) for _, model, rows in parts])
        answers |= {i: found for (i, _, _), found in zip(parts, said, strict=True)}
        return [answers[i] for i in range(len(asked))]


def _check_text(text: str, place: str, most: int) -> None:
    if not text.strip():
        raise UserError(f"got no text at {place}; expected some")
    if len(text) > most:
        raise UserError(f"got {len(text):,} characters at {place}; expected at most {most:,}")


def _decoded(text: str, place: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise UserError(
            f"got something else at {place}; expected the content of a picture file in base64"
        ) from None
