"""The terminal: `melete run RECIPE`, a command for each stage, `melete report RUN_DIR`, `melete explain NAME`.

Each command loads what it needs when it runs, so that `melete --help` answers at once. A mistake is told in one
message with exit status 2; a traceback needs `--debug`.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from melete.cli_data import data
from melete.cli_doctor import doctor
from melete.cli_errors import plain_errors
from melete.cli_label import label
from melete.cli_models import models
from melete.cli_perform import closing_lines, perform
from melete.cli_runs import runs
from melete.cli_serve import add_serve_commands
from melete.cli_stages import add_stage_commands
from melete.cli_watch import watch
from melete.errors import RecipeError
from melete.machine.threads import prepare_threads

if TYPE_CHECKING:
    from melete.tasks.base import Task

app = typer.Typer(
    name="melete",
    help="Post-trains language models, from a base model to a reasoning one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        typer.echo(f"melete {metadata.version('melete')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A bundled recipe's name, or the path of a .toml file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as rl.lr=1e-4 or seed=3."),
    ] = None,
    runs_dir: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    name: Annotated[str, typer.Option(help="Name of the run's directory; by default the recipe's.")] = "",
    from_stage: Annotated[
        str, typer.Option("--from", metavar="STAGE", help="Make this stage and all that reads from it again.")
    ] = "",
    only: Annotated[
        str, typer.Option(metavar="STAGE", help="Make this stage and no other; what it reads must be ready.")
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the recipe, show what would be done and stop.")
    ] = False,
    max_minutes: Annotated[
        float | None, typer.Option(min=0, help="Refuse before work if it is estimated to take longer.")
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(metavar="TRACKER", help="Send metrics to tensorboard, wandb or trackio; also MELETE_TRACK."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Run a recipe: make what is not made yet, or has changed, and continue what was interrupted."""
    command = shlex.join(["melete", *sys.argv[1:]])
    with plain_errors(debug, continue_with=_continuing(command)):
        prepare_threads()
        from melete.config import load_recipe

        checked = load_recipe(recipe, overrides or [])
        run_dir = runs_dir / (name or checked.name)
        if perform(
            checked,
            run_dir,
            command=command,
            from_stage=from_stage,
            only=only,
            dry_run=dry_run,
            max_minutes=max_minutes,
            track=track or (),
        ):
            typer.echo(closing_lines(run_dir))


def _continuing(command: str) -> str:
    """What goes on after an interrupt: `--from` has done its part by then."""
    from melete.states import without_option

    return without_option(command, "--from")


@app.command()
def recipes(debug: Debug = False) -> None:
    """List the bundled recipes."""
    with plain_errors(debug):
        from melete.config import bundled_recipes, read_tables

        known = bundled_recipes()
        width = max(map(len, known))
        for name, path in known.items():
            typer.echo(f"{name:<{width}}  {read_tables(path).get('description', '')}")


@app.command()
def algorithms(debug: Debug = False) -> None:
    """List algorithms, losses and estimators, and what each needs."""
    with plain_errors(debug):
        from melete.algorithms.explain import listing

        typer.echo(listing())


@app.command()
def explain(
    name: Annotated[str, typer.Argument(help="A name that `melete algorithms` lists, such as grpo.")],
    debug: Debug = False,
) -> None:
    """Show formula, settings, source, code and metrics of an algorithm."""
    with plain_errors(debug):
        from melete.algorithms.explain import explanation

        typer.echo(explanation(name))


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(help="The directory of a run, such as runs/r1-zero-tiny.")],
    debug: Debug = False,
) -> None:
    """Make report.html and report.md again from the files of a run."""
    with plain_errors(debug):
        from melete.errors import RunError

        if not (run_dir / "summary.json").is_file():
            raise RunError(
                "this is not the directory of a finished run: it has no summary.json",
                place=str(run_dir),
                remedy="name the directory that `melete run` printed, or let the run finish first",
            )
        from melete.report import build_report

        build_report(run_dir)
        typer.echo(closing_lines(run_dir))


add_stage_commands(app)
add_serve_commands(app)
app.add_typer(runs)
app.add_typer(models)
app.add_typer(data)
app.add_typer(label)
app.command()(watch)
app.command()(doctor)
tasks = typer.Typer(name="tasks", help="Look at tasks, and try one yourself.", no_args_is_help=True)
app.add_typer(tasks)
TaskName = Annotated[str, typer.Argument(help="A task's name, as `melete tasks ls` lists them.")]
TaskSetting = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the task: min_terms=3."),
]
SplitName = Annotated[str, typer.Option(help="train or held_out.")]


def _task(name: str, overrides: list[str]) -> Task:
    """The task with settings given as "key=value"."""
    from melete.config import parse_value
    from melete.tasks import make_task

    settings = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise RecipeError(f"--set {override} has no value", remedy="write --set KEY=VALUE")
        settings[key.strip()] = parse_value(value)
    return make_task(name, settings)


@tasks.command("ls")
def tasks_ls(debug: Debug = False) -> None:
    """List the tasks with their settings."""
    with plain_errors(debug):
        from melete.tasks.show import listing

        typer.echo(listing())


@tasks.command("show")
def tasks_show(
    task: TaskName,
    overrides: TaskSetting = None,
    num_problems: Annotated[int, typer.Option("--num-problems", "-n", min=1, help="How many problems.")] = 5,
    split: SplitName = "held_out",
    debug: Debug = False,
) -> None:
    """Show problems with their right answers."""
    with plain_errors(debug):
        from melete.tasks.show import shown, split_named

        found = _task(task, overrides or [])
        if report := getattr(found, "report", None):
            typer.echo(str(report))
        for index in range(num_problems):
            typer.echo(shown(found.problem(split_named(split), index), with_gold=True))


@tasks.command("play")
def tasks_play(
    task: TaskName,
    overrides: TaskSetting = None,
    num_problems: Annotated[int, typer.Option("--num-problems", "-n", min=1, help="How many problems.")] = 5,
    split: SplitName = "held_out",
    debug: Debug = False,
) -> None:
    """Answer problems yourself and see the grade; an empty line or Ctrl-D stops."""
    with plain_errors(debug):
        from melete.tasks.show import graded, shown, split_named

        found, scores = _task(task, overrides or []), list[float]()
        for index in range(num_problems):
            problem = found.problem(split_named(split), index)
            typer.echo(shown(problem, with_gold=False))
            typer.echo("your answer: ", nl=False)
            answer = sys.stdin.readline()
            if not answer.strip():
                break
            score, told = graded(found, problem, answer.rstrip("\n"))
            scores += [] if score is None else [score]
            typer.echo(told)
        typer.echo(f"\n{sum(scores):g} of {len(scores)}" if scores else "\nnothing was answered")


@app.command()
def audit(
    task: TaskName,
    overrides: TaskSetting = None,
    num_problems: Annotated[int, typer.Option("--num-problems", "-n", min=1, help="How many problems.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the probes.")] = 0,
    split: SplitName = "train",
    debug: Debug = False,
) -> None:
    """Try wrong answers that might be paid and right ones that might not; exit status 1 if any is found."""
    with plain_errors(debug):
        from melete.rewards.audit import audit as audited
        from melete.rewards.audit import render
        from melete.tasks.show import split_named

        found = audited(_task(task, overrides or []), num_problems=num_problems, seed=seed, split=split_named(split))
        typer.echo(render(found))
        if not found.ok:
            raise typer.Exit(1)


def main() -> None:
    """The entry of the `melete` command."""
    app()


if __name__ == "__main__":
    main()
