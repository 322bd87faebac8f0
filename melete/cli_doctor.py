"""`melete doctor`: what this machine has and lacks, and with `--run DIR` what looks wrong with a run and why."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from melete.cli_errors import plain_errors

if TYPE_CHECKING:
    from melete.doctor import Line


def doctor(
    run: Annotated[
        Path | None, typer.Option("--run", metavar="DIR", help="Read a run, finished or not, in place of the machine.")
    ] = None,
    runs_dir: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Look at this machine, or at a run: what is well, what is worth knowing, what is broken and how to mend it.

    Exit status 1 if something is broken.
    """
    with plain_errors(debug):
        from melete.doctor import look_at_machine, look_at_run

        found: Iterable[Line] = look_at_run(_place(run, runs_dir)) if run else look_at_machine(runs_dir)
        lines = list(found) if as_json else _told(found)
        problems = sum(line.level == "problem" for line in lines)
        if as_json:
            from melete.runs.atomic import json_text

            typer.echo(json_text({"ok": not problems, "lines": [line.as_dict() for line in lines]}, indent=2))
        else:
            typer.echo(f"\n{_closing(problems)}")
        if problems:
            raise typer.Exit(1)


def _place(run: Path, runs_dir: Path) -> Path:
    """The directory itself, or the run of that name."""
    return runs_dir / run if not run.exists() and (runs_dir / run).is_dir() else run


def _told(found: Iterable[Line]) -> list[Line]:
    """Prints each line as soon as it is known; nothing in a run's files steers the terminal."""
    from melete.live import visible

    lines: list[Line] = []
    for line in found:
        typer.echo(visible(line.text()))
        lines.append(line)
    return lines


def _closing(problems: int) -> str:
    if not problems:
        return "nothing is broken"
    return "1 thing is broken" if problems == 1 else f"{problems} things are broken"
