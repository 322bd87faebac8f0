"""`melete data show | check | convert`: data as the model sees it, before anything is trained on it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from melete.cli_errors import plain_errors
from melete.errors import DataError, RecipeError
from melete.suggest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.text import Text
    from transformers import PreTrainedTokenizerBase

    from melete.datasets.checks import SeenRow
    from melete.datasets.formats import Format, Row

data = typer.Typer(name="data", help="See, check and convert data sets.", no_args_is_help=True)
File = Annotated[Path, typer.Argument(help="JSONL, JSON, CSV, TSV (also .gz), Parquet or a `datasets` directory.")]
Model = Annotated[str, typer.Option("--model", "-m", help="The model whose chat template and tokens are used.")]
Kind = Annotated[str, typer.Option("--kind", help="auto, or sft, pairs, rankings, pointwise, steps.")]
Columns = Annotated[
    list[str] | None,
    typer.Option("--columns", metavar="ROLE=COLUMN", help="A column of another name, such as prompt=question."),
]
Part = Annotated[str, typer.Option("--part", help="The part of a `datasets` directory, such as train.")]
Template = Annotated[str, typer.Option("--chat-template", help="How turns look, as in a recipe.")]
LastTurn = Annotated[bool, typer.Option("--last-turn", help='As learn_from = "last_turn": the last answer alone.')]
Limit = Annotated[int, typer.Option("--max-tokens", min=0, help="Longest row; 0 for what the model reads.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
KINDS = ("sft", "pairs", "rankings", "pointwise", "steps")
BENCHMARKS = {"gsm8k": "prompt", "humaneval": "prompt"}  # and the column that asks
LEARNT = "bold green"


@data.command("show")
def data_show(
    file: File,
    model: Model = "tiny",
    tokens: Annotated[bool, typer.Option("--tokens", help="Each token apart, with its number.")] = False,
    count: Annotated[int, typer.Option("--num-rows", "-n", min=1, help="How many rows.")] = 3,
    start: Annotated[int, typer.Option("--start", min=0, help="The first row that is shown, counted from 0.")] = 0,
    kind: Kind = "auto",
    columns: Columns = None,
    part: Part = "",
    chat_template: Template = "auto",
    last_turn: LastTurn = False,
    debug: Debug = False,
) -> None:
    """Show rows as the model sees them: what is learnt is green, or stands in ⟦ ⟧ where there is no colour."""
    with plain_errors(debug):
        rows, form = _rows(file, kind, columns, part)
        if start >= len(rows):
            raise DataError(f"there is no row {start}: it has {len(rows)}", place=str(file), remedy="a smaller --start")
        tokenizer = _tokenizer(model, chat_template)
        from rich.console import Console

        from melete.datasets.checks import seen_rows, visible

        console = Console(highlight=False, soft_wrap=True)
        typer.echo(f"{file}: {len(rows):,} {_called(form)}, of the form {form.name!r}")
        for number, row in enumerate(rows[start : start + count], start):
            for made in seen_rows(tokenizer, row, last_turn_only=last_turn):
                learnt = sum(made.mask)
                name = visible(_identity(row))
                head = f"row {number} (id {name}), {made.about}: {len(made.tokens)} tokens, {learnt} learnt"
                console.print(f"\n-- {head}", style="bold", markup=False)
                for line in _shown(tokenizer, made, tokens, colour=console.color_system is not None):
                    console.print(line)


@data.command("check")
def data_check(
    file: File,
    model: Model = "tiny",
    kind: Kind = "auto",
    columns: Columns = None,
    part: Part = "",
    chat_template: Template = "auto",
    last_turn: LastTurn = False,
    max_tokens: Limit = 0,
    debug: Debug = False,
) -> None:
    """Read everything and say what it is: form, lengths, and what is amiss."""
    with plain_errors(debug):
        rows, form = _rows(file, kind, columns, part)
        tokenizer = _tokenizer(model, chat_template)
        from melete.datasets.checks import described, findings
        from melete.datasets.formats import TAKEN_BY
        from melete.datasets.lengths import limit_of

        limit = limit_of(max_tokens, _config(model))
        told = {"form": f"{form.name} ({_called(form)}, for {TAKEN_BY[form.kind]})"}
        told |= described(findings(rows, tokenizer, limit, last_turn_only=last_turn))
        for name, line in (told | _contamination(rows)).items():
            typer.echo(f"{name:<16}  {line}")


@data.command("convert")
def data_convert(
    file: File,
    out: Annotated[Path, typer.Argument(help="The .jsonl file to write.")],
    kind: Kind = "auto",
    columns: Columns = None,
    part: Part = "",
    debug: Debug = False,
) -> None:
    """Write a data set in Melete's own form, a row per line."""
    with plain_errors(debug):
        if out.suffix != ".jsonl":
            raise RecipeError("the result is a .jsonl file", place=str(out), remedy=f"{out.with_suffix('.jsonl')}")
        if out.exists():
            raise RecipeError("this file is there already", place=str(out), remedy="choose another name, or delete it")
        rows, form = _rows(file, kind, columns, part)
        from melete.datasets.files import write_rows

        write_rows(out, rows)
        typer.echo(f"{out}: {len(rows):,} {_called(form)}, read from the form {form.name!r}")


def _rows(file: Path, kind: str, columns: Sequence[str] | None, part: str) -> tuple[list[Row], Format]:
    from melete.datasets.files import read_any
    from melete.types import Demonstration, LabelledCompletion, LabelledSteps, PreferencePair, RankedCompletions

    # forms with more columns first, so that what is labelled is not taken for a demonstration
    kinds: dict[str, Any] = {
        "steps": LabelledSteps,
        "pairs": PreferencePair,
        "pointwise": LabelledCompletion,
        "rankings": RankedCompletions,
        "sft": Demonstration,
    }
    if kind not in ("auto", *kinds):
        what = f"there is no kind {kind!r}; {did_you_mean(kind, KINDS)}"
        raise RecipeError(what, place="--kind", remedy=f"auto, {', '.join(KINDS)}")
    wanted = list(kinds.values()) if kind == "auto" else [kinds[kind]]
    return read_any(file, wanted, columns=_mapping(columns or []), part=part)


def _mapping(columns: Sequence[str]) -> dict[str, str]:
    mapping: dict[str, str] = {}
    for given in columns:
        role, equals, column = given.partition("=")
        if not (role and equals and column):
            remedy = "a role and a column, such as --columns prompt=question"
            raise RecipeError(f"{given!r} is no mapping", place="--columns", remedy=remedy)
        mapping[role.strip()] = column.strip()
    return mapping


def _tokenizer(model: str, chat_template: str) -> PreTrainedTokenizerBase:
    from melete.models.load import load_tokenizer

    return load_tokenizer(model, chat_template=chat_template)


def _config(model: str) -> Any:
    """The model's configuration; None where an adapter or a tokenizer alone is there."""
    from transformers import AutoConfig

    from melete.models.adapters import base_of, is_adapter
    from melete.models.places import resolve_model

    path = resolve_model(model)
    path = resolve_model(base_of(path)) if is_adapter(path) else path
    if not (path / "config.json").is_file():
        return None
    return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)


def _called(form: Format) -> str:
    from melete.datasets.formats import CALLED

    return CALLED[form.kind]


def _identity(row: Row) -> str:
    from dataclasses import fields

    return str(getattr(row, fields(row)[0].name))


def _shown(tokenizer: PreTrainedTokenizerBase, row: SeenRow, tokens: bool, *, colour: bool) -> Iterator[Text]:
    """The row as text, or a line for each token."""
    from rich.text import Text

    from melete.datasets.checks import cells

    found = list(cells(tokenizer, row))
    if tokens:
        for text, learnt, ids in found:
            numbers = " ".join(map(str, ids))
            sign = "⟦" if learnt else " "
            told = text.replace("\n", "\\n")
            yield Text(f"{numbers:>8} {sign} |{told}|", style=LEARNT if learnt else "dim")
        return
    line = Text()
    before = False
    for text, learnt, _ in [*found, ("", False, ())]:
        if learnt != before and not colour:
            line.append("⟦" if learnt else "⟧")
        line.append(text, style=LEARNT if learnt else "")
        before = learnt
    yield line


def _contamination(rows: Sequence[Row]) -> dict[str, str]:
    """What stands in the packaged benchmarks too, as far as they are installed."""
    from melete.datasets.tables import read_table
    from melete.tasks.curation import decontaminated
    from melete.tasks.shapes import packaged

    held_out: list[str] = []
    compared: list[str] = []
    for name, column in BENCHMARKS.items():
        with contextlib.suppress(RecipeError):  # its package is not installed
            held_out += [row.text(column) for row in read_table(packaged(name))]
            compared.append(name)
    if not compared:
        return {}
    asked = ["\n".join(turn.content for turn in row.messages if turn.role == "user") for row in rows]
    dropped = decontaminated(asked, str, held_out).dropped
    found = f"{len(dropped):,} rows share ten words with them" if dropped else "no row shares ten words with them"
    return {f"against {' and '.join(compared)}": found}
