"""The stages that are commands and functions of their own: each is a recipe of one stage.

Loading this module loads neither the schema nor torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from melete.errors import RecipeError

if TYPE_CHECKING:
    from melete.recipe_settings import Setting
    from melete.schema import Recipe

EXAM_TABLE = "tasks"  # of the stage evaluate: what is said once holds for every task


@dataclass(frozen=True, slots=True)
class Command:
    """A command: the kind of its stage, one line about it, and what people need first.

    `common`: settings that come first in its help; `positional`: the setting that is given without an option;
    `other_names`: options that are another word for a setting.
    """

    name: str
    kind: str
    about: str
    usage: str
    common: tuple[str, ...]
    example: str
    positional: str = ""
    other_names: tuple[tuple[str, str], ...] = ()

    @property
    def function(self) -> str:
        """What it is called in Python."""
        return "evaluate" if self.name == "eval" else self.name


_ALL = (
    Command(
        "sft",
        "sft",
        "Supervised fine-tuning on demonstrations.",
        "--data FILE [options]",
        ("model", "data", "lr", "num_epochs", "rows_per_step", "adapter", "task"),
        "melete sft --model smollm2-135m --data my.jsonl --lr 1e-4 --num-epochs 1",
    ),
    Command(
        "rm",
        "reward_model",
        "Train a reward model on preferences.",
        "--data FILE [options]",
        ("model", "data", "loss", "lr", "num_epochs", "rows_per_step"),
        "melete rm --model smollm2-135m --data pairs.jsonl",
    ),
    Command(
        "dpo",
        "preference",
        "DPO and its family: learn from pairs without a reward model.",
        "--data FILE [options]",
        ("model", "data", "algorithm", "algorithm_settings", "lr", "num_epochs", "pairs_per_step", "adapter", "task"),
        "melete dpo --model smollm2-135m --data pairs.jsonl --algorithm-settings beta=0.1",
        other_names=(("loss", "algorithm"),),
    ),
    Command(
        "rl",
        "rl",
        "Reinforcement learning: GRPO, PPO and their relatives.",
        "--task NAME [options]",
        (
            *("model", "task", "rewards", "algorithm", "algorithm_settings", "lr", "num_steps"),
            *("prompts_per_step", "group_size", "max_new_tokens", "adapter"),
        ),
        "melete rl --model tiny --task arithmetic_chain --num-steps 50 --rewards accuracy=1.0",
    ),
    Command(
        "reject",
        "reject",
        "Rejection sampling: keep what is right and readable as demonstrations.",
        "--task NAME [options]",
        ("model", "task", "num_prompts", "samples_per_prompt", "keep_per_prompt", "max_new_tokens"),
        "melete reject --model tiny --task arithmetic_chain --num-prompts 200",
    ),
    Command(
        "distill",
        "distill",
        "Distillation: a student learns from a teacher with the same tokenizer.",
        "--teacher MODEL --task NAME [options]",
        ("model", "teacher", "task", "method", "lr", "num_steps", "prompts_per_step", "max_new_tokens"),
        "melete distill --model student-qwen --teacher tiny --task arithmetic_chain",
    ),
    Command(
        "eval",
        "evaluate",
        "Examine models on held-out problems: pass@k, majority votes, intervals.",
        "MODEL... (--task NAME | --data FILE) [options]",
        ("task", "data", "num_problems", "num_samples", "max_new_tokens", "temperature", "top_p"),
        "melete eval tiny runs/rl/models/rl --task arithmetic_chain --num-samples 4",
        positional="models",
    ),
    Command(
        "generate",
        "generate",
        "Sample completions of prompts into a file.",
        "MODEL (--prompt TEXT | --data FILE | --task NAME) [options]",
        ("prompts", "data", "task", "samples_per_prompt", "max_new_tokens", "temperature", "top_p", "num_prompts"),
        "melete generate tiny --task arithmetic_chain --num-prompts 20 -n 4 --out samples.jsonl",
        positional="model",
        other_names=(("prompt", "prompts"), ("n", "samples_per_prompt")),
    ),
)
COMMANDS: Mapping[str, Command] = {command.name: command for command in _ALL}


def command_settings(command: Command) -> list[Setting]:
    """What may be set, tables first and then what is in them; an exam's settings stand beside the stage's own."""
    from melete.recipe_settings import Setting, all_settings
    from melete.schema import STAGE_KINDS, ExamTask

    found = list(all_settings(STAGE_KINDS[command.kind]))
    if command.kind != "evaluate":
        return found
    meaning = "Problems of your own: a table with a question and an answer in each row."
    data = Setting("data", "text", meaning, "", required=False, optional=True)
    exam = [replace(one, required=False) for one in all_settings(ExamTask)]
    return [*(one for one in found if one.key != EXAM_TABLE), data, *exam]


def recipe_of(
    command: Command,
    settings: Mapping[str, Any],
    *,
    seed: int = 0,
    told: Callable[[str], str] = str,
    called: Callable[[str], str] = str,
    problems: Sequence[tuple[str, str]] = (),
) -> Recipe:
    """The checked recipe of one stage, called as the command is.

    A task may be given by its name alone. Raises `RecipeError` that lists all that is wrong; `told` says how a setting
    was given, `called` how one is called that was not. `problems` are those that were found before.
    """
    from melete.config import checked

    tables = recipe_tables(command, settings, seed)
    recipe, found = checked(tables)
    if command.kind == "evaluate" and not tables["stage"][0][EXAM_TABLE]:
        what = f"is missing: name a task, or a file of problems with {called('data')}"
        found = [(EXAM_TABLE, what), *(one for one in found if EXAM_TABLE not in one[0])]
    everything = [*problems, *((_setting_key(command, key), _meant(command, why, called)) for key, why in found)]
    if recipe is None or everything:
        first = {key: why for key, why in reversed(everything)}
        lines = [f"  {told(key)}: {first[key]}" for key in dict.fromkeys(key for key, _ in everything)]
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        raise RecipeError(
            f"this {command.name} cannot be done: {count}\n" + "\n".join(lines),
            remedy="correct what is named above; nothing was started",
        )
    return recipe


def recipe_tables(command: Command, settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The recipe as TOML would hold it, with nothing in it but what was given."""
    given = _with_task_tables(settings)
    if command.kind == "evaluate":
        given = _with_exams(given)
    stage = {"name": command.name, "kind": command.kind, **given}
    return {"name": command.name, **({"seed": seed} if seed else {}), "stage": [stage]}


def _with_task_tables(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`task = "verse"` stands for `task = { name = "verse" }`."""
    given = dict(settings)
    if isinstance(given.get("task"), str):
        given["task"] = {"name": given["task"]}
    late = given.get("late")
    if isinstance(late, Mapping) and isinstance(late.get("task"), str):
        given["late"] = {**late, "task": {"name": late["task"]}}
    return given


def _with_exams(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Tasks, or a file of problems, with what holds for each, as the stage's tables of tasks."""
    from melete.schema import ExamTask

    given = dict(settings)
    exam = {name: given.pop(name) for name in ExamTask.model_fields if name != "task" and name in given}
    if exam.get("temperature") == 0:
        exam.setdefault("num_samples", 1)  # all others would be the same
    named = given.pop("task", [])
    found = [dict(one) if isinstance(one, Mapping) else {"name": one} for one in _listed(named)]
    if data := given.pop("data", ""):
        own = next((one for one in found if "name" not in one), {})
        found = [one for one in found if "name" in one]
        # every row is asked: none is kept for training
        found.append({"name": "rows", "path": data, "held_out": data, "near_duplicates": 0.0, **own})
    if isinstance(given.get("models"), str):
        given["models"] = [given["models"]]
    tables = {_label(task, number): {"task": task, **exam} for number, task in enumerate(found)}
    return {**given, EXAM_TABLE: {**tables, **given.get(EXAM_TABLE, {})}}


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _label(task: Mapping[str, Any], number: int) -> str:
    """What the table calls a task: letters, digits, - and _."""
    name = str(task.get("name", ""))
    name = Path(str(task["path"])).stem if name == "rows" and "path" in task else name
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", name)
    return plain if plain[:1].isalpha() else f"task{number}_{plain}".rstrip("_")


def _setting_key(command: Command, key: str) -> str:
    """The key as it was given: without the stage, and for an exam without the name of its table."""
    key = key.removeprefix(f"{command.name}.")
    if command.kind == "evaluate" and key.startswith(f"{EXAM_TABLE}."):
        return ".".join(key.split(".")[2:]) or "task"
    if command.kind == "evaluate" and key == EXAM_TABLE:
        return "task"
    return key


def _meant(command: Command, reason: str, called: Callable[[str], str]) -> str:
    """A reason with the suggested key as it is called here."""
    return re.sub(
        rf"did you mean {re.escape(command.name)}\.([^?]+)\?",
        lambda found: f"did you mean {called(_setting_key(command, found.group(1)))}?",
        reason,
    )
