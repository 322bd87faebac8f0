"""A command for each stage: `melete sft`, `rm`, `dpo`, `rl`, `reject`, `distill`, `eval` and `generate`.

Each is a recipe of one stage, with the same settings; they are read from the schema when the command runs.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from melete.cli_errors import plain_errors
from melete.cli_perform import closing_lines, perform
from melete.errors import RecipeError
from melete.machine.threads import prepare_threads
from melete.one_stage import COMMANDS, Command, recipe_tables

if TYPE_CHECKING:
    from rich.console import Console

    from melete.cli_options import Given

_RAW = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": list[str]()}


def add_stage_commands(app: typer.Typer) -> None:
    """A command for each of `COMMANDS`."""
    for command in COMMANDS.values():
        app.command(
            command.name,
            help=command.about,
            context_settings=_RAW,
            add_help_option=False,
            rich_help_panel="Single stages",
        )(_runner(command))


def _runner(command: Command) -> Callable[[typer.Context], None]:
    def run_stage(context: typer.Context) -> None:
        run(command, context.args)

    return run_stage


def run(command: Command, arguments: Sequence[str]) -> None:
    """Reads the arguments and does what they say."""
    if "--help" in arguments or "--help-all" in arguments or not arguments:
        from melete.cli_options import help_text

        typer.echo(help_text(command, everything="--help-all" in arguments))
        return
    line = shlex.join(["melete", *sys.argv[1:]])
    with plain_errors("--debug" in arguments, continue_with=line):
        prepare_threads()
        from melete.cli_options import read

        given = read(command, arguments)
        max_minutes = _minutes(given)
        recipe = given.recipe()
        if file := given.run.get("save-recipe"):
            save_recipe(given, Path(file))
            return
        as_json = "json" in given.run
        done = perform(
            recipe,
            given.run_dir,
            command=line,
            dry_run="dry-run" in given.run,
            max_minutes=max_minutes,
            track=given.run["track"].split(",") if "track" in given.run else (),
            say=(lambda text: typer.echo(text, err=True)) if as_json else typer.echo,
            console=_standard_error() if as_json else None,
        )
        if done:
            _closing(given, as_json)


def _standard_error() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False)


def _minutes(given: Given) -> float | None:
    text = given.run.get("max-minutes")
    try:
        minutes = float(text) if text is not None else None
    except ValueError:
        minutes = -1.0
    if minutes is not None and not minutes >= 0:
        given.problems.append(("--max-minutes", f"must be a number of minutes, not {text!r}"))
    return minutes


def save_recipe(given: Given, path: Path) -> None:
    """Writes what was given as a recipe; a file that is there already is not replaced."""
    import tomli_w

    from melete.runs.atomic import write_atomically

    if path.suffix != ".toml":
        raise RecipeError("a recipe is a .toml file", place=str(path), remedy=f"--save-recipe {path}.toml")
    if path.exists():
        raise RecipeError("this file is there already", place=str(path), remedy="choose another name, or delete it")
    tables = recipe_tables(given.command, given.settings, int(given.seed))
    # None is what a setting is that is left out
    text = tomli_w.dumps(_without_none(tables), multiline_strings=True)
    head = f"# What `melete {given.command.name}` was told; other settings have their defaults.\n"
    write_atomically(path, head + text)
    run_dir = given.run_dir
    default = Path("runs") / given.command.name
    more = f" --runs-dir {shlex.quote(str(run_dir.parent))} --name {shlex.quote(run_dir.name)}"
    typer.echo(f"written; nothing was run. Go on with:\n  melete run {path}{more if run_dir != default else ''}")


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value


def _closing(given: Given, as_json: bool) -> None:
    """What was made, and where."""
    run_dir, name = given.run_dir, given.command.name
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    entry = next(stage for stage in summary["stages"] if stage["name"] == name)
    if given.command.kind == "evaluate":
        if as_json:
            typer.echo(json.dumps({"run": str(run_dir), "models": entry["checkpoints"]}, indent=2))
            return
        typer.echo("\n" + exam_lines(entry["checkpoints"]))
    if out := given.run.get("out"):
        shutil.copyfile(run_dir / entry["data"], out)
        typer.echo(f"copied to {out}")
    for key in ("model", "data"):
        made = run_dir / str(entry.get(key) or "-")
        if made.exists():
            typer.echo(f"{key}: {made}")
    typer.echo(closing_lines(run_dir))


def exam_lines(checkpoints: Sequence[Mapping[str, Any]]) -> str:
    """A line for each model and task, with 95 % intervals."""
    rows = [["model", "task", "problems", "pass@1 [95 %]", "pass@k", "maj@k", "tokens"]]
    for one in checkpoints:
        for task, found in one["tasks"].items():
            k = found["num_samples"]
            rows.append(
                [
                    one["label"],
                    task,
                    str(found["num_problems"]),
                    _interval(found, "score" if found["score"] != found["pass@1"] else "pass@1"),
                    f"@{k} {found[f'pass@{k}']:.3f}" if k > 1 and f"pass@{k}" in found else "",
                    f"@{k} {found[f'maj@{k}']:.3f}" if k > 1 and f"maj@{k}" in found else "",
                    f"{found['length_mean']:.0f}",
                ]
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def _interval(found: Mapping[str, Any], name: str) -> str:
    graded = " (score)" if name == "score" else ""
    return f"{found[name]:.3f} [{found[f'{name}/low']:.3f}, {found[f'{name}/high']:.3f}]{graded}"
