"""A real HTTP server on 127.0.0.1 that speaks `/v1/chat/completions`, well or badly.

with FaultServer(lambda asked: ok("[[A>B]]")) as server:
    EndpointSettings(server.url, "judge")
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Act = Callable[[BaseHTTPRequestHandler], None]
"""Writes a response, or does not."""


@dataclass(frozen=True)
class Asked:
    """A request: how many came before it, its path, its headers (lower case), and its JSON body."""

    number: int
    path: str
    headers: Mapping[str, str]
    body: Any

    @property
    def text(self) -> str:
        """The content of the last message."""
        return self.body["messages"][-1]["content"]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silence: a client that hangs up is no error here."""


class FaultServer:
    """Does to each request what `behave` says. `most_at_once` is the largest number of requests in hand together."""

    def __init__(self, behave: Callable[[Asked], Act]) -> None:
        self.asked: list[Asked] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._behave = behave
        self._connections: list[Any] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                outer._connections.append(self.connection)

            def do_POST(self) -> None:
                outer._serve(self)

            def do_GET(self) -> None:
                outer._serve(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> FaultServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Stops listening and cuts every connection."""
        self._server.shutdown()
        self._server.server_close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(2)

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        data = handler.rfile.read(int(handler.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self._lock:
            asked = Asked(len(self.asked), handler.path, headers, json.loads(data) if data else None)
            self.asked.append(asked)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            self._behave(asked)(handler)
        finally:
            with self._lock:
                self._at_once -= 1


def completion(text: object, finish: str = "stop") -> dict[str, Any]:
    """The body of a good response."""
    message = {"role": "assistant", "content": text}
    return {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": finish}]}


def send(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> Act:
    """A whole response."""

    def act(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return act


def ok(text: object, finish: str = "stop") -> Act:
    return send(200, json.dumps(completion(text, finish)).encode())


def error(status: int, text: str = "broken", headers: Mapping[str, str] | None = None) -> Act:
    return send(status, json.dumps({"error": {"message": text}}).encode(), headers)


def slow(seconds: float, then: Act) -> Act:
    def act(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(seconds)
        then(handler)

    return act


def drip(seconds_each: float) -> Act:
    """A response whose bytes come one by one: no single read is ever late."""

    def act(handler: BaseHTTPRequestHandler) -> None:
        for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 1000:
            handler.wfile.write(bytes([byte]))
            time.sleep(seconds_each)

    return act


def cut_off(handler: BaseHTTPRequestHandler) -> None:
    """Half of a body, then the end of the connection."""
    body = json.dumps(completion("whole")).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.wfile.flush()
    handler.close_connection = True


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    """The end of the connection instead of a response."""
    handler.close_connection = True


def endless(handler: BaseHTTPRequestHandler) -> None:
    """A body without end, until the client hangs up."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for _ in range(100_000):
        handler.wfile.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
