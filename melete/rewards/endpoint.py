"""A chat model behind an OpenAI-compatible HTTP endpoint: bounded, patient, and sparing with questions.

The key is read from an environment variable when a batch is asked, is sent to `base_url` and nowhere else (redirects
are not followed), and is kept out of errors, logs, reprs and the cache. Whatever goes wrong with one conversation is
that one's `GradingError`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from melete.errors import RecipeError
from melete.imports import require
from melete.rewards.errors import GradingError
from melete.rewards.reply_cache import ReplyCache
from melete.types import Message

Conversation = tuple[Sequence[Message], int]
"""Messages, and the number of the call: the same messages asked again with another number are another question."""
_RETRIED = {408, 429}
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")  # in capitals, as keys are not
_EXCERPT = 200  # characters of an error's body that are quoted


def endpoint_problems(base_url: str, key_variable: str) -> Iterator[tuple[str, str]]:
    """What is wrong with where a model is and how its key is named; values are never quoted, they may be secrets.

    >>> [key for key, _ in endpoint_problems("https://host/v1?key=0123", "sk-0123")]
    ['base_url', 'key_variable']
    """
    try:
        parts = urlsplit(base_url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        is_more = "@" in base_url or parts.query or parts.fragment  # a key may hold what ends the name of a host
    except ValueError:
        is_address = is_more = False
    if is_more:
        yield "base_url", "holds more than an address; name a variable with the key instead: key_variable"
    elif not is_address:
        yield "base_url", 'is not an address, such as "https://host/v1"'
    if key_variable and not _VARIABLE.fullmatch(key_variable):
        yield (
            "key_variable",
            ("is not the name of an environment variable, such as JUDGE_KEY; the key itself stays out of recipes"),
        )


class ChatModel(Protocol):
    """A model that replies to conversations: behind an endpoint, on this machine, or written by hand."""

    def replies(self, conversations: Sequence[Conversation]) -> Sequence[str | GradingError]:
        """A reply, or why there is none, to each conversation, in order; it never raises for a single one."""
        ...

    def reply(self, messages: Sequence[Message], *, call: int = 0) -> str:
        """The reply to one conversation. Raises `GradingError` when there is none."""
        found = self.replies([(messages, call)])[0]
        if isinstance(found, GradingError):
            raise found
        return found


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """Where the model is and how it is asked. Times are in seconds.

    `base_url` ends in "/v1", as in OpenAI's own client; `key_variable` is the NAME of the environment variable with the
    key, empty for none. `temperature` and `max_tokens` are left out where they are `None`, and `extra` is sent as it
    is. `timeout` holds for one try from connecting to the last byte. Of `num_tries`, each waits twice as long as the
    one before, from `first_wait` up to `longest_wait`; an endpoint that asks for more patience is not asked again. One
    that does not answer several conversations in a row is left alone for `rest`.
    """

    base_url: str
    model: str
    key_variable: str = ""
    temperature: float | None = 0.0
    max_tokens: int | None = 2048
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    concurrency: int = 8
    timeout: float = 60.0
    num_tries: int = 5
    first_wait: float = 0.5
    longest_wait: float = 60.0
    rest: float = 10.0
    max_bytes: int = 2**20
    cache: Path | None = None

    def __post_init__(self) -> None:
        for key, why in endpoint_problems(self.base_url, self.key_variable):
            raise RecipeError(f"{key} {why}")
        if min(self.concurrency, self.num_tries, self.max_bytes) < 1:
            raise RecipeError("concurrency, num_tries and max_bytes must be at least 1")
        if not (self.timeout > 0 and 0 <= self.first_wait <= self.longest_wait and self.rest >= 0):
            raise RecipeError("timeout must be above 0, rest 0 or more, and first_wait from 0 to longest_wait")

    @property
    def url(self) -> str:
        """Where conversations are posted."""
        return self.base_url.rstrip("/") + "/chat/completions"


@dataclass(frozen=True, slots=True)
class _Failure:
    """A try that failed. `again`: another may do better, after `wait` seconds at least."""

    reason: str
    again: bool
    wait: float = 0.0


@dataclass(frozen=True, slots=True)
class _Key:
    """The secret of one batch, which its repr does not tell."""

    secret: str = field(repr=False)

    def clean(self, text: str) -> str:
        """The text without the key."""
        return text.replace(self.secret, "[key]") if self.secret else text


class Endpoint(ChatModel):
    """Asks for replies over HTTP, at most `concurrency` at a time over all threads, and keeps them in the cache.

    Connections, and so the bound, are shared by all that use this object; `close` ends them. When as many
    conversations as run at a time (and at least four) were lost in a row to an endpoint that does not answer, others
    fail at once until `rest` is over. Raises `RecipeError` when the key's variable is not set or the client is missing.
    """

    def __init__(self, settings: EndpointSettings) -> None:
        self._http = require("httpx2", extra="judge")
        self.settings = settings
        self._cache = ReplyCache(settings.cache) if settings.cache else None
        self._forget()
        self._key()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends connections and the thread that serves them; what still waits for a reply fails."""
        if self._cache:
            self._cache.close()
        if self._loop is not None and self._pid == os.getpid():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._forget()

    def replies(self, conversations: Sequence[Conversation]) -> list[str | GradingError]:
        """Asks what the cache does not hold; equal conversations are asked once."""
        bodies = [self._body(messages) for messages, _ in conversations]
        keys = [self._cache_key(body, call) for body, (_, call) in zip(bodies, conversations, strict=True)]
        found: dict[str, str | GradingError] = {}
        asked: dict[str, bytes] = {}
        for key, body in zip(keys, bodies, strict=True):
            if key not in found and key not in asked:
                kept = self._cache.get(key) if self._cache else None
                if kept is None:
                    asked[key] = body
                else:
                    found[key] = kept
        if asked:
            future = asyncio.run_coroutine_threadsafe(self._ask_all(asked), self._running())
            try:
                found |= future.result()
            except BaseException:
                future.cancel()
                raise
        return [found[key] for key in keys]

    def _key(self) -> str:
        name = self.settings.key_variable
        if not name:
            return ""
        key = os.environ.get(name, "").strip()
        if not key:
            raise RecipeError(f"the environment variable {name} is not set", remedy=f"export {name}=...")
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise RecipeError(f"what the environment variable {name} holds is not a key")
        return key

    def _body(self, messages: Sequence[Message]) -> bytes:
        settings = self.settings
        chosen = {"temperature": settings.temperature, "max_tokens": settings.max_tokens}
        body = {
            "model": settings.model,
            "messages": [{"role": m.role, "content": _sendable(m.content)} for m in messages],
            **{name: value for name, value in chosen.items() if value is not None},
            **settings.extra,
        }
        return json.dumps(body, sort_keys=True).encode()

    def _cache_key(self, body: bytes, call: int) -> str:
        return hashlib.sha256(b"\0".join([self.settings.url.encode(), str(call).encode(), body])).hexdigest()

    def _forget(self) -> None:
        self._pid, self._starting = os.getpid(), threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._not_before = self._down_until = 0.0
        self._num_lost, self._last_loss = 0, ""

    def _running(self) -> asyncio.AbstractEventLoop:
        """The event loop, in a thread of its own; threads do not survive a fork, so a forked process starts anew."""
        if self._pid != os.getpid():
            self._forget()
        with self._starting:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._serve, args=(loop,), name="endpoint", daemon=True)
                self._slots = asyncio.Semaphore(self.settings.concurrency)
                limits = self._http.Limits(max_connections=None, max_keepalive_connections=self.settings.concurrency)
                self._client = self._http.AsyncClient(
                    timeout=self.settings.timeout, limits=limits, follow_redirects=False
                )
                self._thread.start()
                self._loop = loop
        return self._loop

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        client = self._client
        loop.run_forever()
        waiting = asyncio.all_tasks(loop)
        for task in waiting:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*waiting, return_exceptions=True))
        loop.run_until_complete(client.aclose())
        loop.close()

    async def _ask_all(self, asked: Mapping[str, bytes]) -> dict[str, str | GradingError]:
        secret = _Key(self._key())
        found = await asyncio.gather(*(self._ask(key, body, secret) for key, body in asked.items()))
        return dict(zip(asked, found, strict=True))

    async def _ask(self, cache_key: str, body: bytes, secret: _Key) -> str | GradingError:
        async with self._slots:
            if time.monotonic() < self._down_until:
                return GradingError(f"not asked, because the endpoint does not answer: {self._last_loss}")
            try:
                found = await self._try_often(body, secret)
            except Exception as error:  # one conversation's failure must not be that of its whole batch
                found = _Failure(secret.clean(f"{type(error).__name__}: {error}")[:_EXCERPT], again=False)
        self._count(found)
        if isinstance(found, _Failure):
            return GradingError(found.reason)
        if self._cache:
            self._cache.put(cache_key, found)
        return found

    def _count(self, found: str | _Failure) -> None:
        """Keeps account of conversations lost in a row; even a refusal is an answer."""
        if isinstance(found, str) or not found.again:
            self._num_lost = 0
            return
        self._num_lost, self._last_loss = self._num_lost + 1, found.reason
        if self._num_lost >= max(4, self.settings.concurrency):
            self._down_until = time.monotonic() + self.settings.rest

    async def _try_often(self, body: bytes, secret: _Key) -> str | _Failure:
        settings = self.settings
        found: str | _Failure = _Failure("not asked", again=False)
        for number in range(settings.num_tries):
            while (pause := self._not_before - time.monotonic()) > 0:  # another conversation was told to wait
                await asyncio.sleep(pause)
            found = await self._try(body, secret)
            if isinstance(found, str) or not found.again:
                return found
            if found.wait > settings.longest_wait:
                reason = f"{found.reason}; it asks for {found.wait:.0f} s of patience, more than longest_wait"
                return _Failure(reason, again=True)
            if number + 1 < settings.num_tries:
                self._not_before = max(self._not_before, time.monotonic() + found.wait)
                backoff = min(settings.longest_wait, settings.first_wait * 2**number)
                await asyncio.sleep(max(found.wait, backoff * random.uniform(0.5, 1.0)))
        assert isinstance(found, _Failure)
        return _Failure(f"{found.reason} (tried {settings.num_tries} times)", again=True)

    async def _try(self, body: bytes, secret: _Key) -> str | _Failure:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if secret.secret:
            headers["Authorization"] = f"Bearer {secret.secret}"
        try:
            async with (
                asyncio.timeout(self.settings.timeout),
                self._client.stream("POST", self.settings.url, content=body, headers=headers) as response,
            ):
                data = bytearray()
                async for chunk in response.aiter_raw():  # as sent: nothing is unpacked, so nothing can swell
                    data += chunk
                    if len(data) > self.settings.max_bytes:
                        return _Failure(f"the reply is longer than {self.settings.max_bytes} bytes", again=False)
        except (TimeoutError, self._http.TimeoutException):
            return _Failure(f"no reply within {self.settings.timeout:g} s", again=True)
        except self._http.TransportError as error:
            return _Failure(secret.clean(f"{type(error).__name__}: {error}")[:_EXCERPT], again=True)
        except self._http.HTTPError as error:
            return _Failure(secret.clean(f"{type(error).__name__}: {error}")[:_EXCERPT], again=False)
        text = secret.clean(data.decode(errors="replace"))
        if response.status_code != 200:
            return _refused(response.status_code, response.headers, text)
        found = _content(text)
        return secret.clean(found) if isinstance(found, str) else found  # an escaped key shows only now


def _refused(status: int, headers: Mapping[str, str], text: str) -> _Failure:
    if 300 <= status < 400:
        return _Failure(f"HTTP {status}: redirects are not followed; give the final address as base_url", again=False)
    again = status in _RETRIED or status >= 500
    return _Failure(f"HTTP {status}: {text[:_EXCERPT]!r}", again, _wait_of(headers.get("retry-after")) if again else 0)


def _wait_of(value: str | None) -> float:
    """Seconds that a Retry-After header asks for: a number or a date; 0 where it cannot be read.

    >>> _wait_of("7"), _wait_of("soon"), _wait_of("Thu, 01 Jan 1970 00:00:00 GMT")
    (7.0, 0.0, 0.0)
    """
    if not value:
        return 0.0
    if value.strip().isascii() and value.strip().isdigit():
        return float(value.strip()[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _content(text: str) -> str | _Failure:
    """The message in a completion object; one that was cut at `max_tokens` or filtered is none."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return _Failure(f"the reply is not JSON: {text[:_EXCERPT]!r}", again=True)
    try:
        choice = whole["choices"][0]
        content, finish = choice["message"]["content"], choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        return _Failure(f"the reply is no chat completion: {text[:_EXCERPT]!r}", again=False)
    if not isinstance(content, str):
        return _Failure(f"the reply has no text: {text[:_EXCERPT]!r}", again=False)
    if finish not in (None, "stop", "eos", "stop_sequence"):
        return _Failure(f"the reply is not whole: finish_reason is {finish!r}"[:_EXCERPT], again=False)
    return content


def _sendable(text: str) -> str:
    """The text with what cannot be UTF-8 replaced: half a surrogate pair would be refused by most servers."""
    return text.encode("utf-8", "replace").decode()
