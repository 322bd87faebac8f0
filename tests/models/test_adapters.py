"""Low-rank adapters: they begin as nothing, only they move, and merged they say the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny_models import MODELS, PROMPTS, llama, tokenizer
from tiny_training import TOKENS, rows, train
from transformers import AutoModelForCausalLM, PreTrainedModel

from melete.batch import TokenRows
from melete.errors import ModelError
from melete.learning.scoring import score_batch
from melete.models.adapters import LoRA, add_adapter, has_adapter, merge_adapter, save_adapter, without_adapter
from melete.models.load import load_model, save_model
from melete.sampling.native import NativeSampler
from melete.types import SampleRequest, SamplingSettings


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_new_adapter_changes_nothing_and_is_drawn_from_its_seed(make) -> None:
    model = make()
    before = logits(model)
    drawn = torch.get_rng_state()
    add_adapter(model, LoRA(rank=4), seed=1)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.equal(logits(model), before)
    again, other = make(), make()
    add_adapter(again, LoRA(rank=4), seed=1)
    add_adapter(other, LoRA(rank=4), seed=2)
    one, same, different = ({n: p for n, p in m.named_parameters() if p.requires_grad} for m in (model, again, other))
    assert one and all("lora_" in name for name in one)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], different[name]) for name in one)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_only_the_adapter_moves_and_without_it_the_model_is_as_before(make) -> None:
    model = make()
    before, start = {n: w.clone() for n, w in model.state_dict().items()}, logits(model)
    add_adapter(model, LoRA(rank=4), seed=0)
    learner = train(model)
    assert set(learner.weights()) == {name for name, p in model.named_parameters() if p.requires_grad}
    now = {name.replace(".base_layer", ""): weight for name, weight in model.state_dict().items()}
    assert all(torch.equal(now[name], weight) for name, weight in before.items())
    assert not torch.allclose(logits(model), start)
    with without_adapter(model):
        assert torch.equal(logits(model), start)
    assert not torch.allclose(logits(model), start)


@pytest.mark.parametrize("rank_stabilised", [False, True])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_merged_it_says_the_same(make, rank_stabilised: bool) -> None:
    model = make()
    names = set(model.state_dict())
    add_adapter(model, LoRA(rank=4, rank_stabilised=rank_stabilised), seed=0)
    train(model)
    apart = logits(model)
    merge_adapter(model)
    assert not has_adapter(model) and set(model.state_dict()) == names
    torch.testing.assert_close(logits(model), apart, atol=1e-5, rtol=1e-5)


def test_the_scale_is_alpha_over_the_rank_or_over_its_root() -> None:
    for stabilised, scale in ((False, 2.0), (True, 4.0)):
        model = llama()
        add_adapter(model, LoRA(rank=4, alpha=8.0, rank_stabilised=stabilised), seed=0)
        layer = model.get_submodule("model.layers.0.self_attn.q_proj")
        assert layer.scaling == {"default": scale}


def test_interrupted_and_resumed_is_as_if_it_had_not_been() -> None:
    whole, cut, later = llama(), llama(), llama()
    for model in (whole, cut, later):
        add_adapter(model, LoRA(rank=4), seed=0)
    train(whole)
    state = train(cut, stop=2).state_dict()
    assert all("lora_" in name for name in state["model"])  # a checkpoint holds no weight that does not change
    train(later, start=2, state=state)
    assert torch.equal(logits(later), logits(whole))


def test_dropout_is_at_work_in_steps_alone_and_is_that_of_the_step() -> None:
    first, again, none, resumed = llama(), llama(), llama(), llama()
    for model, share in ((first, 0.5), (again, 0.5), (none, 0.0), (resumed, 0.5)):
        add_adapter(model, LoRA(rank=4, dropout=share), seed=0)
    drawn = torch.get_rng_state()
    train(first)
    assert torch.equal(torch.get_rng_state(), drawn)
    torch.rand(3)
    state = train(again, stop=2).state_dict()
    train(resumed, start=2, state=state)
    train(none)
    assert torch.equal(logits(first), logits(first))  # no dropout outside of a step
    assert torch.equal(logits(first), logits(resumed))
    assert not torch.equal(logits(first), logits(none))


def test_the_reference_is_the_model_without_its_adapter() -> None:
    model = llama()
    batch = TokenRows.pack(rows(), 0)
    start = score_batch(model, batch, 4096, 1.0)
    add_adapter(model, LoRA(rank=4), seed=0)
    learner = train(model)
    assert torch.equal(learner.ref_logprobs(batch), start)  # type: ignore[arg-type]
    assert learner.reference is None


def test_a_sampler_of_its_own_is_pushed_the_adapter_alone() -> None:
    model, other = llama(), llama()
    for one in (model, other):
        add_adapter(one, LoRA(rank=4), seed=0)
    learner, sampler = train(model), NativeSampler(other, tokenizer())
    sampler.load_weights(learner.weights(), version=4)
    assert torch.equal(logits(other), logits(model))
    assert sampler.sample([SampleRequest(PROMPTS[0], (7,))], SamplingSettings(4))[0][0].policy_version == 4


def test_kept_apart_it_is_loaded_with_its_base_by_us_and_by_peft(tmp_path: Path) -> None:
    save_model(llama(), tokenizer(), tmp_path / "base")
    model = load_model(tmp_path / "base")
    add_adapter(model, LoRA(rank=4), seed=0)
    train(model)
    save_adapter(model, tokenizer(), tmp_path / "apart", base="../base")
    assert not (tmp_path / "apart" / "model.safetensors").exists()
    torch.testing.assert_close(logits(load_model(tmp_path / "apart")), logits(model), atol=1e-5, rtol=1e-5)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "apart")
    torch.testing.assert_close(plain(input_ids=TOKENS).logits, logits(model), atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"called query.*\n.*\n.*q_proj"):
        add_adapter(llama(), LoRA(target_modules=["query"]), seed=0)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4}))
    with pytest.raises(ModelError, match="does not say which model"):
        load_model(tmp_path)


def test_an_adapter_that_would_be_unpickled_is_refused(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path(str(tmp_path / "owned")).write_text, ("x",))

    save_model(llama(), tokenizer(), tmp_path / "base")
    adapted = llama()
    add_adapter(adapted, LoRA(), seed=0)
    save_adapter(adapted, tokenizer(), tmp_path / "adapter", base="../base")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    torch.save({"weights": Hostile()}, tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(ModelError, match="no weights as safetensors"):
        load_model(tmp_path / "adapter")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_gradients_with_checkpointing_are_the_same(make) -> None:
    plain, checkpointed = make(), make()
    getattr(checkpointed, "activation_checkpointing_enable", checkpointed.gradient_checkpointing_enable)(
        {"use_reentrant": False}
    )
    train(plain)
    calls = 0
    inner = checkpointed.base_model.layers[0]._gradient_checkpointing_func

    def counted(*args, **named):
        nonlocal calls
        calls += 1
        return inner(*args, **named)

    checkpointed.base_model.layers[0]._gradient_checkpointing_func = counted
    train(checkpointed)
    assert calls > 0
    torch.testing.assert_close(logits(checkpointed), logits(plain), atol=1e-6, rtol=1e-6)
    assert not checkpointed.base_model.layers[0].training
