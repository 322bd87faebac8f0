"""The page of every setting, made from the schema."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from melete.one_stage import COMMANDS, Command
from melete.recipe_settings import Setting, all_settings, default_text, described, settings_of
from melete.schema import STAGE_KINDS, Recipe, Settings, Stage, TrainingStage

HEAD = """# Every setting

A recipe is a TOML file: a few keys of its own, and a `[[stage]]` table for each stage, with the settings of its kind.
The same settings are options of the commands (`lr_schedule` is `--lr-schedule`, `at` in the table `evaluation` is
`--evaluation.at`) and keywords of the Python functions (`melete.sft(lr_schedule="cosine", evaluation={"at": [0, 1]})`).
This page is made from the schema, by `python tests/test_settings_page.py`.
"""
ABOUT_KEYS = """A setting without a default is required where "required" stands, and off otherwise. Tables have a
section of their own below.

Values of a command line are read by the setting's type: numbers of a list stand between commas
(`--evaluation.at 0,0.5,1`), an option for texts or for a table of free keys is repeated (`--rewards accuracy=1.0
--rewards format=0.1`), a table that needs no more is turned on by its name (`--adapter`), and `--set KEY=VALUE` takes
anything that a recipe does, as TOML."""


def page() -> str:
    """The whole page."""
    blocks = [HEAD.strip(), ABOUT_KEYS, "## The recipe", _table(_recipe_settings())]
    blocks += ["## Stages", "The stages that have a command, then the others.", _overview()]
    blocks += ["### What every stage that trains has", _table(_training())]
    shared = {setting.key for setting in _training()}
    by_kind = {command.kind: command for command in COMMANDS.values()}
    for kind in sorted(STAGE_KINDS, key=lambda kind: (kind not in by_kind, list(STAGE_KINDS).index(kind))):
        blocks += _stage(kind, by_kind.get(kind), shared)
    blocks += ["## Tables", "Tables that stages hold, by the name of what they are."]
    for table in _tables():
        blocks += [f"### {table.__name__}", _about(table), _used(table), _table(settings_of(table))]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _recipe_settings() -> list[Setting]:
    return [setting for setting in settings_of(Recipe) if setting.key != "stages"]


def _training() -> list[Setting]:
    return [setting for setting in settings_of(TrainingStage) if setting.key != "name"]


def _overview() -> str:
    rows = ["| kind | command | Python | what it does |", "|---|---|---|---|"]
    by_kind = {command.kind: command for command in COMMANDS.values()}
    for kind in sorted(STAGE_KINDS, key=lambda kind: kind not in by_kind):
        command = by_kind.get(kind)
        words = [f"`melete {command.name}`", f"`melete.{command.function}`"] if command else ["", ""]
        rows.append(f"| [`{kind}`](#{kind}) | {words[0]} | {words[1]} | {_first_sentence(STAGE_KINDS[kind])} |")
    return "\n".join(rows)


def _stage(kind: str, command: Command | None, shared: set[str]) -> Iterator[str]:
    stage = STAGE_KINDS[kind]
    yield f"### {kind}"
    yield _about(stage)
    if command:
        usage = f"    {command.example}"
        yield f"As a command, with an example:\n\n{usage}" + _other_words(command)
    if issubclass(stage, TrainingStage):
        yield "It has what [every stage that trains](#what-every-stage-that-trains-has) has, and:"
    yield _table(setting for setting in settings_of(stage) if not _is_shared(stage, setting, shared))


def _is_shared(stage: type[Stage], setting: Setting, shared: set[str]) -> bool:
    """Whether the setting is as every training stage has it."""
    if not issubclass(stage, TrainingStage) or setting.key not in shared:
        return False
    return stage.model_fields[setting.key].default == TrainingStage.model_fields[setting.key].default


def _other_words(command: Command) -> str:
    words = [f"`{_option(other)}` is `--{name.replace('_', '-')}`" for other, name in command.other_names]
    if command.kind == "evaluate":
        words.append("the settings of [ExamTask](#examtask) are options of their own and hold for every task")
    return f"\n\nThere {', '.join(words)}." if words else ""


def _option(name: str) -> str:
    return f"-{name}" if len(name) == 1 else f"--{name}"


def _tables() -> list[type[Settings]]:
    found = [setting.table for stage in STAGE_KINDS.values() for setting in _everything(stage) if setting.table]
    return list(dict.fromkeys(found))


def _everything(model: type[Settings]) -> Iterator[Setting]:
    """Settings of a stage, of its tables and of tables by name."""
    for setting in all_settings(model):
        yield setting
        if setting.form == "mapping" and setting.table:
            yield from _everything(setting.table)


def _used(table: type[Settings]) -> str:
    """Which settings are such a table."""
    places: dict[str, list[str]] = {}
    for kind, stage in STAGE_KINDS.items():
        for setting in _everything(stage):
            if setting.table is table:
                places.setdefault(setting.key, []).append(f"`{kind}`")
    told = (f"`{key}` of {', '.join(dict.fromkeys(kinds))}" for key, kinds in places.items())
    return f"Used as {'; '.join(told)}."


def _about(model: type[Settings]) -> str:
    return " ".join((model.__doc__ or "").split())


def _first_sentence(model: type[Settings]) -> str:
    return _about(model).partition(". ")[0].rstrip(".").replace("|", "\\|")


def _table(settings: Iterable[Setting]) -> str:
    rows = ["| setting | value | default | meaning |", "|---|---|---|---|"]
    for setting in settings:
        default = default_text(setting)
        shown = "required" if setting.required else f"`{default}`" if default else ""
        rows.append(
            f"| `{setting.key}` | {_value(setting)} | {shown} | {setting.meaning.replace('|', chr(92) + '|')} |"
        )
    return "\n".join(rows) if len(rows) > 2 else "No settings of its own."


def _value(setting: Setting) -> str:
    if setting.table:
        link = f"[{setting.table.__name__}](#{setting.table.__name__.lower()})"
        return f"tables by name: {link}" if setting.form == "mapping" else link
    words = described(setting)
    return ", ".join(f"`{choice}`" for choice in setting.choices) if setting.form == "choice" else words
