"""`fedms serve`: the application on a socket, until interrupted. The only importer of uvicorn."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import quote

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fedms.core.errors import UserError
from fedms.serve.app import make_app
from fedms.serve.guard import LOCAL
from fedms.serve.service import Service

TOKEN = "FEDMS_TOKEN"  # noqa: S105 - the name of a variable
"""Environment variable that has the token."""
_SHORTEST = 16
_END = 30
"""Seconds in which requests are answered when the service is to end."""
_CONNECTIONS = 1024
_HEADERS = 10
"""Seconds in which a request's headers must arrive."""


def read_token(file: Path | None) -> str | None:
    """The token, from a file or the environment; None where there is none.

    Raises:
        UserError: if it cannot be read, or is short.
    """
    try:
        found = os.environ.get(TOKEN, "") if file is None else file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"got --token-file {file}, which cannot be read: {error}") from None
    token = found.strip()
    if not token and file is None:
        return None
    if len(token) < _SHORTEST or not token.isascii() or not token.isprintable():
        raise UserError(
            f"got a token of {len(token)} characters; expected {_SHORTEST} or more of ASCII; "
            "try: python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    return token


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: if it cannot be had.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, number)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(_CONNECTIONS)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"got --host {host} --port {port}, where nothing can listen ({reason}); try another"
        ) from None
    return found


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def names(host: str, token: str | None) -> tuple[str, ...] | None:
    """Names under which the service may be asked, see `Guard`; None: any.

    With a token any may do: a page in a browser, against which this guards, does not have it.
    """
    if token is not None or not is_local(host):
        return None
    return (*LOCAL, _in_url(host).lower())


class Punctual(H11Protocol):
    """Keeps no connection on which no request comes, for which uvicorn would wait for ever."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._cancel()

    def _watch(self) -> None:
        """Count the seconds until headers are whole, whatever part of them comes."""
        if self.conn.their_state is not h11.IDLE:
            self._cancel()
        elif self._late is None:
            self._late = self.loop.call_later(_HEADERS, self.transport.close)

    def _cancel(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def serve(
    service: Service,
    line: socket.socket,
    *,
    token: str | None,
    host: str,
    say: Callable[[str], None],
) -> None:
    """Answer until interrupted; then what is being asked is answered first.

    Args:
        service: answers.
        line: a socket that listens.
        token: see `Guard`.
        host: where it listens, see `names`.
        say: is told a line for every request.
    """
    app = make_app(service, token=token, hosts=names(host, token), say=say)
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=Punctual,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=_END,
    )
    uvicorn.Server(config).run(sockets=[line])


def address(line: socket.socket, host: str) -> str:
    """Where it is reached."""
    return f"http://{_in_url(host)}:{line.getsockname()[1]}"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else quote(host)
