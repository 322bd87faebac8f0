"""The server as a whole: interface, page, guard."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI

from melete.serving.api import add_api, closing
from melete.serving.engine import Engine
from melete.web.app import make_app, package_pages

MAX_BODY = 4 * 2**20  # a conversation of a million tokens


def chat_app(engines: Mapping[str, Engine], *, token: str | None = None) -> FastAPI:
    """An application that serves these engines under their names, and ends them with itself."""
    app = make_app(title="melete", token=token, max_body=MAX_BODY)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with closing(engines):
            yield

    app.router.lifespan_context = lifespan
    add_api(app, engines)
    package_pages(app, "melete.serving")
    return app
