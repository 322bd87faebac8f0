"""Each stage as a function: `melete.sft(model="tiny", data="my.jsonl", lr=1e-4)`.

The keywords are the settings of a recipe's stage, and for the run `name`, `runs_dir`, `seed`, `max_minutes` and
`quiet`. Calling again with the same settings gives the same result at once; with others, the stage is made again. A run
that was stopped is continued by the same call.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from melete.errors import DataError, RecipeError
from melete.one_stage import COMMANDS, recipe_of
from melete.results import Result, Run

if TYPE_CHECKING:
    from rich.console import Console

    from melete.api_settings import (
        DPO,
        RL,
        RM,
        SFT,
        Distill,
        Evaluate,
        Generate,
        ModelLike,
        Reject,
    )
    from melete.schema import Recipe

RUN_KEYWORDS = ("name", "runs_dir", "seed", "max_minutes", "quiet")
_DATA_KEYWORDS = ("data",)
_SWITCHES = ("adapter", "critic")  # tables that may be turned on without saying more


def sft(**settings: Unpack[SFT]) -> Result:
    """Supervised fine-tuning on demonstrations."""
    return _one_stage("sft", settings)


def rm(**settings: Unpack[RM]) -> Result:
    """Trains a reward model on preferences."""
    return _one_stage("rm", settings)


def dpo(**settings: Unpack[DPO]) -> Result:
    """DPO and its family: learns from pairs without a reward model."""
    return _one_stage("dpo", settings)


def rl(**settings: Unpack[RL]) -> Result:
    """Reinforcement learning; `rewards` may name functions of your own modules, or hold them."""
    return _one_stage("rl", settings)


def reject(**settings: Unpack[Reject]) -> Result:
    """Rejection sampling: keeps what is right and readable as demonstrations."""
    return _one_stage("reject", settings)


def distill(**settings: Unpack[Distill]) -> Result:
    """A student learns from a teacher with the same tokenizer."""
    return _one_stage("distill", settings)


def evaluate(models: ModelLike | Sequence[ModelLike], **settings: Unpack[Evaluate]) -> Result:
    """Examines models on held-out problems of a task, of several, or of a file of your own (`data`)."""
    several = models if isinstance(models, list | tuple) else [models]
    return _one_stage("eval", {"models": [_plain_model(one) for one in several], **settings})


def generate(model: ModelLike = "tiny", **settings: Unpack[Generate]) -> Result:
    """Samples completions of `prompts`, of a file (`data`) or of a task; `result.rows()` are what was written."""
    return _one_stage("generate", {"model": model, **settings})


def run(
    recipe: str | os.PathLike[str] | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    name: str = "",
    runs_dir: str | os.PathLike[str] = "runs",
    max_minutes: float | None = None,
    quiet: bool = False,
    from_stage: str = "",
    only: str = "",
) -> Run:
    """Runs a recipe: a bundled name, a file, or its tables; `overrides` are as `--set` takes them: "rl.lr=1e-4"."""
    _prepare()
    from melete.config import load_recipe, parse_recipe

    if isinstance(recipe, Mapping):
        found, called = parse_recipe(dict(recipe), overrides), "melete.run({...})"
    else:
        found, called = load_recipe(os.fspath(recipe), overrides), f"melete.run({os.fspath(recipe)!r})"
    run_dir = Path(runs_dir) / (name or found.name)
    _perform(found, run_dir, called, max_minutes, quiet, from_stage=from_stage, only=only)
    summary = _summary(run_dir)
    stages = {entry["name"]: Result(run_dir, entry["name"], entry) for entry in summary["stages"]}
    return Run(run_dir, stages, summary.get("learnt", ""))


def _one_stage(name: str, keywords: Mapping[str, Any]) -> Result:
    command = COMMANDS[name]
    options = {key: value for key, value in keywords.items() if key in RUN_KEYWORDS}
    run_dir = Path(options.get("runs_dir", "runs")) / (options.get("name") or name)
    was_there = run_dir.exists()
    try:
        settings = {
            key: _plain(key, value, run_dir)
            for key, value in keywords.items()
            if key not in options and value is not None and not (value is False and key in _SWITCHES)
        }
        _prepare()
        recipe = recipe_of(command, settings, seed=options.get("seed", 0))
    except BaseException:
        if not was_there:  # what is refused leaves nothing behind
            shutil.rmtree(run_dir, ignore_errors=True)
        raise
    told = ", ".join(f"{key}={value!r}" for key, value in {**settings, **_run_told(options)}.items())
    called = f"melete.{command.function}({told})"
    _perform(recipe, run_dir, called, options.get("max_minutes"), options.get("quiet", False))
    entry = next(entry for entry in _summary(run_dir)["stages"] if entry["name"] == name)
    return Result(run_dir, name, entry)


def _run_told(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: str(value) if key == "runs_dir" else value for key, value in options.items() if key != "quiet"}


def _prepare() -> None:
    if "torch" not in sys.modules:  # later it has counted its threads
        from melete.machine.threads import prepare_threads

        prepare_threads()


def _perform(recipe: Recipe, run_dir: Path, called: str, max_minutes: float | None, quiet: bool, **chosen: str) -> None:
    import typer

    from melete.cli_perform import perform

    perform(
        recipe,
        run_dir,
        command=called,
        max_minutes=max_minutes,
        say=_nothing if quiet else typer.echo,
        console=_silent() if quiet else None,
        **chosen,  # pyright: ignore[reportArgumentType]
    )


def _nothing(_text: str) -> None:
    """Says nothing."""


def _silent() -> Console:
    from rich.console import Console

    return Console(file=io.StringIO())


def _summary(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))


def _plain(key: str, value: Any, run_dir: Path) -> Any:
    """A keyword's value as a recipe holds it."""
    if key in _DATA_KEYWORDS:
        return _plain_data(key, value, run_dir)
    if key == "rewards" and isinstance(value, Mapping):
        return {import_name(name) if callable(name) else name: float(weight) for name, weight in value.items()}
    if isinstance(value, Result | os.PathLike):
        return _plain_model(value)
    if value is True and key in _SWITCHES:
        return {}
    if isinstance(value, Mapping):
        return {inner: _plain("", one, run_dir) for inner, one in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _plain_model(value: Any) -> str:
    if isinstance(value, Result):
        if value.model is None:
            raise RecipeError(f"{value.stage} makes no model", place=str(value.run_dir))
        return str(value.model)
    return os.fspath(value)


def _plain_data(key: str, value: Any, run_dir: Path) -> str:
    """The path of data. Rows are written to the run's directory, under a name that follows from their content."""
    if isinstance(value, Result):
        if value.data is None:
            raise RecipeError(f"{value.stage} makes no data", place=str(value.run_dir))
        return str(value.data)
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if not isinstance(value, Iterable):
        raise RecipeError(f"{key} must be a path or a list of rows, not {type(value).__name__}")
    from melete.runs.atomic import write_atomically, writing

    lines = []
    for number, row in enumerate(value):
        try:
            lines.append(json.dumps(dict(row), ensure_ascii=False) + "\n")
        except (TypeError, ValueError) as error:
            raise DataError(f"row {number} is no row of data: {error}", place=key, remedy="a dict of texts") from error
    text = "".join(lines)
    path = run_dir / "given" / f"{key}-{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:12]}.jsonl"
    if not path.exists():
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    return str(path)


def import_name(function: Callable[..., Any]) -> str:
    """The import path of a function, as recipes name it.

    Raises `RecipeError` for one that no path leads to: a recipe keeps the path, so that a run can be continued and a
    change of the function be noticed.

    >>> import math
    >>> import_name(math.sqrt)
    'math:sqrt'
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    place = name or repr(function)
    remedy = "put a function with a name into a module of its own, such as my_rewards.py, and import it from there"
    if not module or "<lambda>" in name:
        raise RecipeError("a lambda has no name that a recipe could keep", place=place, remedy=remedy)
    if "<locals>" in name or "." in name:
        raise RecipeError("a function inside another, or a method, cannot be imported", place=place, remedy=remedy)
    if module == "__main__":
        what = "this function belongs to the script or notebook itself, which no other process can import"
        raise RecipeError(what, place=place, remedy=remedy)
    if getattr(sys.modules.get(module), name, None) is not function:
        raise RecipeError(f"{module}:{name} is something else than this function", place=place, remedy=remedy)
    return f"{module}:{name}"
