"""An application with nothing but its guard, and pages from package data."""

from __future__ import annotations

import mimetypes
from importlib import resources

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from melete.errors import MeleteError
from melete.web.guard import Guard, error_body


def make_app(*, title: str, token: str | None = None, max_body: int = 2**20) -> FastAPI:
    """An application behind a `Guard`, whose errors are JSON in OpenAI's shape."""
    app = FastAPI(title=title, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, token=token, max_body=max_body)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _wrong_field)
    app.add_exception_handler(MeleteError, _told)
    return app


def page(app: FastAPI, path: str, html: str) -> None:
    """Answers `path` with this page; its scripts and styles are assets, because the guard allows none within."""
    asset(app, path, html, "text/html")


def asset(app: FastAPI, path: str, text: str, media_type: str) -> None:
    """Answers `path` with this text."""

    async def answer() -> Response:
        return Response(text, media_type=media_type)

    app.add_api_route(path, answer, methods=["GET", "HEAD"])


def package_pages(app: FastAPI, package: str) -> None:
    """Adds each file of a package's `page` directory: index.html at "/", the others at their names."""
    for file in sorted(resources.files(package).joinpath("page").iterdir(), key=lambda file: file.name):
        text = file.read_text(encoding="utf-8")
        if file.name == "index.html":
            page(app, "/", text)
        else:
            asset(app, f"/{file.name}", text, mimetypes.guess_type(file.name)[0] or "text/plain")


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = {404: "there is nothing at this address", 405: "this address does not take this method"}
    message = told.get(error.status_code) if error.detail in ("Not Found", "Method Not Allowed") else None
    return JSONResponse(error_body(message or str(error.detail)), error.status_code, headers=error.headers)


async def _wrong_field(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    # "body" and the like say where the field was looked for, not what it is called
    field = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    return JSONResponse(error_body(f"{field}: {first['msg']}", param=field), 400)


async def _told(_: Request, error: Exception) -> Response:
    assert isinstance(error, MeleteError)  # its place may be a path of this machine
    return JSONResponse(error_body(f"{error.what}; {error.remedy}" if error.remedy else error.what), 400)
