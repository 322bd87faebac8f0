"""Which part may import which: the direction of dependence of docs/architecture.md, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "melete"

LEAVES = {"types", "errors", "suggest", "imports"}
CORE = {"batch", "parts", "credit", "algorithms", "functional"}
CONTENT = {"text", "rewards", "sandbox", "tasks"}
PROTOCOLS = {"sampling.protocol", "sampling.keys", "learning.protocol"}
BELOW_STAGES = (
    LEAVES
    | CORE
    | CONTENT
    | {"forward", "corpus", "datasets", "models", "sampling", "learning", "loops", "evaluation", "runs"}
)

# room -> what it may import: a room, or one module of it. A new room needs a row here.
ALLOWED: dict[str, set[str]] = {
    "types": set(),
    "errors": set(),
    "suggest": set(),
    "imports": {"errors"},
    "sandbox": LEAVES,
    # what the machine has, and how its cores and memory are used
    "machine": {"errors"},
    "functional": set(),
    "parts": set(),
    "batch": LEAVES | {"functional", "parts"},
    "algorithms": LEAVES | {"functional"},
    "credit": LEAVES | {"functional", "batch", "algorithms"},
    "text": LEAVES,
    "rewards": LEAVES | {"text", "sandbox"},
    "tasks": LEAVES | {"text", "rewards", "datasets"},
    # rows on disk and as tokens: what a data set holds is decided here, not in the loops
    "datasets": LEAVES | {"text", "batch", "runs.atomic"},
    # lessons for a judge are asked as the judge will be
    "corpus": LEAVES | {"text", "tasks", "rewards.judge_prompts"},
    # a model that is loaded multiplies as the machine does it best
    "models": LEAVES | CORE | CONTENT | {"runs.atomic", "forward.products"},
    # known architectures, computed with less: for whoever writes tokens and whoever scores them
    "forward": LEAVES | {"machine"},
    "sampling": LEAVES | CORE | CONTENT | {"forward", "machine"},
    # an adapter switched off is the reference
    "learning": LEAVES | CORE | CONTENT | {"models.adapters", "forward", "machine"},
    "runs": LEAVES,
    "evaluation": LEAVES | CONTENT | {"runs", "sampling.protocol", "sampling.keys"},
    # loops see samplers and learners through their protocols only; pretraining balances its own routers
    "loops": LEAVES | CORE | CONTENT | PROTOCOLS | {"corpus", "datasets", "evaluation", "models.moe"},
    "report": LEAVES | {"runs", "evaluation", "health", "claims"},
    "live": LEAVES,
    # rules over rows of plain numbers
    "health": LEAVES | {"schema"},
    # statistics over what runs left, without a library
    "claims": set(),
    # what a recipe may say: the tables of names are looked up when a recipe is read
    "schema": LEAVES,
    "recipe_checks": LEAVES | {"schema"},
    # which names are models is told without torch
    "recipe_graph": LEAVES | {"schema", "models.places"},
    "recipe_names": LEAVES | {"schema", "algorithms", "rewards", "tasks"},
    "recipe_lines": set(),
    "config": LEAVES | {"schema", "recipe_checks", "recipe_graph", "recipe_names", "recipe_lines"},
    "stages": BELOW_STAGES
    | {"schema", "config", "recipe_checks", "recipe_graph", "states", "live", "machine", "health", "claims"},
    # what is done is told without torch, so it sees where models lie and not how they are loaded
    "states": LEAVES | {"schema", "recipe_graph", "runs", "models.places"},
    # what a run will take: it works with models for a moment, as a stage would
    "planning": BELOW_STAGES | {"schema", "config", "recipe_graph", "machine"},
    "pipeline": BELOW_STAGES | {"schema", "states", "stages", "live", "report"},
    "web": LEAVES,
    # a model that is asked, by people and by programs
    "serving": LEAVES | {"text", "sampling", "models", "forward", "machine", "web"},
    # what people prefer, on a page; the answers that they judge may be written first
    "labelling": LEAVES | {"web", "datasets", "runs.atomic", "tasks", "models", "sampling", "loops.rl_rollouts"},
    "cli_label": LEAVES | {"cli_errors", "machine", "labelling", "web"},
    # reads what a run writes, and changes nothing
    "watching": LEAVES | {"web", "runs.directory", "health"},
    "cli_watch": LEAVES | {"cli_errors", "watching", "web"},
    "cli_serve": LEAVES | {"cli_errors", "machine", "serving", "web"},
    "cli": LEAVES
    | {"schema", "config", "pipeline", "states", "live", "report", "machine", "algorithms", "tasks", "rewards"}
    | {"planning", "cli_errors", "cli_perform", "cli_stages", "cli_runs", "cli_models", "cli_data"}
    | {"cli_serve", "cli_label", "cli_watch", "cli_doctor"},
    # what is well and what is broken, told by those who know
    "doctor": LEAVES
    | {"schema", "config", "states", "runs", "health", "planning", "sandbox", "machine", "models.places"},
    "cli_doctor": LEAVES | {"cli_errors", "doctor", "live", "runs.atomic"},
    "cli_models": LEAVES | {"cli_errors", "models"},
    "cli_data": LEAVES | {"cli_errors", "datasets", "models", "tasks"},
    "cli_errors": LEAVES,
    # one stage as a recipe: a command, and a function
    "recipe_settings": LEAVES | {"schema"},
    "one_stage": LEAVES | {"schema", "config", "recipe_settings"},
    "recipe_page": LEAVES | {"schema", "one_stage", "recipe_settings"},
    "cli_perform": LEAVES | {"runs.trackers", "schema", "states", "planning", "live", "pipeline"},
    "cli_options": LEAVES | {"schema", "config", "one_stage", "recipe_checks", "recipe_settings"},
    "cli_stages": LEAVES | {"runs.atomic", "machine", "one_stage", "cli_errors", "cli_perform", "cli_options"},
    "results": LEAVES | {"runs", "models"},
    "api_settings": {"results"},
    "api": LEAVES
    | {"schema", "config", "runs.atomic", "machine", "one_stage", "cli_perform", "results", "api_settings"},
    "cli_runs": LEAVES | {"cli_errors", "runs", "live", "evaluation.again", "models", "tasks", "planning.graph"},
}
NO_TORCH = (
    "types",
    "errors",
    "imports",
    "config",
    "schema",
    "suggest",
    "machine.threads",
    "states",
    "algorithms",
    "cli",
    "cli_options",
    "doctor",
    "api",
)
ONLY_THESE_LIBRARIES = {"types": set(), "errors": set(), "functional": {"torch", "jaxtyping"}}
ENGINES = {"vllm", "ray", "sglang", "peft", "datasets", "wandb"}


def modules() -> list[Path]:
    return [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


def dotted(path: Path) -> str:
    """`sampling.native` for melete/sampling/native.py, and `sampling` for its `__init__.py`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a file imports, wherever in the file: late imports are dependence too."""
    package = ["melete", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                is_module = (ROOT.parent / module.replace(".", "/") / f"{alias.name}.py").exists()
                is_package = (ROOT.parent / module.replace(".", "/") / alias.name).is_dir()
                yield node.lineno, f"{module}.{alias.name}" if is_module or is_package else module


def upward_edges(path: Path) -> list[str]:
    name = dotted(path)
    room = name.split(".")[0]
    found = []
    for line, imported in imports(path):
        top, _, inner = imported.partition(".")
        if top != "melete" or not inner or inner.split(".")[0] == room:
            continue
        allowed = ALLOWED[room]
        if inner.split(".")[0] not in allowed and not any(f"{inner}.".startswith(f"{module}.") for module in allowed):
            found.append(f"melete/{path.relative_to(ROOT)}:{line} imports melete.{inner}")
    return found


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_imports_point_downwards(path: Path):
    room = dotted(path).split(".")[0]
    assert room in ALLOWED, f"melete/{room} is new: say in ALLOWED and in docs/architecture.md what it may import"
    assert upward_edges(path) == []


def test_the_table_itself_has_no_cycle():
    waiting = {room: {name.split(".")[0] for name in names} - {room} for room, names in ALLOWED.items()}
    while waiting:
        free = [room for room, below in waiting.items() if not below & waiting.keys()]
        assert free, f"these import each other: {sorted(waiting)}"
        for room in free:
            del waiting[room]


@pytest.mark.parametrize("room", ONLY_THESE_LIBRARIES)
def test_the_pure_core_imports_only_its_library(room: str):
    paths = [path for path in modules() if dotted(path).split(".")[0] == room]
    assert paths
    tops = {imported.split(".")[0] for path in paths for _, imported in imports(path)} - {"melete", "__future__"}
    assert tops - set(sys.stdlib_module_names) <= ONLY_THESE_LIBRARIES[room]


def test_the_core_never_imports_an_engine():
    edges = [(dotted(path), name) for path in modules() for _, name in imports(path)]
    assert [edge for edge in edges if edge[1].split(".")[0] in ENGINES] == []


@pytest.mark.parametrize("module", NO_TORCH)
def test_reading_a_recipe_or_a_log_loads_no_torch(module: str):
    code = f"import sys, melete.{module}; print(*({{'torch', 'transformers', 'numpy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""
