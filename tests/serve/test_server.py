"""`fedms serve` as a program, and what is refused before it listens."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

from fedms.cli import main
from fedms.core.errors import UserError
from fedms.serve import server
from fedms.serve.limits import Limits
from fedms.serve.service import Service
from fedms.use import Models

TOKEN = "x" * 20


@pytest.fixture(scope="module")
def program(served):
    """A service on a free port, with a token, until the module's tests are done."""
    command = [sys.executable, "-m", "fedms.cli", "serve", str(served)]
    found = subprocess.Popen(
        [*command, "--port", "0", "--json", "--wait", "0.3"],
        env={**os.environ, "FEDMS_TOKEN": TOKEN},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    facts = json.loads(found.stdout.readline())
    yield found, facts
    if found.poll() is None:
        found.kill()
    found.communicate()


@pytest.mark.slow
def test_it_answers_and_ends_when_told_after_what_was_asked(program):
    process, facts = program
    assert facts["clients"] == 3
    assert (facts["takes"], facts["token"]) == ("image", True)
    assert facts["url"].startswith("http://127.0.0.1:")
    picture = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(picture, "PNG")
    ask = {"client": "1", "inputs": [base64.b64encode(picture.getvalue()).decode()]}
    answers = []

    def post():
        headers = {"authorization": f"Bearer {TOKEN}"}
        answers.append(httpx.post(f"{facts['url']}/predict", json=ask, headers=headers))

    assert httpx.get(f"{facts['url']}/clients").status_code == 401
    post()
    assert answers[0].status_code == 200
    late = threading.Thread(target=post)
    late.start()
    time.sleep(0.15)  # of the 0.3 s that its batch waits
    process.send_signal(signal.SIGTERM)
    late.join(10)
    assert answers[1].json() == answers[0].json()
    _, said = process.communicate(timeout=10)
    assert process.returncode == 0
    assert said.splitlines()[-1] == "service ended"
    assert said.count("POST /predict 200") == 2
    assert "Traceback" not in said


@pytest.fixture
def fails(monkeypatch, capfd):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["fedms", "serve", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfd.readouterr().err
        assert ended.value.code == 2
        assert len(said.splitlines()) == 1
        return said

    return call


def test_what_a_person_can_mend_is_one_line(served, fails, tmp_path, monkeypatch):
    monkeypatch.delenv(server.TOKEN, raising=False)
    assert "without a token" in fails(served, "--host", "0.0.0.0")
    assert "expected a size" in fails(served, "--memory", "much")
    assert "no models of a run" in fails(tmp_path)
    assert "cannot be read" in fails(served, "--token-file", tmp_path / "none")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "nothing can listen" in fails(served, "--port", taken.getsockname()[1])


def test_a_request_that_is_allowed_has_room(served, monkeypatch):
    found = []
    monkeypatch.setattr(server, "serve", lambda service, line, **_: found.append(service.limits))
    words = ["--port", "0", "--quiet", "--max-inputs", "2000", "--max-body", "1GB"]
    monkeypatch.setattr(sys, "argv", ["fedms", "serve", str(served), *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    (limits,) = found
    assert (limits.inputs, limits.waiting) == (2000, 2000)
    assert limits.body == limits.bodies == 1_000_000_000


def test_tokens_are_read_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(server.TOKEN, raising=False)
    assert server.read_token(None) is None
    monkeypatch.setenv(server.TOKEN, TOKEN)
    assert server.read_token(None) == TOKEN
    file = tmp_path / "token"
    file.write_text(f"{'y' * 16}\n")
    assert server.read_token(file) == "y" * 16
    for wrong in ("short", "", "ö" * 20, "a b\x00" * 9):
        file.write_text(wrong)
        with pytest.raises(UserError, match="expected 16 or more"):
            server.read_token(file)


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_addresses_that_only_this_machine_reaches(host, local):
    assert server.is_local(host) == local


@pytest.fixture
def listening(served, monkeypatch):
    """`with listening(host, token) as url:` is a service in this process."""
    begun = []

    class Server(uvicorn.Server):
        def __init__(self, config):
            super().__init__(config)
            begun.append(self)

    monkeypatch.setattr(uvicorn, "Server", Server)

    @contextmanager
    def open_(host="127.0.0.1", token=None):
        service, line = Service(Models(served), Limits()), server.open_socket(host, 0)
        options = {"token": token, "host": host, "say": lambda _: None}
        thread = threading.Thread(target=server.serve, args=(service, line), kwargs=options)
        thread.start()
        try:
            yield server.address(line, host)
        finally:
            begun[-1].should_exit = True
            thread.join(10)

    return open_


def status(url, **headers):
    return httpx.get(f"{url}/clients", headers=headers).status_code


HOSTS = ("127.0.0.1", "127.0.0.2", "localhost", "::1", "0:0:0:0:0:0:0:1")


@pytest.mark.parametrize("host", HOSTS)
def test_it_answers_where_it_was_told_to_listen(listening, host):
    try:
        server.open_socket(host, 0).close()
    except UserError:
        pytest.skip(f"this machine has no {host}")
    with listening(host) as url:
        assert status(url) == 200
        assert status(url, host="evil.example") == 421


def test_with_a_token_it_answers_by_any_name(listening):
    with listening(token=TOKEN) as url:
        assert status(url, host="models.example", authorization=f"Bearer {TOKEN}") == 200
        assert status(url, host="models.example") == 401


SLOW = {
    "nothing": [],
    "a part": [b"GET /health HTTP/1.1\r\n"],
    "a byte now and then": [b"GET /health HTTP/1.1\r\nX: ", *[b"x"] * 20],
    "a part after a request": [b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET"],
}


@pytest.mark.parametrize("parts", SLOW.values(), ids=SLOW.keys())
def test_whoever_sends_no_whole_headers_is_left(listening, monkeypatch, parts):
    monkeypatch.setattr(server, "_HEADERS", 0.5)
    with listening() as url, socket.create_connection(("127.0.0.1", httpx.URL(url).port)) as asker:
        asker.settimeout(4)  # before uvicorn's own end of connections without requests, of 5 s
        began = time.monotonic()
        for part in parts:
            try:
                asker.sendall(part)
            except OSError:
                break
            time.sleep(0.1)
        with suppress(ConnectionResetError):
            while asker.recv(4096):
                pass
        assert 0.4 < time.monotonic() - began < 3


def test_whoever_has_sent_headers_has_time(listening, monkeypatch):
    monkeypatch.setattr(server, "_HEADERS", 0.2)
    with listening() as url, httpx.Client(base_url=url) as client:
        head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n"
        with socket.create_connection(("127.0.0.1", client.base_url.port)) as asker:
            asker.sendall(head)
            time.sleep(0.5)
            asker.sendall(b"{}")
            assert asker.recv(4096).startswith(b"HTTP/1.1 422")
        for _ in range(2):  # over one connection, which waits for the next request
            assert client.get("/health").status_code == 200
            time.sleep(0.4)
