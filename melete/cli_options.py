"""Options of a stage command, made from the schema: reading them, and the text of `--help`.

`--lr 1e-4`, `--lr=1e-4`, `--packing` and `--no-packing`, `--evaluation.num-problems 50`, `--task.min-terms 3`;
`--rewards accuracy=1.0 --rewards format=0.1` or `--rewards.format 0.1`; `--set KEY=VALUE` for anything.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from melete.config import apply_override, parse_value
from melete.one_stage import Command, command_settings, recipe_of
from melete.recipe_checks import ALGORITHM_KEYS
from melete.recipe_settings import Setting, default_text
from melete.schema import Recipe
from melete.schema.base import TaskSettings
from melete.suggest import nearest

_WIDEST, _COLUMN, _LONG_CHOICES = 110, 34, 40


@dataclass(frozen=True, slots=True)
class RunOption:
    """An option of the run itself; one without a `metavar` takes no value."""

    name: str
    metavar: str
    meaning: str
    only_for: tuple[str, ...] = ()


RUN_OPTIONS = (
    RunOption("out", "FILE", "Copy what was sampled to this file.", only_for=("generate",)),
    RunOption("json", "", "Print JSON, for scripts; all else goes to the standard error.", only_for=("eval",)),
    RunOption("set", "KEY=VALUE", "Set anything, as a recipe would: --set evaluation.at=[0.0,1.0]. May be repeated."),
    RunOption("seed", "N", "Every random choice follows from it. [default: 0]"),
    RunOption("name", "NAME", "Name of the run's directory; by default the command's."),
    RunOption("runs-dir", "DIR", "Where runs are kept. [default: runs]"),
    RunOption("dry-run", "", "Check everything, show what would be done and stop."),
    RunOption("max-minutes", "X", "Refuse before work if it is estimated to take longer."),
    RunOption("track", "TRACKERS", "Send metrics to tensorboard, wandb or trackio, several with commas between."),
    RunOption("save-recipe", "FILE", "Write this as a recipe for `melete run`, to go on from there, and stop."),
    RunOption("debug", "", "Show the traceback of an error."),
    RunOption("help", "", "Show this and stop."),
    RunOption("help-all", "", "Show the settings of tables too, and stop."),
)


@dataclass
class Given:
    """What a command line says: settings of the stage, options of the run, and what is wrong with it."""

    command: Command
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    run: dict[str, str] = field(default_factory=dict[str, str])
    problems: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    overrides: list[str] = field(default_factory=list[str])
    told: dict[str, str] = field(default_factory=dict[str, str])
    positional: list[str] = field(default_factory=list[str])

    def recipe(self) -> Recipe:
        """The checked recipe. Raises `RecipeError` with every problem, in the words of the command line."""
        return recipe_of(
            self.command,
            self.settings,
            seed=self.seed,
            told=lambda key: told(self, key),
            called=option_name,
            problems=self.problems,
        )

    @property
    def seed(self) -> Any:
        return parse_value(self.run.get("seed", "0"))

    @property
    def run_dir(self) -> Path:
        return Path(self.run.get("runs-dir", "runs")) / self.run.get("name", self.command.name)


def told(given: Given, key: str) -> str:
    """How a setting is called on the command line, with what was given."""
    if key == given.command.positional:
        return key.rstrip("s").upper()
    if key[:1] in ("", "-", "'", '"'):  # an option or a word as it was given
        return key or "the settings"
    below = f"{key}.".replace("[", ".")
    close = max((name for name in given.told if below.startswith(f"{name}.")), key=len, default=None)
    return given.told[close] if close else option_name(key)


def option_name(key: str) -> str:
    """The option of a setting.

    >>> option_name("evaluation.num_problems")
    '--evaluation.num-problems'
    """
    return f"--{key.replace('_', '-')}"


def read(command: Command, arguments: Sequence[str]) -> Given:
    """What the arguments say. Mistakes are collected, not raised, so that all of them can be told at once."""
    given = Given(command)
    by_key = {setting.key: setting for setting in command_settings(command)}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            given.positional += rest
            break
        if not word.startswith("-") or word == "-":
            given.positional.append(word)
            continue
        _option(given, by_key, word, rest)
    _positional(given)
    for override in given.overrides:
        _override(given, override)
    return given


def _option(given: Given, by_key: Mapping[str, Setting], word: str, rest: list[str]) -> None:
    """One option, with its value where it takes one."""
    option, equals, value = word.partition("=")
    name = option.lstrip("-")
    own = next((one for one in RUN_OPTIONS if one.name == name and _is_for(one, given.command)), None)
    if own:
        _run_option(given, own, equals, value, rest)
        return
    setting, below, turned_off = _meant(given.command, by_key, name.replace("-", "_"))
    if setting is None:
        given.problems.append((option, _unknown(given.command, by_key, name.replace("-", "_"))))
        _next([] if equals else rest)  # its value
        return
    if not equals and not below and _takes_no_value(setting):
        value, equals = ("false" if turned_off else "true"), "="
    elif not equals:
        value, equals = _next(rest)
    if not equals:
        given.problems.append((option, f"needs a value: {option} {metavar(setting)}"))
        return
    given.told.setdefault(f"{setting.key}.{below}".rstrip("."), f"{option} {value}")
    _put(given, setting, below, value)


def _run_option(given: Given, own: RunOption, equals: str, value: str, rest: list[str]) -> None:
    option = f"--{own.name}"
    if own.metavar and not equals:
        value, equals = _next(rest)
        if not equals:
            given.problems.append((option, f"needs a value: {option} {own.metavar}"))
            return
    elif equals and not own.metavar:
        given.problems.append((option, "takes no value"))
    if own.name == "set":
        given.overrides.append(value)
    else:
        given.run[own.name] = value


def _meant(command: Command, by_key: Mapping[str, Setting], key: str) -> tuple[Setting | None, str, bool]:
    """The setting of an option, the key below it where it is a table with free keys, and whether "no" turns it off."""
    key = dict(command.other_names).get(key, key)
    if key in by_key:
        return by_key[key], "", False
    positive = by_key.get(key.removeprefix("no_"))
    if positive and positive.form == "flag":
        return positive, "", True
    for number, letter in enumerate(key):
        if letter == "." and (found := by_key.get(key[:number])) and found.is_open:
            return found, key[number + 1 :], False
    return None, "", False


def _next(rest: list[str]) -> tuple[str, str]:
    """The following word as a value, unless it is an option; a negative number is none."""
    if rest and not rest[0].startswith("--"):
        return rest.pop(0), "="
    return "", ""


def _takes_no_value(setting: Setting) -> bool:
    return setting.form == "flag" or setting.may_be_empty


def _unknown(command: Command, by_key: Mapping[str, Setting], key: str) -> str:
    names = [*by_key, *dict(command.other_names), *(one.name for one in RUN_OPTIONS if _is_for(one, command))]
    last = {one.rpartition(".")[2]: one for one in reversed(names)}  # a key of a table, given without the table
    if command.kind == "rl":
        last |= {inner: f"algorithm_settings.{inner}" for inner in ALGORITHM_KEYS}
    close = last.get(key) or nearest(key, names) or last.get(nearest(key, last) or "")
    return f"unknown option; did you mean {option_name(close)}?" if close else "unknown option; see --help"


def _put(given: Given, setting: Setting, below: str, text: str) -> None:
    """Puts a value where a recipe would have it."""
    head, _, rest = f"{setting.key}.{below}".rstrip(".").partition(".")
    if head == "task" and given.command.kind == "evaluate":
        _put_exam_task(given, rest, text)
        return
    if setting.table is TaskSettings and not below and setting.form == "table":
        below = "name"
    table: Any = given.settings
    *above, last = setting.key.split(".")
    for part in above:
        table = table.setdefault(part, {})
    if below and setting.table is TaskSettings:
        table.setdefault(last, {})[below] = text if below == "name" else parse_value(text)
    elif setting.form == "mapping":
        key, equals, value = (below, "=", text) if below else text.partition("=")
        if not equals:
            given.problems.append((setting.key, f"has no value: write {option_name(setting.key)} KEY=VALUE"))
            return
        _put_entry(table.setdefault(last, {}), setting, key.strip(), parse_value(value))
    elif setting.form == "list":
        table[last] = [*table.get(last, []), *_entries(setting, text)]
    elif setting.form == "table":
        table.setdefault(last, {})
    else:
        table[last] = _value(setting, text)


def _put_exam_task(given: Given, below: str, text: str) -> None:
    """Names of tasks are collected; what is said below `--task.` holds for each of them."""
    tasks: list[dict[str, Any]] = given.settings.setdefault("task", [])
    if below in ("", "name"):
        more = next(({**one} for one in tasks), {})
        more.pop("name", None)
        if tasks and "name" not in tasks[0]:
            tasks[0]["name"] = text
        else:
            tasks.append({**more, "name": text})
        return
    if not tasks:
        tasks.append({})
    for one in tasks:
        one[below] = parse_value(text)


def _put_entry(table: dict[str, Any], setting: Setting, key: str, value: Any) -> None:
    """An entry of a mapping; where its values are tables, the key ends in one of their settings."""
    if setting.table is None:
        table[key] = value
        return
    known = setting.table.model_fields
    for number, letter in enumerate(key):  # the name itself may hold dots, as an import path does
        if letter == "." and key[number + 1 :].partition(".")[0] in known:
            inner = table.setdefault(key[:number], {})
            *above, last = key[number + 1 :].split(".")
            for part in above:
                inner = inner.setdefault(part, {})
            inner[last] = value
            return
    table[key] = value


def _entries(setting: Setting, text: str) -> list[Any]:
    """The entries that one option adds: a TOML list, or numbers and choices between commas."""
    value = parse_value(text) if text.strip().startswith("[") else None
    if isinstance(value, list) and (setting.inner != "text" or all(isinstance(one, str) for one in value)):
        return value
    if setting.inner in ("whole", "number", "choice"):
        parts = [part.strip() for part in text.split(",")]
        return parts if setting.inner == "choice" else [parse_value(part) for part in parts]
    return [text]


def _value(setting: Setting, text: str) -> Any:
    if setting.form in ("text", "choice"):
        return text
    if setting.optional and text.strip().lower() == "none":
        return None
    return parse_value(text)


def _positional(given: Given) -> None:
    words, key = given.positional, given.command.positional
    if not words:
        return
    if key == "models":
        given.settings["models"] = words
    elif key and len(words) == 1:
        given.settings[key] = words[0]
    elif key:
        given.problems.append((repr(words[1]), "is one too many: name one model"))
    else:
        given.problems.append((repr(words[0]), "is no option; every setting is given as --key value"))


def _override(given: Given, override: str) -> None:
    """`--set KEY=VALUE`, with or without the stage's name before the key."""
    key, equals, text = override.partition("=")
    key = key.strip().removeprefix(f"{given.command.name}.")
    if key == "seed" and equals:
        given.run["seed"] = text
        return
    tables = {"stage": [{"name": given.command.name, **given.settings}]}
    value = parse_value(text)
    reason = "has no value: write --set KEY=VALUE" if not equals else None
    reason = reason or apply_override(tables, f"{given.command.name}.{key}", value)
    given.told[key] = f"--set {override}"
    if reason:
        given.problems.append((key, reason))
        return
    given.settings = {name: value for name, value in tables["stage"][0].items() if name != "name" or key == "name"}


def _is_for(option: RunOption, command: Command) -> bool:
    return not option.only_for or command.name in option.only_for


def metavar(setting: Setting) -> str:
    """What stands for the value in a help text."""
    if setting.form == "choice":
        joined = "|".join(setting.choices)
        return joined if len(joined) <= _LONG_CHOICES else "CHOICE"
    if setting.table is TaskSettings:
        return "NAME"
    words = {"whole": "N", "number": "X", "text": "TEXT", "value": "VALUE", "list": "VALUE,...", "mapping": "KEY=VALUE"}
    return words.get(setting.form, "")


def help_text(command: Command, *, everything: bool = False, width: int = 0) -> str:
    """What `--help` shows: what people need first, then the other settings of the stage, then the run."""
    width = width or min(shutil.get_terminal_size((_WIDEST, 24)).columns, _WIDEST)
    settings = command_settings(command)
    own = [one for one in settings if not one.above and one.key != command.positional]
    common = sorted((one for one in own if one.key in command.common), key=lambda one: command.common.index(one.key))
    others = [one for one in own if one.key not in command.common and (one.form != "table" or one.may_be_empty)]
    blocks = [f"Usage: melete {command.name} {command.usage}", command.about, f"Example: {command.example}"]
    blocks.append(_section("Common", map(_line_of(command), common), width))
    blocks.append(_section("Further settings", map(_line_of(command), others), width))
    tables = [one for one in settings if one.form == "table" and one.table]
    if everything:
        for table in tables:
            inner = [one for one in settings if one.above == table.key and one.form != "table"]
            title = f"Table {option_name(table.key)}.*: {table.meaning}"
            blocks.append(_section(title, map(_line_of(command), inner), width))
    else:
        names = ", ".join(f"{option_name(one.key)}.*" for one in tables)
        more = f"Tables of settings, which --help-all shows: {names}" if tables else ""
        blocks.append("\n".join(textwrap.wrap(more, width, break_on_hyphens=False)))
    run = ((f"--{one.name} {one.metavar}".strip(), one.meaning) for one in RUN_OPTIONS if _is_for(one, command))
    blocks.append(_section("The run", run, width))
    return "\n\n".join(block for block in blocks if block)


def _line_of(command: Command) -> Any:
    other = {key: name for name, key in command.other_names}

    def line(setting: Setting) -> tuple[str, str]:
        name = option_name(setting.key)
        if setting.form == "flag":
            name = f"--no-{name[2:]}" if setting.default else name
        else:
            name = f"{name} {metavar(setting)}".strip()
        also = other.get(setting.key)
        name = f"{'-' if also and len(also) == 1 else '--'}{also}, {name}" if also else name
        return name, setting.meaning + _notes(setting)

    return line


def _notes(setting: Setting) -> str:
    found = []
    if setting.form == "choice" and metavar(setting) == "CHOICE":
        found.append(f"one of {', '.join(setting.choices)}")
    if setting.form == "mapping" or (setting.form == "list" and setting.inner == "text"):
        found.append("may be repeated")
    default = default_text(setting)
    if setting.required:
        found.append("required")
    elif default not in ("", '""', "[]", "{}"):
        found.append(f"default: {default.strip(chr(34))}")
    return f" [{'; '.join(found)}]" if found else ""


def _section(title: str, lines: Iterator[tuple[str, str]], width: int) -> str:
    told = []
    for name, meaning in lines:
        wrapped = textwrap.wrap(meaning, max(width - _COLUMN - 2, 20), break_on_hyphens=False) or [""]
        if len(name) <= _COLUMN - 2:
            told.append(f"  {name:<{_COLUMN - 2}}{wrapped.pop(0)}")
        else:
            told.append(f"  {name}")
        told += [" " * _COLUMN + line for line in wrapped]
    return "\n".join([f"{title}", *told]) if told else ""
