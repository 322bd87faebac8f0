"""How a command fails: one message and an exit status, a traceback only where it is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import typer

from melete.errors import MeleteError

BAD_INPUT, INTERNAL_ERROR, INTERRUPTED = 2, 1, 130


@contextlib.contextmanager
def plain_errors(debug: bool, continue_with: str = "") -> Iterator[None]:
    """Turns an error into one message and an exit status."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("\ninterrupted", err=True)
        if continue_with:
            typer.echo(f"the same command continues from what is saved:\n  {continue_with}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except typer.Exit:
        raise
    except MeleteError as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(BAD_INPUT) from None
    except OSError as error:
        if debug:
            raise
        message = MeleteError(
            error.strerror or str(error),
            place=str(error.filename or ""),
            remedy="check the path, its permissions and the free space; --debug shows where it happened",
        )
        typer.echo(f"error: {message}", err=True)
        raise typer.Exit(BAD_INPUT) from None
    except Exception as error:
        if debug:
            raise
        typer.echo(f"error: this should not happen: {type(error).__name__}: {error}", err=True)
        typer.echo("  mend:  run again with --debug and report what it shows", err=True)
        raise typer.Exit(INTERNAL_ERROR) from None
