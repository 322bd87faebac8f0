"""What comes with the package keeps its promises: the base shows what RL needs, and every recipe trains."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from melete.config import bundled_recipes, load_recipe
from melete.evaluation.evaluate import EvaluationResult
from melete.evaluation.held_out import HeldOut
from melete.live import View
from melete.models.load import load_model, load_tokenizer, resolve_model
from melete.pipeline import run_recipe
from melete.sampling.native import NativeSampler
from melete.schema import ReplicateStage, RLStage
from melete.stages.replicate import planned_runs
from melete.tasks import make_task
from melete.types import SamplingSettings

MEBIBYTE = 2**20
SHORT = {
    "r1-zero-tiny": (
        "rl.num_steps=2",
        "rl.warmup_steps=1",
        "rl.prompts_per_step=4",
        "rl.evaluation.num_problems=4",
        "rl.evaluation.num_samples=2",
    ),
    "pretrain-tiny": ("pretrain.num_tokens=12000", "pretrain.tokens_per_batch=4096", "pretrain.num_workers=1"),
}
SHORT["r1-zero-tiny-control"] = SHORT["r1-zero-tiny"]


def short_stage(name: str, *more: str) -> tuple[str, ...]:
    """A stage with an evaluation, cut down."""
    cuts = ("evaluation.num_problems=2", "evaluation.num_samples=2", "warmup_steps=1", *more)
    return tuple(f"{name}.{cut}" for cut in cuts)


PAIRS = ("preferences.num_prompts=24",)
SHORT["ppo-tiny"] = short_stage("rl", "num_steps=3", "prompts_per_step=4", "critic.warmup_steps=1")
SHORT["rlhf-tiny"] = (
    *PAIRS,
    "reader.rows_per_step=8",
    *short_stage("policy", "num_steps=3", "prompts_per_step=4", "critic.warmup_steps=1"),
)
SHORT["iterative-grpo-tiny"] = (
    "preferences.num_prompts=24",
    "new_preferences.num_prompts=24",
    "reader.rows_per_step=8",
    "new_reader.rows_per_step=8",
    *short_stage("policy", "num_steps=2", "prompts_per_step=4"),
    *short_stage("new_policy", "num_steps=2", "prompts_per_step=4"),
)
SHORT["dpo-tiny"] = (*PAIRS, *short_stage("policy", "pairs_per_step=8"))
SHORT["kto-tiny"] = SHORT["dpo-tiny"]
SHORT["online-dpo-tiny"] = short_stage("policy", "num_steps=2", "pairs_per_step=4")
SHORT["distill-tiny"] = (
    *short_stage("teacher", "num_steps=2", "prompts_per_step=2"),
    *short_stage("student", "num_steps=2", "prompts_per_step=4"),
)
SHORT["compare-tiny"] = short_stage(
    "compare", "num_steps=2", "prompts_per_step=2", 'algorithms=["grpo", "ppo"]', "settings_of={}", "seeds=[0]"
)
SHORT["pretrain-students"] = tuple(
    f"{name}.{cut}" for name in ("qwen", "llama") for cut in ("num_tokens=12000", "tokens_per_batch=4096")
)
SHORT["r1-tiny"] = (
    *(
        f"{name}.{cut}"
        for name in ("zero", "dev2", "r1", "rl_qwen", "rl_llama")
        for cut in ("num_steps=2", "warmup_steps=1", "prompts_per_step=4", "support.num_problems=0")
    ),
    *(f"{name}.num_prompts=24" for name in ("zero_samples", "reasoning", "judged", "r1_samples", "pairs", "labels")),
    *(f"{name}.require_thought=false" for name in ("zero_samples", "reasoning", "r1_samples")),
    "written.rows={ chains = 8, chains_es = 8, countdowns = 4, general = 8 }",
    "lessons.rows.judgements=48",
    "general.rows.general=24",
    # a judge that has learnt for so short a time may keep nothing
    "judged.min_score=0.0",
    "judged.judge.max_new_tokens=8",
    "curated.parts={ reasoning = 1.0, general = 1.0 }",
    *(f"{name}.rows_per_step=8" for name in ("helpful", "harmless")),
    *(
        f"exam.tasks.{task}.{cut}"
        for task in ("arithmetic", "spanish", "countdown", "general")
        for cut in ("num_problems=2", "num_samples=2")
    ),
)
# the recipes of a real model, on the bundled one
TINY_ADAPTER = ("adapter.rank=2", "adapter.alpha=4.0", "max_tokens_per_microbatch=256")
SHORT["smollm2-sums"] = (
    "written.rows.short_chains=16",
    "sft.model=tiny",
    *(f"{name}.{cut}" for name in ("sft", "rl") for cut in TINY_ADAPTER),
    *short_stage("rl", "num_steps=2", "prompts_per_step=4", "support.num_problems=0"),
)
SHORT["smollm2-verse"] = (
    *(f"{name}.model=tiny" for name in ("preferences", "reader", "dpo", "ppo")),
    *(f"{name}.task.more_topics=false" for name in ("preferences", "dpo", "ppo")),
    *PAIRS,
    "reader.rows_per_step=8",
    *short_stage("dpo", "pairs_per_step=8"),
    *short_stage("ppo", "num_steps=3", "prompts_per_step=4", "critic.warmup_steps=1"),
)
SHORT |= {f"{name}-gpu": SHORT[name] for name in ("smollm2-sums", "smollm2-verse")}
SHORT["smollm2-benchmarks"] = (
    'exam.models=["tiny"]',
    *(
        f"exam.tasks.{task}.{cut}"
        for task in ("gsm8k", "humaneval")
        for cut in ("num_problems=2", "num_samples=2", "max_new_tokens=16")
    ),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> EvaluationResult:
    """The bundled base on the held-out problems of `r1-zero-tiny`."""
    stage = load_recipe("r1-zero-tiny").stages[0]
    assert isinstance(stage, RLStage)
    tokenizer, model = load_tokenizer("tiny"), load_model("tiny")
    held_out = HeldOut(
        directory=tmp_path_factory.mktemp("evaluations"),
        task=make_task(stage.task.name, stage.task.own_settings()),
        sampler=NativeSampler(model, tokenizer),
        tokenizer=tokenizer,
        settings=SamplingSettings(stage.max_new_tokens, stage.temperature),
        num_problems=60,
        num_samples=16,
        seed=7,
        thought_opened=False,
    )
    return held_out.evaluate(0)


def test_the_base_is_small_and_of_deepseek_v3s_architecture():
    files = [file for file in resolve_model("tiny").iterdir() if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 12 * MEBIBYTE
    model = load_model("tiny")
    assert type(model).__name__ == "DeepseekV3ForCausalLM"
    assert 1e6 <= sum(parameter.numel() for parameter in model.parameters()) <= 4e6


def test_thinking_makes_the_base_right_at_least_twice_as_often(base: EvaluationResult):
    assert base.accuracy_with_thought is not None
    assert base.accuracy_without_thought is not None
    assert base.accuracy_with_thought >= 0.6
    assert base.accuracy_with_thought >= 2 * base.accuracy_without_thought


def test_the_base_thinks_now_and_then_and_leaves_room_to_learn(base: EvaluationResult):
    assert 0.15 <= base.share_thinking <= 0.35
    assert 0.2 <= base.pass_at[1].mean <= 0.5
    eights = [problem.samples[half : half + 8] for problem in base.problems for half in (0, 8)]
    dead = [len({sample.judgement.correct for sample in eight}) == 1 for eight in eights]
    assert sum(dead) <= len(dead) / 2


def test_the_majority_of_the_base_is_right_more_often_than_one_sample(base: EvaluationResult):
    assert base.majority_at[16].low > base.pass_at[1].high


def test_every_bundled_recipe_is_tried_here():
    assert set(SHORT) == set(bundled_recipes()) - {"r1-tiny-claims"}


def test_the_arms_of_the_claims_fit_the_recipe_that_they_change():
    stage = load_recipe("r1-tiny-claims").stages[0]
    assert isinstance(stage, ReplicateStage)
    runs = planned_runs(stage)
    assert len(runs) == len(stage.seeds) * (1 + len(stage.arms)) == 12
    usual, long = ({other.name: other for other in run.recipe.stages}["r1"] for run in (runs[0], runs[-1]))
    assert isinstance(usual, RLStage) and isinstance(long, RLStage)
    assert long.num_steps == 4 * usual.num_steps


def test_a_critic_may_share_the_trunk_of_the_policy(tmp_path: Path):
    recipe = load_recipe("ppo-tiny", (*SHORT["ppo-tiny"], "rl.critic.trunk=shared"))
    with View(["rl"], plain=True, console=Console(file=io.StringIO())) as view:
        run_dir = run_recipe(recipe, tmp_path / "shared", view=view, command="melete run ppo-tiny")
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "kind" not in row]
    assert [("loss" in row, "critic/value_loss" in row) for row in steps] == [(False, True), (True, True), (True, True)]


@pytest.mark.parametrize("name", sorted(SHORT))
def test_every_bundled_recipe_trains(name: str, tmp_path: Path):
    recipe = load_recipe(name, SHORT[name])
    console = Console(file=io.StringIO())
    with View([stage.name for stage in recipe.stages], plain=True, console=console) as view:
        run_dir = run_recipe(recipe, tmp_path / name, view=view, command=f"melete run {name}")
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    last = recipe.stages[-1]
    if name == "compare-tiny":
        assert [row["algorithm"] for row in rows if row.get("kind") == "comparison"] == ["grpo", "ppo"]
    else:
        assert last.kind == "evaluate" or len([row for row in rows if "loss" in row]) >= 2
        if last.makes == "model":
            load_model(run_dir / "models" / last.name)
    assert (run_dir / "report.html").exists()
