"""Requests to the three servers: odd paths, methods, headers, tokens and bodies, straight into the application."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI

from benchmarks.fuzz.law import ACCEPTED, MAX_SECONDS, REFUSED, Broken
from benchmarks.fuzz.mutate import ODD_TEXTS, changed_bytes, changed_tree, misspelt, odd_value
from melete.labelling.items import make_item
from melete.labelling.journal import Journal
from melete.labelling.site import label_app
from melete.models.load import load_model, load_tokenizer
from melete.serving.engine import Engine
from melete.serving.site import chat_app
from melete.types import Message
from melete.watching.run import WatchedRun
from melete.watching.site import watch_app

TOKEN = "a-token-of-the-fuzzer"
ASK: list[Any] = [{"role": "user", "content": "What is 2+2?"}]
CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": ASK,
    "max_tokens": 2,
    "n": 1,
    "temperature": 0.7,
    "top_p": 0.9,
    "seed": 1,
    "stop": ["x"],
    "stream": False,
    "logprobs": True,
    "top_logprobs": 2,
}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "2+2=", "max_tokens": 2, "logprobs": 1, "echo": True, "n": 1}
ROUTES: tuple[tuple[str, str, str, Any], ...] = (
    ("serve", "POST", "/v1/chat/completions", CHAT),
    ("serve", "POST", "/v1/chat/completions", CHAT | {"stream": True, "stream_options": {"include_usage": True}}),
    ("serve", "POST", "/v1/completions", TEXT),
    ("serve", "POST", "/votes", {"texts": ["<answer>4</answer>", "5"]}),
    ("serve", "GET", "/v1/models", None),
    ("serve", "GET", "/v1/models/tiny", None),
    ("serve", "GET", "/chat.js", None),
    ("label", "POST", "/api/answer", {"id": "12345678", "item": "i", "answer": "left", "unsafe": [], "seconds": 1.5}),
    ("label", "POST", "/api/undo", {"id": "87654321"}),
    ("label", "GET", "/api/state?review=true", None),
    ("watch", "GET", "/api/run", None),
    ("watch", "GET", "/api/stage?name=zero", None),
    ("watch", "GET", "/api/config", None),
    ("watch", "GET", "/", None),
)
PATHS = ("/..%2f..%2fetc/passwd", "/../../etc/passwd", "//etc/passwd", "/%00", "/\ud800", "/v1/models/../../x", "/.git")
SECRETS = (TOKEN, str(Path.home()) + "/", "Traceback", 'File "')


@cache
def _place() -> Path:
    return Path(tempfile.mkdtemp(prefix="melete-fuzz-"))


@cache
def _apps() -> dict[tuple[str, bool], FastAPI]:
    logging.getLogger("melete.web").setLevel(logging.CRITICAL)  # what it would tell is an answer of 500, which is found
    engine = Engine(load_model("tiny"), load_tokenizer("tiny"), name="tiny", max_rows=8, max_waiting=64)
    run = _place() / "run"
    run.mkdir()
    (run / "recipe.json").write_text(json.dumps({"name": "r", "stage": [{"name": "zero", "kind": "rl"}]}))
    (run / "metrics.jsonl").write_text('{"stage": "zero", "step": 0, "reward": 0.5}\n')
    items = [make_item([Message("user", "2+2?")], ["4", "5"]), make_item([Message("user", "1+1?")], ["2", "3"])]
    made: dict[tuple[str, bool], FastAPI] = {}
    for guarded in (False, True):
        token = TOKEN if guarded else None
        journal = Journal(_place() / f"journal-{guarded}.jsonl")
        made["serve", guarded] = chat_app({"tiny": engine}, token=token)
        made["label", guarded] = label_app(items, journal, by="fuzzer", mode="compare", token=token)
        made["watch", guarded] = watch_app(WatchedRun(run), token=token)
    return made


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def servers(draw: random.Random, directory: Path) -> str:
    """One request; 2xx and 3xx are taken, 4xx and 503 refused. No other status, no path and no traceback in it."""
    app, method, path, body = draw.choice(ROUTES)
    guarded = draw.random() < 0.3
    scope, sent = _request(draw, method, path, body, guarded)
    call = _call(_apps()[app, guarded], scope, sent)
    try:
        status, content = _loop().run_until_complete(asyncio.wait_for(call, MAX_SECONDS))
    except TimeoutError:
        raise Broken(f"no answer within {MAX_SECONDS:g} seconds: {scope} {sent[:300]!r}") from None
    told = content.decode("utf-8", "replace")
    if status >= 500 and status != 503:
        raise Broken(f"status {status}: {told[:500]}; {scope} {sent[:500]!r}")
    if status >= 400 and scope["method"] != "HEAD":
        _check_error(told)
    if any(secret in told.replace(sent.decode("utf-8", "replace"), "") for secret in SECRETS):
        raise Broken(f"the answer tells what it must not: {told[:500]}")
    return ACCEPTED if status < 400 else REFUSED


def _check_error(told: str) -> None:
    try:
        error = json.loads(told)["error"]
    except (ValueError, KeyError, TypeError):
        raise Broken(f"a refusal that is no error in OpenAI's shape: {told[:300]}") from None
    if not isinstance(error["message"], str) or not error["message"].strip():
        raise Broken(f"a refusal without a message: {told[:300]}")


def _request(draw: random.Random, method: str, path: str, body: Any, guarded: bool) -> tuple[dict[str, Any], bytes]:
    headers = {"host": "127.0.0.1:8000", "content-type": "application/json"}
    if guarded and draw.random() < 0.8:
        headers["authorization"] = f"Bearer {TOKEN}"
    sent = b"" if body is None else json.dumps(_body(draw, body)).encode()
    if draw.random() < 0.15:
        sent = changed_bytes(draw, sent, draw.choice([1, 1, 3]))
    if draw.random() < 0.1:
        method = draw.choice(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "x"])
    if draw.random() < 0.15:
        path = draw.choice([*PATHS, misspelt(draw, path), path + quote(draw.choice(ODD_TEXTS), errors="replace")])
    if draw.random() < 0.2:
        _change_headers(draw, headers)
    path, _, query = path.partition("?")
    if draw.random() < 0.1:
        query = draw.choice([misspelt(draw, query), "token=" + draw.choice([TOKEN, "x", "%ff"]), "review=2&shown=%00"])
    pairs = [(name.encode("latin-1", "replace"), value.encode("latin-1", "replace")) for name, value in headers.items()]
    pairs += [(b"content-length", str(len(sent)).encode())] if "content-length" not in headers else []
    path = path.encode("utf-8", "replace").decode()
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http"}
    scope |= {"path": path, "raw_path": path.encode(), "root_path": "", "headers": pairs, "app": None}
    scope |= {"query_string": query.encode("utf-8", "replace"), "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80)}
    return scope, sent


def _body(draw: random.Random, body: Any) -> Any:
    if draw.random() < 0.1:
        return odd_value(draw)
    tree = changed_tree(draw, body, draw.choice([0, 1, 1, 2, 4]))
    if isinstance(tree, dict) and "messages" in tree and "max_tokens" not in tree and draw.random() < 0.9:
        tree["max_tokens"] = 2  # an answer without a bound is one of hundreds of tokens
    return tree


def _change_headers(draw: random.Random, headers: dict[str, str]) -> None:
    name = draw.choice([*headers, "cookie", "origin", "content-length", "authorization", "accept", "connection"])
    odd = [*ODD_TEXTS, "evil.example", "http://evil.example", "Bearer", "Bearer x", "melete_=;;", "[::1", "text/plain"]
    headers[name] = draw.choice(odd)


async def _call(app: Any, scope: dict[str, Any], sent: bytes) -> tuple[int, bytes]:
    parts = _parts(sent)
    status, found = 0, bytearray()
    ended = asyncio.Event()

    async def receive() -> dict[str, Any]:
        part = next(parts, None)
        if part is None:
            await ended.wait()
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": part[0], "more_body": part[1]}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            found.extend(message.get("body", b""))
            if not message.get("more_body", False):
                ended.set()

    await app(scope, receive, send)
    if not status:
        raise Broken(f"no answer at all: {scope} {sent[:300]!r}")
    return status, bytes(found)


def _parts(sent: bytes) -> Iterator[tuple[bytes, bool]]:
    half = len(sent) // 2
    yield sent[:half], True
    yield sent[half:], False


KINDS = {"servers": servers}
