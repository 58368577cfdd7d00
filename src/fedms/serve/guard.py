"""What stands before the application: who may ask, how much, and a line in the log.

A log line has method, route, status and milliseconds: never what was asked or answered.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from fedms.serve.limits import Limits

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/health", "/docs", "/openapi.json")
"""Without a token: they tell nothing of the run."""
LOCAL = ("localhost", "127.0.0.1", "[::1]")
"""Names of this machine for itself."""


class _RefusedError(Exception):
    def __init__(self, status: int, error: str) -> None:
        super().__init__(error)
        self.status, self.error = status, error


class Guard:
    """An ASGI application before another.

    Args:
        app: that application.
        limits: of bodies.
        routes: paths that may stand in the log.
        token: that must come as `Authorization: Bearer TOKEN`; None: anyone may ask.
        hosts: names under which the service is asked; None: any. A web page that makes its own
            name one of this machine's (DNS rebinding) still comes with its own.
        say: is told a line for every request; None: nobody is.
    """

    def __init__(
        self,
        app: App,
        limits: Limits,
        routes: Collection[str],
        token: str | None = None,
        hosts: Collection[str] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._app, self._limits, self._routes, self._say = app, limits, routes, say
        self._token = None if token is None else _digest(token.encode())
        self._hosts = hosts
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI's specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500  # if no answer comes of it

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._let_in(scope, receive, watched)
        except _RefusedError as refused:
            await _answer(watched, refused.status, refused.error)
        finally:
            if self._say is not None:
                path = scope["path"] if scope["path"] in self._routes else "(no route)"
                seconds = time.perf_counter() - began
                self._say(f"{scope['method']} {path} {status} {1000 * seconds:.0f} ms")

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        host = headers.get(b"host", b"").decode("latin-1")
        if self._hosts is not None and _name(host) not in self._hosts:
            raise _RefusedError(421, "got another Host; expected a name of this machine")
        if scope["path"] not in OPEN and not self._knows(headers.get(b"authorization", b"")):
            raise _RefusedError(401, "got no valid token; expected Authorization: Bearer TOKEN")
        if _number(headers.get(b"content-length", b"0")) > self._limits.body:
            raise self._too_large()
        body = bytearray()
        try:
            await self._read(receive, body)
            await self._app(scope, _replayed(bytes(body), receive), send)
        finally:
            self._held -= len(body)

    def _knows(self, given: bytes) -> bool:
        """Whether a header has the token; how long that takes does not depend on it."""
        scheme, _, token = given.partition(b" ")
        same = self._token is None or hmac.compare_digest(_digest(token.strip()), self._token)
        return same and (self._token is None or scheme.lower() == b"bearer")

    async def _read(self, receive: Receive, body: bytearray) -> None:
        """The whole body; what is read is counted in `held`."""
        until = asyncio.get_running_loop().time() + self._limits.patience
        more = True
        while more:
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                said = f"got no whole body in {self._limits.patience:g} s"
                raise _RefusedError(408, said) from None
            part = message.get("body", b"")
            body += part
            self._held += len(part)
            if len(body) > self._limits.body:
                raise self._too_large()
            if self._held > self._limits.bodies:
                raise _RefusedError(503, "got more than there is room for; try again in a second")
            more = message["type"] == "http.request" and message.get("more_body", False)

    def _too_large(self) -> _RefusedError:
        most = self._limits.body
        return _RefusedError(413, f"got a larger body; expected at most {most:,} bytes")


def _number(header: bytes) -> int:
    """Of a header; 0 where it has none: what comes is counted all the same."""
    return int(header[:18]) if header.isdigit() else 0


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _name(host: str) -> str:
    """A Host header without its port."""
    return (host if host.endswith("]") else host.rsplit(":", 1)[0]).lower()


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Hands over a body that has been read; then what else comes, as that the asker has gone."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> MutableMapping[str, Any]:
        return pending.pop() if pending else await receive()

    return again


async def _answer(send: Send, status: int, error: str) -> None:
    content = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    headers += [(b"connection", b"close")]  # the rest of a body is not read
    headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
    headers += [(b"retry-after", b"1")] if status == 503 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
