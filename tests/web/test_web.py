"""What every page and interface of this machine stands on: the guard, the errors, binding and ending."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest
from browser import Browser, served
from fastapi import FastAPI, Request
from pydantic import BaseModel

from melete.errors import DataError, RecipeError
from melete.web.app import asset, make_app, page
from melete.web.guard import is_loopback
from melete.web.listen import bound, serve_app, token_from

TOKEN = "a-token-of-enough-length"


class Count(BaseModel):
    count: int


def small_app(token: str | None = None) -> FastAPI:
    app = make_app(title="test", token=token, max_body=1000)
    page(app, "/", '<!doctype html><title>t</title><p id="p">page</p><script src="/app.js"></script>')
    asset(app, "/app.js", "document.getElementById('p').textContent = 'script ran'", "text/javascript")

    @app.post("/echo")
    async def echo(request: Request) -> dict[str, int]:
        return {"length": len(await request.body())}

    @app.post("/count")
    async def count(count: Count) -> int:
        return count.count

    @app.get("/bad")
    async def bad() -> None:
        raise DataError("the row is wrong", place="/home/somebody/secret.jsonl", remedy="correct it")

    @app.get("/broken")
    async def broken() -> None:
        raise OSError("/home/somebody/secret.jsonl")

    return app


@pytest.fixture(scope="module")
def open_url() -> Iterator[str]:
    with served(small_app()) as url:
        yield url


@pytest.fixture(scope="module")
def closed_url() -> Iterator[str]:
    with served(small_app(TOKEN)) as url:
        yield url


def test_every_answer_has_the_headers_that_a_browser_heeds(open_url: str):
    for path in ("/", "/app.js", "/nothing", "/broken"):
        headers = httpx.get(open_url + path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/", "/app.js", "/nothing", "/openapi.json", "/bad"])
def test_every_path_needs_the_token(closed_url: str, path: str):
    assert httpx.get(closed_url + path).status_code == 401
    assert httpx.get(closed_url + path, headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert httpx.get(closed_url + path, headers={"Cookie": f"melete={TOKEN}"}).status_code == 401
    assert httpx.get(closed_url + path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code != 401
    assert httpx.get(f"{closed_url}{path}?token=wrong").status_code == 401


def test_the_token_in_an_address_becomes_a_cookie_that_does_not_hold_it(closed_url: str):
    with httpx.Client() as client:
        first = client.get(f"{closed_url}/?a=1&token={TOKEN}")
        assert first.status_code == 303 and first.headers["location"] == "/?a=1"
        assert "HttpOnly" in first.headers["set-cookie"] and "SameSite=Strict" in first.headers["set-cookie"]
        assert TOKEN not in first.headers["set-cookie"]
        assert client.get(closed_url).status_code == 200
    assert httpx.post(f"{closed_url}/echo?token={TOKEN}").status_code == 401


def test_the_address_after_the_token_never_leads_to_another_host(closed_url: str):
    answer = httpx.get(f"{closed_url}//evil.example/?token={TOKEN}")
    assert answer.status_code == 303 and not answer.headers["location"].startswith("//")


def test_a_name_of_another_host_is_refused_where_there_is_no_token(open_url: str):
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
        assert httpx.get(open_url, headers={"Host": host}).status_code in (400, 403)
    for host in ("localhost:1", "127.0.0.1", "[::1]:80"):
        assert httpx.get(open_url, headers={"Host": host}).status_code == 200


def test_a_page_of_another_host_may_not_send(open_url: str):
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        assert httpx.post(f"{open_url}/echo", headers={"Origin": origin}).status_code == 403
    assert httpx.post(f"{open_url}/echo", headers={"Origin": open_url}).status_code == 200


def test_a_body_is_bounded_whatever_length_it_claims(open_url: str):
    def chunks(count: int) -> Iterator[bytes]:
        yield from [b"x" * 100] * count

    assert httpx.post(f"{open_url}/echo", content=b"x" * 1000).json() == {"length": 1000}
    assert httpx.post(f"{open_url}/echo", content=chunks(10)).json() == {"length": 1000}
    for content in (b"x" * 1001, chunks(11), b"x" * 5000):
        assert httpx.post(f"{open_url}/echo", content=content).status_code == 413


def test_errors_are_json_without_traces_or_paths(open_url: str):
    for path, status in (("/nothing", 404), ("/bad", 400), ("/broken", 500), ("/echo", 405)):
        answer = httpx.get(open_url + path)
        assert answer.status_code == status
        assert answer.json()["error"]["message"]
        assert "secret" not in answer.text and "Traceback" not in answer.text
    assert "correct it" in httpx.get(f"{open_url}/bad").text
    wrong = httpx.post(f"{open_url}/count", json={"count": "many"})
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "count"


def test_a_page_runs_its_scripts_and_none_within(browser: Browser, closed_url: str):
    browser.open(f"{closed_url}/?token={TOKEN}")
    browser.wait_for("document.getElementById('p').textContent === 'script ran'")
    assert browser.evaluate("location.search") == ""
    assert [problem for problem in browser.problems if "favicon" not in problem] == []
    browser.evaluate(
        "(() => { const s = document.createElement('script'); s.text = 'window.ran = 1'; document.body.append(s); })()"
    )
    assert browser.evaluate("window.ran === undefined")


def test_a_host_that_others_reach_needs_a_token():
    with pytest.raises(RecipeError, match="--token env"):
        serve_app(small_app(), host="0.0.0.0", port=0, token=None, announce=print)
    assert not is_loopback("") and not is_loopback("192.168.0.1") and is_loopback("127.8.8.8")


def test_a_port_in_use_is_told_before_anything_is_announced():
    with bound("127.0.0.1", 0) as taken, pytest.raises(RecipeError, match="in use"):
        serve_app(small_app(), host="127.0.0.1", port=taken.getsockname()[1], token=None, announce=pytest.fail)


def test_a_token_comes_from_the_environment_only():
    assert token_from(None, {}) is None
    assert token_from(None, {"MELETE_TOKEN": TOKEN}) == token_from("env", {"MELETE_TOKEN": TOKEN}) == TOKEN
    for option, environment in (
        ("env", {}),
        (TOKEN, {}),
        ("env", {"MELETE_TOKEN": "short"}),
        (None, {"MELETE_TOKEN": "ü" * 20}),
    ):
        with pytest.raises(RecipeError) as caught:
            token_from(option, environment)
        assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_server_cleanly(sig: signal.Signals):
    code = (
        "from melete.web.app import make_app, page\nfrom melete.web.listen import serve_app\n"
        "app = make_app(title='t')\npage(app, '/', 'hello')\n"
        "serve_app(app, host='127.0.0.1', port=0, token=None, announce=lambda url: print(url, flush=True))\n"
        "print('end')"
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
        env=os.environ,
    )
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert httpx.get(url).text == "hello"
    process.send_signal(sig)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out.strip(), err) == (0, "end", "")


def test_a_client_that_never_sends_its_body_is_let_go(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("melete.web.guard.BODY_SECONDS", 0.1)
    with served(small_app()) as url, socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), 10) as line:
        line.sendall(b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc")
        assert line.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_websocket_is_refused(open_url: str):
    connect = pytest.importorskip("websockets.sync.client").connect
    with pytest.raises(Exception, match=r"HTTP 40|rejected|status"):
        connect(open_url.replace("http", "ws") + "/echo").close()
