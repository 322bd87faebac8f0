"""`melete watch RUN_DIR`: a page of a run that follows it while it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from melete.cli_errors import plain_errors


def watch(
    run_dir: Annotated[Path, typer.Argument(help="The directory of a run, such as runs/r1-zero-tiny.")],
    host: Annotated[str, typer.Option(help="Another than this machine's own needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8002,
    token: Annotated[
        str | None, typer.Option(metavar="env", help="`env`: every request needs the token in MELETE_TOKEN.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Watch a run on a page: curves, rollouts, health and settings, as they come."""
    with plain_errors(debug):
        from melete.imports import require

        for module in ("fastapi", "uvicorn"):
            require(module, extra="serve")
        from melete.watching.run import WatchedRun
        from melete.watching.site import watch_app
        from melete.web.listen import serve_app, token_from

        secret = token_from(token)

        def announce(address: str) -> None:
            typer.echo(f"watching {run_dir} at {address}  (Ctrl-C ends; the run goes on)")
            if secret:
                typer.echo("open the page with ?token=... once")

        serve_app(watch_app(WatchedRun(run_dir), token=secret), host=host, port=port, token=secret, announce=announce)
