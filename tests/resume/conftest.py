"""A small run that everything is done to: cut, damaged, moved, starved of disk; and the same run left in peace."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from rich.console import Console

from melete.config import parse_recipe
from melete.live import View
from melete.models.load import save_model
from melete.models.tiny import tiny_model, train_tokenizer
from melete.pipeline import run_recipe

sys.path.insert(0, str(Path(__file__).parent))  # children import from here too
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RunIt = Callable[..., str]


def _loaded(name: str) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        assert spec and spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def differences() -> Callable[[Path, Path], list[str]]:
    """How one run directory differs from another, but for what tells the time."""
    return _loaded("same_run").differences


@pytest.fixture(scope="session")
def warm_class() -> Any:
    """The server that forks commands from a process that has everything loaded."""
    return _loaded("kill_resume").Warm


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of a few thousand parameters."""
    tokenizer = train_tokenizer(["What is 3+5?", "<think>3+5=8</think><answer>8</answer>"] * 20, 380)
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("model") / "base"
    save_model(tiny_model(tokenizer, hidden_size=16, num_layers=2), tokenizer, directory)
    return directory


@pytest.fixture(scope="session")
def tables(base: Path) -> dict[str, Any]:
    """Demonstrations, what learns from them, and PPO on that with a critic and an adaptive penalty."""
    shared = {"lr": 5e-3, "warmup_steps": 1, "checkpoint_every_steps": 2, "evaluation": {"at": []}}
    sft = {"name": "dev", "kind": "sft", "model": str(base), "data": "notes", "rows_per_step": 4, "num_epochs": 1}
    rl = {
        "name": "rl",
        "kind": "rl",
        "model": "dev",
        "algorithm": "ppo",
        "num_steps": 5,
        "prompts_per_step": 3,
        "group_size": 2,
        "max_new_tokens": 6,
        "algorithm_settings": {"kl_coef": 0.05, "kl_target": 0.01, "kl_horizon": 50.0},
        "critic": {"lr": 1e-3, "warmup_steps": 1},
        "task": {"name": "arithmetic_chain"},
        "rewards": {"tiny_rewards:even_tokens": 1.0},
        "evaluation": {"at": [0.0, 0.5], "num_problems": 2, "num_samples": 1},
        "support": {"num_problems": 0},
    }
    notes = {"name": "notes", "kind": "write", "rows": {"chains": 16}}
    return {"name": "little", "seed": 3, "stage": [notes, shared | sft, shared | rl]}


@pytest.fixture(scope="session")
def run() -> RunIt:
    """Runs tables in this process; returns what the terminal showed. `hear` gets every line as it is shown."""

    def run_it(tables: dict[str, Any], run_dir: Path, hear: Callable[[str], None] = lambda _line: None) -> str:
        shown = _Heard(hear)
        recipe = parse_recipe(tables)
        with View([stage.name for stage in recipe.stages], True, console=Console(file=shown, width=300)) as view:
            run_recipe(recipe, run_dir, view=view, command=f"melete run {recipe.name}")
        return shown.getvalue()

    return run_it


class _Heard(io.StringIO):
    def __init__(self, hear: Callable[[str], None]) -> None:
        super().__init__()
        self.hear = hear

    def write(self, text: str) -> int:
        written = super().write(text)
        self.hear(text)
        return written


@pytest.fixture(scope="session")
def whole(tables: dict[str, Any], run: RunIt, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that was left in peace."""
    run_dir = tmp_path_factory.mktemp("whole") / "little"
    run(tables, run_dir)
    return run_dir
