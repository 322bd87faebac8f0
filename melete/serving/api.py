"""OpenAI's interface over engines: models, chat completions, completions, streamed or at once."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from melete.errors import MeleteError
from melete.sampling.keys import rollout_key
from melete.serving.engine import DoesNotFit, Engine, Job, Piece, QueueFull
from melete.serving.shapes import ChatChoice, Json, Reply, TextChoice, usage
from melete.serving.voting import votes
from melete.serving.wire import ChatRequest, TextRequest
from melete.text.chat import opens_thought, prompt_tokens
from melete.web.guard import error_body

HEARTBEAT_SECONDS = 15.0  # a comment that says that the stream is alive, while a request waits for its turn
RETRY_SECONDS = 2


class ApiError(Exception):
    """An error in OpenAI's shape."""

    def __init__(self, status: int, message: str, *, param: str = "", code: str = "", kind: str = "") -> None:
        super().__init__(message)
        kind = kind or ("server_error" if status >= 500 else "invalid_request_error")
        self.status, self.body = status, error_body(message, kind=kind, param=param, code=code)

    def response(self) -> Response:
        """The answer; one that says to come again says when."""
        headers = {"Retry-After": str(RETRY_SECONDS)} if self.status == 503 else None
        return JSONResponse(self.body, self.status, headers=headers)


class _Texts(BaseModel):
    texts: list[str] = Field(min_length=1, max_length=128)


class Voices:
    """The pieces of some jobs of one request, as they come; hears when the client hangs up."""

    def __init__(self, request: Request) -> None:
        self.request, self.loop = request, asyncio.get_running_loop()
        self.heard: asyncio.Queue[tuple[int, Piece] | None] = asyncio.Queue()
        self.jobs: list[Job] = []
        self.watching: asyncio.Task[None] | None = None

    def listener(self, number: int) -> Any:
        """What job number `number` delivers to, from the engine's thread."""
        return lambda piece: self.loop.call_soon_threadsafe(self.heard.put_nowait, (number, piece))

    def submit(self, engine: Engine, jobs: Sequence[Job]) -> None:
        """Queues the jobs; raises `ApiError` for what is not taken."""
        try:
            engine.submit(*jobs)
        except DoesNotFit as error:
            raise ApiError(400, str(error), code="context_length_exceeded" if "tokens" in str(error) else "") from None
        except QueueFull as error:
            raise ApiError(503, f"busy: {error}", code="queue_full") from None
        self.jobs = list(jobs)
        self.watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self.request.receive())["type"] != "http.disconnect":
            pass
        self.close()
        self.heard.put_nowait(None)

    async def pieces(self) -> AsyncIterator[tuple[int, Piece] | None]:
        """Pieces with the number of their job until all have ended; `None` now and then while there is none.

        Raises `ApiError` when the engine fails.
        """
        num_open = sum(len(job.keys) for job in self.jobs)
        try:
            while num_open:
                try:
                    heard = await asyncio.wait_for(self.heard.get(), HEARTBEAT_SECONDS)
                except TimeoutError:
                    yield None
                    continue
                if heard is None:  # the client has gone
                    return
                if heard[1].finish == "error":
                    raise ApiError(500, heard[1].error)
                num_open -= heard[1].finish is not None
                yield heard
        finally:
            self.close()
            if self.watching:
                self.watching.cancel()

    def close(self) -> None:
        """Nobody listens any more."""
        for job in self.jobs:
            job.cancel()


def add_api(app: FastAPI, engines: Mapping[str, Engine]) -> None:
    """Adds the interface; the first engine answers where a request names no model."""

    @app.exception_handler(ApiError)
    async def told(_: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(MeleteError)
    async def refused(_: Request, error: MeleteError) -> Response:
        return ApiError(400, error.what, param=error.place if error.place.isidentifier() else "").response()

    @app.get("/v1/models")
    async def models() -> Json:
        return {"object": "list", "data": [_model(name, engine) for name, engine in engines.items()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Json:
        return _model(name, _engine(engines, name))

    @app.get("/health")
    async def health() -> Json:
        state = {
            name: {"rows": engine.num_rows, "waiting": engine.num_waiting, "written_tokens": engine.num_written}
            for name, engine in engines.items()
        }
        return {"status": "ok", "models": state}

    @app.post("/votes")
    async def count(asked: _Texts) -> Json:
        return {"votes": [vote.as_json() for vote in votes(asked.texts)]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request, asked: ChatRequest) -> Response:
        name, engine = _chosen(engines, asked)
        prompt, opened = await asyncio.to_thread(_chat_prompt, engine, asked)
        voices = Voices(request)
        room = _room(engine, [prompt], "messages")
        job = Job(
            prompt,
            _keys(asked, 0),
            voices.listener(0),
            asked.max_completion_tokens or asked.max_tokens or room,
            top_logprobs=asked.top_logprobs if asked.logprobs else None,
            **_drawing(asked),
        )
        voices.submit(engine, [job])
        choices = [ChatChoice(n, engine.tokenizer, opened=opened, scored=asked.logprobs) for n in range(asked.n)]
        return await _Pending(asked, Reply("chat.completion", name), voices, [choices], len(prompt)).answer()

    @app.post("/v1/completions")
    async def complete(request: Request, asked: TextRequest) -> Response:
        name, engine = _chosen(engines, asked)
        prompts = await asyncio.to_thread(_text_prompts, engine, asked)
        _room(engine, [tokens for tokens, _ in prompts], "prompt", at_least=min(1, asked.max_tokens))
        voices = Voices(request)
        jobs = [
            Job(
                tokens,
                _keys(asked, number),
                voices.listener(number),
                asked.max_tokens,
                top_logprobs=asked.logprobs,
                prompt_scores=asked.echo and asked.logprobs is not None,
                **_drawing(asked),
            )
            for number, (tokens, _) in enumerate(prompts)
        ]
        voices.submit(engine, jobs)
        scored = asked.logprobs is not None
        choices = [
            [
                TextChoice(number * asked.n + n, engine.tokenizer, echo=text if asked.echo else "", scored=scored)
                for n in range(asked.n)
            ]
            for number, (_, text) in enumerate(prompts)
        ]
        num_read = sum(len(tokens) for tokens, _ in prompts)
        return await _Pending(asked, Reply("text_completion", name), voices, choices, num_read).answer()


def _model(name: str, engine: Engine) -> Json:
    return {"id": name, "object": "model", "created": 0, "owned_by": "melete", "max_model_len": engine.context}


def _engine(engines: Mapping[str, Engine], name: str) -> Engine:
    if name not in engines:
        what = f"there is no model {name!r} here; there is {', '.join(engines)}"
        raise ApiError(404, what, param="model", code="model_not_found")
    return engines[name]


def _chosen(engines: Mapping[str, Engine], asked: ChatRequest | TextRequest) -> tuple[str, Engine]:
    """The model that is meant, for a request that can be served."""
    asked.refuse_unknown()
    name = asked.model or next(iter(engines))
    engine = _engine(engines, name)
    if asked.n > engine.max_rows:
        raise ApiError(400, f"n is {asked.n}, and {engine.max_rows} answers can be written at once", param="n")
    return name, engine


def _room(engine: Engine, prompts: Sequence[tuple[int, ...]], param: str, at_least: int = 1) -> int:
    """How many tokens can follow the longest prompt."""
    longest = max(prompts, key=len)
    try:
        return engine.room_after(longest) if at_least or len(longest) > engine.context else 0
    except DoesNotFit as error:
        raise ApiError(400, str(error), param=param, code="context_length_exceeded") from None


def _keys(asked: ChatRequest | TextRequest, number: int) -> tuple[int, ...]:
    """One for each answer: the same seed and prompt give the same text."""
    if asked.seed is None:
        return tuple(secrets.randbits(63) for _ in range(asked.n))
    return tuple(rollout_key(asked.seed, "serve", number, sibling) for sibling in range(asked.n))


def _drawing(asked: ChatRequest | TextRequest) -> Json:
    stop = tuple(asked.stop)
    return {"temperature": asked.temperature, "top_p": asked.top_p, "top_k": max(0, asked.top_k), "stop": stop}


def _chat_prompt(engine: Engine, asked: ChatRequest) -> tuple[tuple[int, ...], bool]:
    with engine.encoding:
        tokens = prompt_tokens(engine.tokenizer, [turn.message() for turn in asked.messages])
        return tokens, opens_thought(engine.tokenizer)


def _text_prompts(engine: Engine, asked: TextRequest) -> list[tuple[tuple[int, ...], str]]:
    """Tokens and text of each prompt; an empty one is the token that begins a text, where the model has one."""
    found = []
    with engine.encoding:
        for prompt in asked.prompts():
            tokens = engine.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
            text = prompt if isinstance(prompt, str) else str(engine.tokenizer.decode(prompt)) if asked.echo else ""
            if not tokens:
                begin = engine.tokenizer.bos_token_id
                tokens = [] if begin is None else [begin]
            if not tokens:
                raise ApiError(
                    400, "the prompt is empty, and this model has no token that begins a text", param="prompt"
                )
            found.append((tuple(tokens), text))
    if not found:
        raise ApiError(400, "there is no prompt", param="prompt")
    return found


@dataclass
class _Pending:
    """A request whose jobs are being written."""

    asked: ChatRequest | TextRequest
    reply: Reply
    voices: Voices
    choices: Sequence[Sequence[ChatChoice | TextChoice]]  # of each job
    num_read: int

    async def answer(self) -> Response:
        """The answer, streamed or at once, as was asked."""
        if self.asked.stream:
            return StreamingResponse(self._events(), media_type="text/event-stream")
        async for heard in self.voices.pieces():
            if heard:
                _taken(self.choices, *heard)
        everybody = [choice for group in self.choices for choice in group]
        if any(choice.finish is None for choice in everybody):
            raise HTTPException(499, "the client hung up")
        return JSONResponse(self.reply.whole([choice.whole() for choice in everybody], self._counted()))

    def _counted(self) -> Json:
        return usage(self.num_read, sum(choice.num_tokens for group in self.choices for choice in group))

    async def _events(self) -> AsyncIterator[str]:
        options = self.asked.stream_options
        with_usage = options is not None and options.include_usage
        try:
            async for heard in self.voices.pieces():
                if heard is None:
                    yield ": the request waits\n\n"
                    continue
                for choice in _taken(self.choices, *heard):
                    yield _event(self.reply.chunk([choice], with_usage=with_usage))
            if with_usage:
                yield _event(self.reply.chunk([], self._counted(), with_usage=True))
        except ApiError as error:
            yield _event(error.body)
        finally:
            self.voices.close()
        yield "data: [DONE]\n\n"


def _taken(choices: Sequence[Sequence[ChatChoice | TextChoice]], number: int, piece: Piece) -> list[Json]:
    if piece.index < 0:
        for choice in choices[number]:
            assert isinstance(choice, TextChoice)
            choice.take_prompt(piece.scores)
        return []
    return choices[number][piece.index].take(piece)


def _event(content: Mapping[str, Any]) -> str:
    # in ASCII, for some clients part lines at any sign of Unicode that parts lines
    return f"data: {json.dumps(content, separators=(',', ':'))}\n\n"


@asynccontextmanager
async def closing(engines: Mapping[str, Engine]) -> AsyncIterator[None]:
    """Ends the engines when the server ends."""
    yield
    for engine in engines.values():
        await asyncio.to_thread(engine.close)
