"""What the servers of `melete serve`, `watch` and `label` promise, asked as somebody would who means no good."""

from __future__ import annotations

import inspect
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import served
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tiny_models import llama, tokenizer
from typer.testing import CliRunner

from melete.cli import app
from melete.cli_label import start as label
from melete.cli_serve import serve
from melete.cli_watch import watch
from melete.labelling.items import read_items
from melete.labelling.journal import Journal
from melete.labelling.site import label_app
from melete.serving.engine import Engine
from melete.serving.site import chat_app
from melete.watching.run import WatchedRun
from melete.watching.site import watch_app
from melete.web import guard

TOKEN = "a-token-of-enough-length"
FORMS = (
    "/../../../../../../etc/passwd",
    "/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "/..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
    "/%252e%252e/%252e%252e/etc/passwd",
    "/..%c0%af..%c0%afetc/passwd",
    "/..\\..\\..\\etc\\passwd",
    "//etc/passwd",
    "/etc/passwd",
    "/index.html/../../../../etc/passwd",
    "/file:///etc/passwd",
    "/page/../site.py",
    "/../site.py",
    "/site.py",
    "/recipe.json",
    "/metrics.jsonl",
    "/j.jsonl",
    "/d.jsonl",
    "/.lock",
    "/static/../../site.py",
    "/etc/passwd%00.js",
    "/v1/models/../../../../etc/passwd",
    "/v1/models/%2fetc%2fpasswd",
    "/api/stage?name=../../../../etc/passwd",
)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    (path / "recipe.json").write_text(json.dumps({"name": "r", "stage": [{"name": "rl", "kind": "rl"}]}))
    (path / "metrics.jsonl").write_text('{"stage": "rl", "step": 0, "canary": 1}\n')
    (path / "d.jsonl").write_text('{"prompt": "2?", "completions": ["a", "b"]}\n')
    return path


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    made = Engine(llama(), tokenizer(), name="one")
    yield made
    made.close()


@pytest.fixture(params=["serve", "watch", "label"])
def a_site(request: pytest.FixtureRequest, places: Path) -> FastAPI:
    if request.param == "serve":
        return chat_app({"one": request.getfixturevalue("engine")})
    if request.param == "watch":
        return watch_app(WatchedRun(places))
    return label_app(read_items(places / "d.jsonl"), Journal(places / "j.jsonl"), by="ann", mode="compare")


def raw(port: int, path: str) -> bytes:
    """The answer to a path that no client has tidied up."""
    with socket.create_connection(("127.0.0.1", port), 10) as line:
        line.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode("latin-1"))
        answer = b""
        while part := line.recv(65536):
            answer += part
    return answer


def test_no_path_of_a_request_reaches_a_file(a_site: FastAPI, places: Path) -> None:
    with served(a_site) as url:
        port = int(url.rsplit(":", 1)[1])
        for form in FORMS:
            answer = raw(port, form)
            status = int(answer.split()[1])
            # the last is a question to a table, and an unknown stage has no rows
            assert status in (400, 403, 404) or (form.startswith("/api/stage") and b'"curves":{}' in answer), form
            for secret in (b"root:", b"import ", b"canary", b"completions", str(places).encode(), b"Traceback"):
                assert secret not in answer, (form, secret)
    assert not {route.__class__.__name__ for route in a_site.routes} & {"Mount", "StaticFiles"}


@pytest.mark.parametrize("command", [serve, watch, label], ids=["serve", "watch", "label"])
def test_a_server_listens_to_this_machine_alone_unless_told_otherwise(command: Any) -> None:
    assert inspect.signature(command).parameters["host"].default == "127.0.0.1"


@pytest.mark.parametrize("command", ["serve tiny", "watch PLACES", "label PLACES/d.jsonl"])
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_a_server_that_others_reach_is_refused_without_a_token(
    command: str, host: str, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MELETE_TOKEN", raising=False)
    arguments = [word.replace("PLACES", str(places)) for word in command.split()]
    done = CliRunner().invoke(app, [*arguments, "--host", host, "--port", "0"])
    assert done.exit_code == 2 and "there is no token" in done.output and "--token env" in done.output


@pytest.mark.parametrize("equal", [True, False])
def test_a_token_is_compared_in_constant_time(equal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but `hmac.compare_digest` decides: as it says, a wrong token comes in and the right one does not."""
    client = TestClient(guard_app(), base_url="http://127.0.0.1", follow_redirects=False)
    ways = (
        lambda token: client.get("/", headers={"Authorization": f"Bearer {token}"}),
        lambda token: client.get("/", headers={"Cookie": f"{name}={token}"}),
        lambda token: client.get("/", params={"token": token}),
    )
    name = guard.Guard(guard_app(), token=TOKEN, max_body=1).cookie_name
    assert [way("wrong").status_code for way in ways] == [401, 401, 401]
    compared: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return equal

    monkeypatch.setattr(guard.hmac, "compare_digest", compare)
    for way in ways:
        for token in ("wrong", TOKEN):
            assert (way(token).status_code != 401) is equal
    assert len(compared) >= 6


def guard_app() -> FastAPI:
    from melete.web.app import make_app, page

    made = make_app(title="test", token=TOKEN)
    page(made, "/", "hello")
    return made


def test_connections_are_bounded() -> None:
    code = (
        "from melete.web import listen\nfrom melete.web.app import make_app, page\nlisten.MAX_CONNECTIONS = 3\n"
        "app = make_app(title='t')\npage(app, '/', 'hello')\n"
        "listen.serve_app(app, host='127.0.0.1', port=0, token=None, announce=lambda url: print(url, flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().strip().rstrip("/").rsplit(":", 1)[1])
            assert b" 200 " in raw(port, "/").splitlines()[0]
            held = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(3)]
            assert b" 503 " in raw(port, "/").splitlines()[0]
            for one in held:
                one.close()
            for _ in range(100):
                if b" 200 " in raw(port, "/").splitlines()[0]:
                    break
            else:
                pytest.fail("the server does not recover")
        finally:
            process.terminate()
