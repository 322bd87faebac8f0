"""The page of a run, and what it asks; everything is read, nothing written."""

from __future__ import annotations

from fastapi import FastAPI

from melete.watching.run import WatchedRun
from melete.web.app import make_app, package_pages


def watch_app(run: WatchedRun, *, token: str | None = None) -> FastAPI:
    """The page, which asks for news every second. No path of a request is ever a path of a file."""
    app = make_app(title="melete watch", token=token)
    package_pages(app, "melete.watching")
    app.add_api_route("/api/run", run.overview, methods=["GET"])
    app.add_api_route("/api/stage", run.stage, methods=["GET"])
    app.add_api_route("/api/config", run.config, methods=["GET"])
    return app
