"""`melete label`: a person judges answers on a page, and their journal becomes data."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from melete.cli_errors import plain_errors
from melete.errors import RecipeError

if TYPE_CHECKING:
    from melete.labelling.journal import Journal

MODES = ("compare", "safety")
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


class _StartsByDefault(TyperGroup):
    """`melete label DATA` is `melete label start DATA`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["start", *args]
        return super().parse_args(ctx, args)


label = typer.Typer(
    name="label",
    cls=_StartsByDefault,
    no_args_is_help=True,
    help="Judge answers on a page, and export what was judged.",
)


@label.command()
def start(
    data: Annotated[
        Path | None, typer.Argument(help="Rows of a prompt and two or more completions; not needed with --model.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The journal of answers; by default beside the data.")] = None,
    by: Annotated[str, typer.Option(metavar="NAME", help="Who judges; by default the name of the user.")] = "",
    mode: Annotated[str, typer.Option(help="compare two answers, or the safety of one.")] = "compare",
    model: Annotated[str, typer.Option(metavar="MODEL", help="Write answers with this model first, into DATA.")] = "",
    other: Annotated[str, typer.Option(metavar="MODEL", help="Write every second answer with another model.")] = "",
    task: Annotated[str, typer.Option(help="The task whose problems are asked.")] = "general",
    num_problems: Annotated[int, typer.Option("--num-problems", "-n", min=1, help="How many problems.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the answers.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.01, max=2, help="How varied answers are.")] = 1.0,
    host: Annotated[str, typer.Option(help="Another than this machine's own needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8001,
    token: Annotated[
        str | None, typer.Option(metavar="env", help="`env`: every request needs the token in MELETE_TOKEN.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Judge answers on a page, with the keyboard. The same command goes on where you stopped."""
    with plain_errors(debug):
        data = _data(data, model, other, task)
        if mode not in MODES:
            raise RecipeError(f"{mode!r} is not known", place="--mode", remedy=f"one of {', '.join(MODES)}")
        by = (by or _user()).strip()
        from melete.imports import require

        for module in ("fastapi", "uvicorn"):
            require(module, extra="serve")
        from melete.labelling.items import read_items
        from melete.labelling.journal import Journal
        from melete.labelling.site import journal_of, label_app
        from melete.web.listen import refuse_open_host, serve_app, token_from

        secret = token_from(token)
        refuse_open_host(host, secret)
        if model:
            _sample(data, model, other, task, num_problems, seed, max_new_tokens, temperature)
        items = read_items(data, mode)
        place = out or journal_of(data)
        if place.resolve() == data.resolve():
            raise RecipeError("this is the data that is judged", place="--out", remedy="give another file")
        journal = Journal(place)
        _tell_notes(journal)
        answered = {item for _, item in journal.current(by)} & {item.item_id for item in items}
        typer.echo(f"{len(items)} to judge, {len(answered)} answered by {by}; answers go to {journal.path}")

        def announce(address: str) -> None:
            typer.echo(f"open {address}  (Ctrl-C ends; nothing is lost)")
            if secret:
                typer.echo("open the page with ?token=... once")

        app = label_app(items, journal, by=by, mode=mode, token=secret)
        serve_app(app, host=host, port=port, token=secret, announce=announce)


@label.command()
def export(
    journal: Annotated[Path, typer.Argument(help="A journal that `melete label` wrote.")],
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    form: Annotated[str, typer.Option("--as", help="pairs for dpo, rm; labels for rm --loss pointwise.")] = "pairs",
    by: Annotated[str, typer.Option(metavar="NAME", help="The answers of this person alone.")] = "",
    debug: Debug = False,
) -> None:
    """Write what was judged as data to train on; ties, skips and disagreements are left out and counted."""
    with plain_errors(debug):
        from melete.labelling.export import export as exported
        from melete.labelling.journal import Journal

        if not journal.is_file():
            raise RecipeError("there is no such journal", place=str(journal), remedy="melete label DATA makes one")
        opened = Journal(journal)
        _tell_notes(opened)
        counts = exported(opened, out, form, by=by)
        rows = counts.pop("rows")
        left_out = ", ".join(f"{what.replace('_', ' ')} {count}" for what, count in counts.items() if count)
        typer.echo(f"{rows} rows written to {out}{f'; {left_out}' if left_out else ''}")


def _data(data: Path | None, model: str, other: str, task: str) -> Path:
    if other and not model:
        raise RecipeError("--other needs --model", place="--other")
    if data is None and not model:
        raise RecipeError("there is nothing to judge", place="DATA", remedy="give a file, or --model to write answers")
    return data or Path(f"{task}-answers.jsonl")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "me"


def _tell_notes(journal: Journal) -> None:
    for note in journal.notes:
        typer.echo(f"note: {note}", err=True)


def _sample(
    data: Path, model: str, other: str, task: str, num: int, seed: int, max_new_tokens: int, temperature: float
) -> None:
    if data.exists():
        typer.echo(f"{data} is there and is used; delete it to write other answers")
        return
    from melete.machine.threads import prepare_threads

    prepare_threads()
    from melete.labelling.sample import sample_answers

    typer.echo(f"writing two answers each to {num} problems of {task}")
    sample_answers(
        data, model, other or model, task, num=num, seed=seed, max_new_tokens=max_new_tokens, temperature=temperature
    )
