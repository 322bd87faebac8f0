"""Stages that let vLLM write: whole runs with a small engine of its shape."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import fake_vllm
import pytest
import torch
from fake_vllm import Fake
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from melete.config import parse_recipe
from melete.corpus.mix import sample_texts
from melete.errors import ModelError, RecipeError
from melete.live import View
from melete.models.load import save_model
from melete.models.tiny import train_tokenizer
from melete.pipeline import run_recipe
from melete.sampling.native import NativeSampler

TASK = {"name": "arithmetic_chain", "min_terms": 2, "max_terms": 2}
RL: dict[str, Any] = {
    "name": "rl",
    "kind": "rl",
    "lr": 5e-3,
    "num_steps": 2,
    "prompts_per_step": 2,
    "group_size": 3,
    "max_new_tokens": 6,
    "warmup_steps": 0,
    "task": TASK,
    "rewards": {"tiny_rewards:even_tokens_unless_stopped": 1.0},
    "evaluation": {"at": [1.0], "num_problems": 2, "num_samples": 1},
    "support": {"num_problems": 2, "refuse": False},
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 32 numbers are the smallest that vLLM knows on a CPU."""
    tokenizer = train_tokenizer(sample_texts(0, 50), 500)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=0.2,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    directory = tmp_path_factory.mktemp("model") / "tiny"
    model = LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = list(range(len(tokenizer) - 150, len(tokenizer)))  # rows end early
    save_model(model, tokenizer, directory)
    return directory


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    return fake_vllm.install(monkeypatch)


@pytest.fixture(params=fake_vllm.ENGINES)
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "fake":
        fake_vllm.install(monkeypatch)


def run(directory: Path, *stages: dict[str, Any]) -> Path:
    recipe = parse_recipe({"name": "little", "seed": 3, "stage": list(stages)})
    with View([stage["name"] for stage in stages], True, console=Console(file=io.StringIO(), width=200)) as view:
        return run_recipe(recipe, directory, view=view, command="melete run little")


def rows(directory: Path, log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / f"{log}.jsonl").read_text().splitlines()]


def test_reinforcement_learning_with_vllm(either: None, model_dir: Path, tmp_path: Path) -> None:
    """After each push the sampler's log-probs are the learner's, so that an update begins with a ratio of 1."""
    share = {"sampler": "vllm", "sampler_memory_share": 0.02}
    done = run(tmp_path / "run", RL | share | {"model": str(model_dir)})
    steps = [row for row in rows(done, "metrics") if row.get("stage") == "rl" and "sampler_mismatch" in row]
    assert [row["step"] for row in steps] == [0, 1]
    assert all(row["sampler_mismatch"] < 1e-3 for row in steps)
    assert any(row["grad_norm"] > 0 for row in steps)
    assert {row["step"] for row in rows(done, "rollouts")} == {0, 1}
    assert (done / "models" / "rl" / "model.safetensors").is_file()


def test_the_engine_is_given_back_with_the_stage(fake: Fake, model_dir: Path, tmp_path: Path) -> None:
    stage = RL | {"sampler": "vllm", "model": str(model_dir), "max_staleness": 1}
    run(tmp_path / "run", stage, stage | {"name": "again", "model": "rl"})
    assert len(fake.engines) == 2 == fake.num_cleaned
    assert all(engine.llm_engine.is_shut_down for engine in fake.engines)
    assert all(engine.kv_cache_memory_bytes and engine.gpu_memory_utilization == 0.3 for engine in fake.engines)


def test_a_push_that_is_lost_ends_the_run_with_what_to_do(fake: Fake, model_dir: Path, tmp_path: Path) -> None:
    fake.faults.add("lost")
    with pytest.raises(ModelError, match="did not take") as error:
        run(tmp_path / "run", RL | {"sampler": "vllm", "model": str(model_dir)})
    assert "policy version" in error.value.place
    assert fake.num_cleaned == 1


def test_other_stages_that_sample_take_it_too(fake: Fake, model_dir: Path, tmp_path: Path) -> None:
    shared = {"model": str(model_dir), "task": TASK, "num_prompts": 3, "samples_per_prompt": 2, "max_new_tokens": 6}
    said = {"name": "said", "kind": "generate", "sampler": "vllm", "top_k": 5, "stop": ["never written"]} | shared
    rule = {"name": "kept", "kind": "reject", "sampler": "vllm", "top_p": 0.9, "min_score": 0.0} | shared
    loose = {"require_format": False, "readable": {"max_repeated_share": 1.0, "one_language": False}}
    done = run(tmp_path / "run", said, rule | loose)
    assert len((done / "data" / "said.jsonl").read_text().splitlines()) == 6
    assert len(fake.engines) == 2 == fake.num_cleaned


def test_the_native_sampler_is_what_stages_use_when_nothing_is_said(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[NativeSampler] = []
    start = NativeSampler.__init__

    def noted(self: NativeSampler, *arguments: Any, **settings: Any) -> None:
        made.append(self)
        start(self, *arguments, **settings)

    monkeypatch.setattr(NativeSampler, "__init__", noted)
    run(tmp_path / "run", RL | {"model": str(model_dir), "num_steps": 1})
    assert len(made) == 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sampler": "sglang"}, "sampler"),
        ({"sampler_memory_share": 0.5}, 'sampler_memory_share: belongs to sampler = "vllm"'),
        ({"sampler": "vllm", "sampler_memory_share": 0.0}, "sampler_memory_share"),
    ],
)
def test_what_a_recipe_cannot_mean_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        parse_recipe({"name": "little", "stage": [RL | settings]})
