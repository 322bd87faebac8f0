"""What every request passes before the application sees it: token, host, origin, size.

Written on the ASGI interface itself, so that an application's streams and its client's hanging up pass unchanged.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import logging
from collections.abc import MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_POLICY = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
HEADERS = (
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
BODY_SECONDS = 30.0  # a client that sends more slowly than this is let go
READ_ON = 8  # so many times the bound is read and thrown away, for a client that is cut off hears no answer
_READS_ONLY = ("GET", "HEAD", "OPTIONS")
_log = logging.getLogger("melete.web")


class Refused(Exception):
    """A request that is answered here: status, message, and further headers."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.headers, self.code = status, message, headers or {}, code


def error_body(message: str, *, kind: str = "invalid_request_error", param: str = "", code: str = "") -> dict[str, Any]:
    """An error in the shape of OpenAI's interface.

    >>> error_body("no such model", code="model_not_found")["error"]["code"]
    'model_not_found'
    """
    return {"error": {"message": message, "type": kind, "param": param or None, "code": code or None}}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that host.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Middleware: refuses what may not come in, and gives every answer the headers that a browser heeds.

    Without a token the Host header has to name this machine, or a page elsewhere could reach the server under a name
    of its own (DNS rebinding). With one, every path needs it: as `Authorization: Bearer`, or as a cookie that
    `?token=` sets once. The cookie holds a digest of the token and not the token.
    """

    def __init__(self, app: ASGIApp, *, token: str | None, max_body: int) -> None:
        self.app, self.max_body = app, max_body
        self.token = token.encode() if token is not None else None
        digest = hmac.new(self.token or b"", b"melete", hashlib.sha256).hexdigest()
        # servers on one host share their cookies, so the name tells the token apart
        self.cookie_name, self.cookie = f"melete_{digest[:8]}", digest[8:]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            await receive()
            return await send({"type": "websocket.close", "code": 1008})
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        try:
            headers = {name.lower(): value for name, value in scope["headers"]}
            self._admit(scope, headers)
            body = await self._body(headers, receive)
            await self.app(scope, _replayed(body, receive), send_with_headers)
        except Refused as refused:
            await _answer(send_with_headers, refused)
        except Exception:
            _log.exception("%s %s failed", scope["method"], scope["path"])
            if started:
                raise
            await _answer(send_with_headers, Refused(500, "this should not happen; the server's log says more"))

    def _admit(self, scope: Scope, headers: MutableMapping[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1")
        if self.token is None:
            if not is_loopback(_hostname(host)):
                raise Refused(403, "this server answers this machine only: the Host header names another")
        else:
            self._check_token(scope, headers)
        if scope["method"] not in _READS_ONLY and (origin := headers.get(b"origin")) is not None:
            theirs = urlsplit(origin.decode("latin-1"))
            if theirs.netloc.lower() != host.lower() or not theirs.netloc:
                raise Refused(403, "a page of another host may not send anything here")

    def _check_token(self, scope: Scope, headers: MutableMapping[bytes, bytes]) -> None:
        assert self.token is not None
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self.token):
            return
        if hmac.compare_digest(_cookie(headers, self.cookie_name).encode(), self.cookie.encode()):
            return
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        asked = next((value for name, value in query if name == "token"), None)
        if scope["method"] == "GET" and asked is not None and hmac.compare_digest(asked.encode(), self.token):
            rest = urlencode([pair for pair in query if pair[0] != "token"])
            path = "/" + scope["path"].lstrip("/")  # two slashes would name another host
            where = path + (f"?{rest}" if rest else "")  # without the token, which a browser's history would keep
            cookie = f"{self.cookie_name}={self.cookie}; HttpOnly; SameSite=Strict; Path=/"
            raise Refused(303, "", {"location": where, "set-cookie": cookie})
        wants = "a token is needed: Authorization: Bearer TOKEN, or open the page with ?token=TOKEN once"
        raise Refused(401, wants, {"www-authenticate": "Bearer"}, code="invalid_api_key")

    async def _body(self, headers: MutableMapping[bytes, bytes], receive: Receive) -> bytes:
        """The whole body. It is counted as it comes, for its length may not be told, or told wrongly."""
        too_large = Refused(413, f"the body has more than {self.max_body} bytes")
        told = headers.get(b"content-length", b"0")
        if told.isdigit() and int(told) > self.max_body * READ_ON:
            raise too_large
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while size <= self.max_body * READ_ON:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(400, "the client hung up")
                    size += len(message.get("body", b""))
                    if size <= self.max_body:
                        parts.append(message.get("body", b""))
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise Refused(408, f"the body did not come within {BODY_SECONDS:g} seconds") from None
        if size > self.max_body:
            raise too_large
        return b"".join(parts)


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _cookie(headers: MutableMapping[bytes, bytes], name: str) -> str:
    jar = SimpleCookie()
    try:
        jar.load(headers.get(b"cookie", b"").decode("latin-1"))
    except CookieError:
        return ""
    return jar[name].value if name in jar else ""


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body in one message; after it whatever the client does, which is hanging up."""
    is_read = False

    async def again() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _answer(send: Send, refused: Refused) -> None:
    kind = "server_error" if refused.status >= 500 else "invalid_request_error"
    body = (
        b"" if refused.status == 303 else json.dumps(error_body(refused.message, kind=kind, code=refused.code)).encode()
    )
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refused.headers}
    start = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": start})
    await send({"type": "http.response.body", "body": body})
