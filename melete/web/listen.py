"""Binding, announcing, and ending cleanly."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable, Mapping
from types import FrameType

import uvicorn
from fastapi import FastAPI

from melete.errors import RecipeError
from melete.web.guard import is_loopback

TOKEN_VARIABLE = "MELETE_TOKEN"
MIN_TOKEN_LENGTH = 16
MAX_CONNECTIONS = 512  # more are answered with 503 at once; each may hold a body, and a process has 1024 files
_MAKE_ONE = f"{TOKEN_VARIABLE}=$(python -c 'import secrets; print(secrets.token_urlsafe(24))')"
_END_SECONDS = 3  # answers that are still being written are cut off so long after Ctrl-C


def token_from(option: str | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The token of MELETE_TOKEN; `None` where there is none and none is asked for.

    The option is "env" or absent: what a command line says can be read by every user of the machine.

    >>> token_from(None, {}), token_from("env", {"MELETE_TOKEN": "0123456789abcdef"})
    (None, '0123456789abcdef')
    """
    if option not in (None, "env"):
        what = "a token on the command line can be read by everybody on this machine"
        raise RecipeError(what, place="--token", remedy=f"write --token env, and set {_MAKE_ONE}")
    token = environment.get(TOKEN_VARIABLE, "")
    if not token:
        if option is None:
            return None
        raise RecipeError(f"{TOKEN_VARIABLE} is not set", place="--token env", remedy=f"export {_MAKE_ONE}")
    if len(token) < MIN_TOKEN_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
        what = f"the token must have at least {MIN_TOKEN_LENGTH} letters, digits or signs, and no blank"
        raise RecipeError(what, place=f"environment variable {TOKEN_VARIABLE}", remedy=f"export {_MAKE_ONE}")
    return token


def refuse_open_host(host: str, token: str | None) -> None:
    """Raises `RecipeError` for a host that others reach, when there is no token."""
    if token is None and not is_loopback(host):
        what = f"others reach this machine at {host!r}, and there is no token"
        remedy = f"add --token env and export {_MAKE_ONE}, or serve this machine alone: --host 127.0.0.1"
        raise RecipeError(what, place="--host", remedy=remedy)


def serve_app(app: FastAPI, *, host: str, port: int, token: str | None, announce: Callable[[str], None]) -> None:
    """Serves until Ctrl-C or SIGTERM; `announce` hears the address once it is listened to. Port 0 takes a free one.

    Raises `RecipeError` for a host that others reach when there is no token, and for an address that is not free.
    """
    refuse_open_host(host, token)
    with bound(host, port) as listening:
        where = f"[{host}]" if ":" in host else host
        address = f"http://{where}:{listening.getsockname()[1]}/"
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,  # an address may hold a token
            server_header=False,
            timeout_graceful_shutdown=_END_SECONDS,
            timeout_keep_alive=30,
            limit_concurrency=MAX_CONNECTIONS,
            lifespan="on",
            ws="none",
        )
        _Server(config, lambda: announce(address)).run(sockets=[listening])


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens at this address."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        listening = socket.socket(family, kind)
    except (OSError, OverflowError) as error:
        raise RecipeError(f"there is no address {host}:{port}: {error}", place="--host") from error
    try:
        if os.name == "posix":  # elsewhere this would let two servers share the port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        what = f"port {port} is in use" if error.errno == errno.EADDRINUSE else f"cannot listen: {error.strerror}"
        remedy = "choose another with --port, or --port 0 for any that is free"
        raise RecipeError(what, place=f"{host}:{port}", remedy=remedy) from error
    return listening


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self.announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self.announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # the original raises the signal once more at the end, which would end the process with a failure
        self.force_exit, self.should_exit = self.should_exit, True
        if self.force_exit:  # asked for twice: that the application was not told of its end is no news
            logging.getLogger("uvicorn.error").disabled = True
