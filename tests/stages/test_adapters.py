"""Stages that train an adapter: kept apart or merged, read by later stages, with a card beside what they leave."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from rich.console import Console
from safetensors.torch import load_file

from melete.config import parse_recipe
from melete.datasets.files import write_rows
from melete.errors import RecipeError
from melete.live import View
from melete.models.heads import load_scalar_model
from melete.models.load import load_model
from melete.models.templates import NAMES
from melete.pipeline import run_recipe
from melete.schema import Recipe, TrainingStage
from melete.schema.base import CHAT_TEMPLATES
from melete.types import Message, PreferencePair

SHORT = {"warmup_steps": 1, "adapter": {"rank": 2}}
SAMPLED = {"support": {"num_problems": 0}, "evaluation": {"at": []}, "max_new_tokens": 8, "prompts_per_step": 2}


def recipe(*overrides: str) -> Recipe:
    sft = {"name": "apart", "kind": "sft", "data": "rows", "num_epochs": 1, "rows_per_step": 4, "lr": 1e-2, **SHORT}
    task = {"name": "arithmetic_chain"}
    rl = {"name": "whole", "kind": "rl", "model": "apart", "num_steps": 2, "group_size": 2, "task": task, **SHORT}
    more = {"rewards": {"accuracy": 1.0, "format": 1.0}, "algorithm_settings": {"kl_coef": 0.1}, **SAMPLED}
    pairs = {"name": "pairs", "kind": "pairs", "model": "whole", "num_prompts": 32, "max_new_tokens": 32}
    scored = {"name": "scored", "kind": "reward_model", "model": "apart", "data": "pairs", "rows_per_step": 4, **SHORT}
    scored["held_out_share"] = 0.0
    stages = [
        {"name": "rows", "kind": "write", "rows": {"general": 12}},
        {**sft, "adapter": {"rank": 2, "merge": False}, "gradient_checkpointing": True},
        {**rl, **more},
        {**pairs, "task": {"name": "general", "kinds": "greeting,writing,self"}},
        scored,
    ]
    return parse_recipe({"name": "adapted", "stage": stages}, overrides)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = recipe()
    with View([stage.name for stage in made.stages], plain=True, console=Console(file=io.StringIO())) as view:
        return run_recipe(made, tmp_path_factory.mktemp("runs") / "adapted", view=view, command="melete run")


def test_an_adapter_kept_apart_is_small_and_knows_its_base(run_dir: Path) -> None:
    apart = run_dir / "models" / "apart"
    assert all("lora_" in name for name in load_file(apart / "adapter_model.safetensors"))
    assert json.loads((apart / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    moved, base = load_model(apart).state_dict(), load_model("tiny").state_dict()
    assert moved.keys() == base.keys()
    assert any(not torch.equal(moved[name], weight) for name, weight in base.items())


def test_a_later_stage_goes_on_from_it_and_leaves_a_whole_model(run_dir: Path) -> None:
    names = {name for name, _ in load_model(run_dir / "models" / "whole").named_parameters()}
    assert names == {name for name, _ in load_model("tiny").named_parameters()}


def test_a_reward_model_with_an_adapter_has_a_head_that_learnt(run_dir: Path) -> None:
    model = load_scalar_model(run_dir / "models" / "scored")
    assert not any("lora_" in name for name in model.state_dict())


@pytest.mark.parametrize(
    ("name", "library"), [("apart", "peft"), ("whole", "transformers"), ("scored", "transformers")]
)
def test_each_has_a_card_with_the_licence_of_the_bundled_base(run_dir: Path, name: str, library: str) -> None:
    data = ModelCard.load(run_dir / "models" / name / "README.md").data
    assert (data.library_name, data.license) == (library, "apache-2.0")


def test_a_reward_model_cannot_be_kept_apart() -> None:
    with pytest.raises(RecipeError, match="a reward model is kept whole"):
        recipe("scored.adapter.merge=false")


def test_dropout_is_refused_where_log_probs_are_compared() -> None:
    with pytest.raises(RecipeError, match=r"adapter\.dropout: must be 0"):
        recipe("whole.adapter.dropout=0.1")
    recipe("apart.adapter.dropout=0.1")


def test_a_chat_template_that_is_not_there_is_refused_before_work_begins(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"whole\.chat_template: .*did you mean chatml"):
        recipe("whole.chat_template=chatlm")
    (tmp_path / "own.jinja").write_text("")
    recipe("whole.chat_template=chatml")
    recipe(f"whole.chat_template={tmp_path / 'own.jinja'}")
    assert CHAT_TEMPLATES == NAMES


def test_all_linear_layers_are_auto() -> None:
    made = recipe("apart.adapter.target_modules=auto").stages[1]
    assert isinstance(made, TrainingStage) and made.adapter is not None and made.adapter.target_modules == []


TASK = {"name": "arithmetic_chain"}
RL = {
    "kind": "rl",
    "num_steps": 1,
    "group_size": 2,
    "task": TASK,
    "rewards": {"accuracy": 1.0, "format": 1.0},
    **SAMPLED,
}
FAMILIES = {
    "ppo": {**RL, "algorithm": "ppo", "critic": {}},
    "ppo, shared trunk": {**RL, "algorithm": "ppo", "critic": {"trunk": "shared"}},
    "dpo": {"kind": "preference", "data": "pairs.jsonl", "pairs_per_step": 2},
    "kto": {"kind": "preference", "data": "pairs.jsonl", "pairs_per_step": 2, "algorithm": "kto"},
    "distillation": {
        "kind": "distill",
        "method": "on_policy",
        "model": "student-llama",
        "teacher": "tiny",
        "task": TASK,
        "num_steps": 1,
        "evaluation": {"at": []},
        "max_new_tokens": 8,
        "prompts_per_step": 2,
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_an_adapter_in_16_bits(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(
        tmp_path / "pairs.jsonl", [PreferencePair(f"{n}", (Message("user", f"{n}"),), "a", "b") for n in range(4)]
    )
    stage = {"name": "made", "dtype": "bfloat16", "gradient_checkpointing": True, **SHORT, "lr": 1e-2}
    made = parse_recipe({"name": "families", "stage": [stage | FAMILIES[family]]}, ())
    with View(["made"], plain=True, console=Console(file=io.StringIO())) as view:
        run_dir = run_recipe(made, tmp_path / "run", view=view, command="melete run")
    base = load_model(made.stages[0].reads()[0]).state_dict()
    trained = load_model(run_dir / "models" / "made", dtype="bfloat16").state_dict()
    assert trained.keys() == base.keys()
    assert any(not torch.equal(trained[name], weight.to(trained[name])) for name, weight in base.items())
