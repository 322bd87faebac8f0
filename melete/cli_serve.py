"""`melete chat MODEL` and `melete serve MODEL...`: a model answers, in the terminal or over the network."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from melete.cli_errors import plain_errors
from melete.errors import DataError, RecipeError

ModelName = Annotated[str, typer.Argument(help="A name of `melete models ls`, or a directory: runs/NAME/models/STAGE.")]
DeviceName = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
NumberFormat = Annotated[str, typer.Option("--dtype", help="auto, float32 or bfloat16.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
_DEVICES, _DTYPES = ("auto", "cpu", "cuda", "mps"), ("auto", "float32", "bfloat16")


def add_serve_commands(app: typer.Typer) -> None:
    """Adds `chat` and `serve`."""
    app.command()(chat)
    app.command()(serve)


def chat(
    model: ModelName,
    compare: Annotated[str, typer.Option(metavar="OTHER", help="Ask a second model the same.")] = "",
    votes: Annotated[int, typer.Option(min=1, max=64, help="Answers to each question; what most say is shown.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 is greedy.")] = 0.7,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Draw among the likeliest tokens of this share.")] = 1.0,
    system: Annotated[str, typer.Option(help="System prompt.")] = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 1024,
    seed: Annotated[int | None, typer.Option(help="The same seed and question give the same answer.")] = None,
    device: DeviceName = "auto",
    dtype: NumberFormat = "auto",
    debug: Debug = False,
) -> None:
    """Chat with a model in the terminal; what comes through a pipe is one question, and only its answer is printed."""
    with plain_errors(debug):
        _check(device, dtype)
        if top_p == 0:
            raise RecipeError("--top-p must be more than 0", remedy="1 draws among all tokens")
        from melete.machine.threads import prepare_threads

        prepare_threads()
        from melete.serving.load import load_engine, served_names
        from melete.serving.terminal import ChatSettings, TerminalChat

        settings = ChatSettings(temperature, top_p, max_new_tokens, votes, seed, system)
        is_asked = sys.stdin.isatty()
        question = "" if is_asked else _piped()
        wanted = [model, compare] if compare else [model]
        engines = [
            load_engine(given, name=name, max_rows=max(votes, 64), device=_any(device), dtype=_any(dtype))
            for given, name in zip(wanted, served_names(wanted), strict=True)
        ]
        styled = sys.stdout.isatty()
        talk = TerminalChat(engines, settings, sys.stdout, sys.stderr, styled=styled, answer_only=not is_asked)
        try:
            if is_asked:
                talk.run(_line_reader())
            else:
                talk.ask(question)
        finally:
            for engine in engines:
                engine.close()


def serve(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Names of `melete models ls`, directories.")],
    host: Annotated[str, typer.Option(help="Another than this machine's own needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    token: Annotated[
        str | None, typer.Option(metavar="env", help="`env`: every request needs the token in MELETE_TOKEN.")
    ] = None,
    max_rows: Annotated[int, typer.Option(min=1, max=1024, help="Answers that each model writes at once.")] = 32,
    context: Annotated[
        int | None, typer.Option(min=2, help="Longest prompt and answer together, in tokens; by default the model's.")
    ] = None,
    device: DeviceName = "auto",
    dtype: NumberFormat = "auto",
    debug: Debug = False,
) -> None:
    """Serve models: OpenAI's interface at /v1, and a page to chat at /."""
    with plain_errors(debug):
        _check(device, dtype)
        from melete.imports import require

        for module in ("fastapi", "uvicorn"):
            require(module, extra="serve")
        from melete.machine.threads import prepare_threads
        from melete.web.listen import refuse_open_host, token_from

        secret = token_from(token)
        refuse_open_host(host, secret)  # before models are loaded
        prepare_threads()
        from melete.serving.load import load_engine, served_names
        from melete.serving.site import chat_app
        from melete.web.listen import serve_app

        engines = {
            name: load_engine(
                given, name=name, max_rows=max_rows, context=context, device=_any(device), dtype=_any(dtype)
            )
            for given, name in zip(models, served_names(models), strict=True)
        }
        for name, engine in engines.items():
            typer.echo(f"{name}: {engine.context} tokens of context, {engine.max_rows} answers at once")

        def announce(address: str) -> None:
            typer.echo(f"serving at {address}  (OpenAI's interface at {address}v1; Ctrl-C ends)")
            if secret:
                typer.echo("every request needs the token; open the page with ?token=... once")

        try:
            serve_app(chat_app(engines, token=secret), host=host, port=port, token=secret, announce=announce)
        finally:
            for engine in engines.values():
                engine.close()


def _check(device: str, dtype: str) -> None:
    for option, value, known in (("--device", device, _DEVICES), ("--dtype", dtype, _DTYPES)):
        if value not in known:
            raise RecipeError(f"{value!r} is not known", place=option, remedy=f"one of {', '.join(known)}")


def _any(value: str) -> Any:
    """A value that has been checked, for a parameter that names those it takes."""
    return value


def _piped() -> str:
    try:
        question = sys.stdin.read().strip()
    except UnicodeDecodeError as error:
        raise DataError("what came through the pipe is no UTF-8 text", place="standard input") from error
    if not question:
        raise DataError("nothing was asked", place="standard input", remedy='echo "2+2" | melete chat tiny')
    return question


def _line_reader() -> Callable[[str], str]:
    with contextlib.suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  (arrows and history in `input`)
    return input
