"""The terminal: `melete runs ls`, `melete runs show RUN`, `melete runs compare A B`.

What stands in a run's files is printed as it is: nothing in it is taken for a style or for control of the terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from melete.cli_errors import plain_errors

if TYPE_CHECKING:
    from rich.table import Table

    from melete.runs.compare import Compared, Comparison, Difference
    from melete.runs.listing import Evaluated, RunFacts, StageFacts

runs = typer.Typer(name="runs", help="Look at runs, and compare two of them.", no_args_is_help=True)
RunsDir = Annotated[Path, typer.Option(help="Where runs are kept.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
_WIDTH_OF_PIPE = 240
MIN_SHARED = 10  # problems that both runs tried, or half of them, before they are paired


@runs.command("ls")
def runs_ls(runs_dir: RunsDir = Path("runs"), as_json: AsJson = False, debug: Debug = False) -> None:
    """List the runs: how far each came, and what was learnt."""
    with plain_errors(debug):
        from melete.runs.listing import list_runs

        found = list_runs(runs_dir)
        if as_json:
            _print_json([run.as_dict() for run in found])
        elif found:
            _print(_runs_table(found))
        else:
            typer.echo(f"no runs in {runs_dir}")


@runs.command("show")
def runs_show(
    run: Annotated[str, typer.Argument(help="A run's name in the directory of runs, or its path.")],
    runs_dir: RunsDir = Path("runs"),
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show the stages of a run with what each found."""
    with plain_errors(debug):
        from melete.runs.listing import find_run

        found = find_run(run, runs_dir)
        if as_json:
            _print_json(found.as_dict())
        else:
            _show(found)


@runs.command("compare")
def runs_compare(
    a: Annotated[str, typer.Argument(help="A run's name in the directory of runs, or its path.")],
    b: Annotated[str, typer.Argument(help="Another one.")],
    runs_dir: RunsDir = Path("runs"),
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare two runs: what their recipes differ in, and whether their results differ by more than chance."""
    with plain_errors(debug):
        from melete.runs.compare import compare_runs
        from melete.runs.listing import find_run

        one, other = find_run(a, runs_dir), find_run(b, runs_dir)
        found = compare_runs(one, other, _Pairing(one, other))
        if as_json:
            _print_json(found.as_dict())
        else:
            _show_comparison(found)


def _print_json(value: Any) -> None:
    from melete.runs.atomic import json_text

    typer.echo(json_text(value, indent=2))


def _print(table: Table) -> None:
    from rich.console import Console

    # a pipe has no width of its own, and who reads lines wants them whole
    Console(width=None if sys.stdout.isatty() else _WIDTH_OF_PIPE).print(table)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> Table:
    """A table of plain text: `Text` is never read as markup. Only the last column may be folded."""
    from rich.table import Table
    from rich.text import Text

    from melete.live import visible

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, name in enumerate(head):
        table.add_column(
            Text(visible(name)),
            justify="right" if number in right else "left",
            no_wrap=number + 1 < len(head),
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    return table


def _echo(text: str) -> None:
    from melete.live import visible

    typer.echo(visible(text))


def _runs_table(found: Sequence[RunFacts]) -> Table:
    rows = [
        [run.name, run.recipe_name, str(run.seed), run.says, run.started[:16], _duration(run.seconds), run.learnt]
        for run in found
    ]
    return _table(["run", "recipe", "seed", "state", "started (UTC)", "time", "learnt"], rows, right=[2, 5])


def _duration(seconds: float) -> str:
    from melete.live import duration

    return duration(seconds) if seconds else ""


def _show(run: RunFacts) -> None:
    _echo(f"{run.name}: recipe {run.recipe_name}, seed {run.seed}, {run.says}")
    if run.learnt:
        _echo(f"learnt: {run.learnt}")
    from melete.runs.listing import exam_table, key_figures

    rows = []
    for number, stage in enumerate(run.stages, 1):
        figures = key_figures(stage)
        rows.append(
            [f"{number}. {stage.name}", stage.kind, _state(stage), *_times(stage), figures[0] if figures else ""]
        )
        rows += [["", "", "", "", "", line] for line in figures[1:]]
    typer.echo()
    _print(_table(["stage", "kind", "state", "time", "estimated", ""], rows, right=[3, 4]))
    for stage in run.stages:
        head, table = exam_table(stage)
        if table:
            typer.echo()
            _echo(f"{stage.name}: pass@1, or the score where answers are graded, with 95 % intervals")
            _print(_table(head, table))
    typer.echo()
    report = run.path / "report.html"
    _echo(f"report: {report}" if report.exists() else "there is no report yet")


def _state(stage: StageFacts) -> str:
    if stage.state == "begun" and stage.num_steps:
        return f"step {stage.step} of {stage.num_steps}"
    return stage.state


def _times(stage: StageFacts) -> tuple[str, str]:
    estimated = stage.estimated_seconds
    return _duration(stage.seconds), "" if estimated is None else _duration(estimated)


def _show_comparison(found: Comparison) -> None:
    _echo(f"A: {found.a}\nB: {found.b}\n")
    _echo("recipes: B's differs" if found.recipe or found.only_in else "recipes: no difference")
    for line in (*found.recipe, *found.only_in):
        _echo(f"  {line}")
    rows = [[row.where, row.measure, *_sides(row), _difference(row.difference), row.says] for row in found.rows]
    typer.echo()
    _print(_table(["", "", "A [95 %]", "B [95 %]", "B - A [95 %]", ""], rows))
    for note in found.notes:
        _echo(note)


def _sides(row: Compared) -> tuple[str, str]:
    a, b = (_number(*side) for side in (row.a, row.b))
    return a, b


def _number(value: float, low: float | None, high: float | None) -> str:
    digits = 2 if abs(value) < 10 else 1
    if low is None or high is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _difference(found: Difference | None) -> str:
    if found is None:
        return ""
    digits = 3 if abs(found.mean) < 10 else 1
    return f"{found.mean:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"


class _Pairing:
    """Differences over the problems that both runs tried, from what they sampled; it is judged again."""

    def __init__(self, a: RunFacts, b: RunFacts) -> None:
        self.a, self.b = a, b

    def __call__(self, one: Evaluated, other: Evaluated) -> Mapping[str, Difference]:
        from melete.runs.compare import Difference

        if not (one.file.exists() and other.file.exists()):
            return {}
        ids = [_problem_ids(file) for file in (one.file, other.file)]
        shared = ids[0] & ids[1]
        if len(shared) < min(MIN_SHARED, min(map(len, ids))) or 2 * len(shared) < min(map(len, ids)):
            return {}
        if _task_settings(self.a, one) != _task_settings(self.b, other):
            return {}  # problems of the same number, but of other tasks
        from melete.evaluation.again import paired_differences

        found = paired_differences(_results(self.a, one), _results(self.b, other))
        return {measure: Difference(*numbers) for measure, numbers in found.items()}


def _problem_ids(file: Path) -> set[str]:
    from melete.runs.directory import read_rows

    return {row["problem_id"] for row in read_rows(file)}


def _settings(run: RunFacts, one: Evaluated) -> dict[str, Any]:
    return next(stage for stage in run.recipe["stage"] if stage["name"] == one.stage)


def _task_settings(run: RunFacts, one: Evaluated) -> dict[str, Any]:
    stage = _settings(run, one)
    return dict(stage["tasks"][one.task]["task"] if one.task else stage["task"])


def _results(run: RunFacts, one: Evaluated) -> Any:
    from melete.evaluation.again import per_problem
    from melete.models.load import load_tokenizer
    from melete.tasks import make_task

    settings = _task_settings(run, one)
    task = make_task(settings.pop("name"), settings)
    return per_problem(one.file, task, load_tokenizer(_model_directory(run, one)))


def _model_directory(run: RunFacts, one: Evaluated) -> Path:
    """A directory with the tokenizer: the model that was evaluated, else the one on disk that it began with."""
    from types import SimpleNamespace

    from melete.models.places import resolve_model
    from melete.planning.graph import Graph

    model = one.model or one.stage
    if (run.path / "models" / model).is_dir():
        return run.path / "models" / model
    stages = [SimpleNamespace(**stage) for stage in run.recipe["stage"]]
    return resolve_model(Graph(stages).origin(model))
