"""Tied embeddings stay one tensor, and a token that both pads and ends a turn is learnt and written as its end."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny_models import llama, tokenizer
from tiny_training import train
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel

from melete.algorithms import resolve
from melete.datasets.encode import single_row
from melete.learning.local import LocalLearner
from melete.learning.optimizer import OptimizerSettings
from melete.loops import sft
from melete.models.adapters import LoRA, add_adapter, merge_adapter
from melete.models.load import load_model, load_tokenizer, save_model
from melete.sampling.native import NativeSampler
from melete.text.chat import pad_token, prompt_tokens
from melete.types import Demonstration, Message, SampleRequest, SamplingSettings


def tied(seed: int = 0) -> PreTrainedModel:
    config = copy.deepcopy(llama().config)
    config.tie_word_embeddings = True
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).eval()


def is_tied(model: PreTrainedModel) -> bool:
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    return head is embedding or (head.data_ptr() == embedding.data_ptr() and torch.equal(head, embedding))


def test_the_head_follows_the_embedding_in_training_in_the_sampler_and_on_disk(tmp_path: Path) -> None:
    model, of_sampler = tied(), tied(seed=1)
    before = model.lm_head.weight.clone()
    learner = train(model)
    assert is_tied(model) and not torch.equal(model.lm_head.weight, before)
    NativeSampler(of_sampler, tokenizer()).load_weights(learner.weights(), version=1)
    save_model(model, tokenizer(), tmp_path / "m")
    with safe_open(str(tmp_path / "m" / "model.safetensors"), framework="pt") as file:
        assert not {"lm_head.weight", "model.embed_tokens.weight"} <= set(file.keys())
    for other in (of_sampler, load_model(tmp_path / "m"), AutoModelForCausalLM.from_pretrained(tmp_path / "m")):
        assert is_tied(other)
        assert torch.equal(other.lm_head.weight, model.lm_head.weight)


def test_an_adapter_leaves_them_tied(tmp_path: Path) -> None:
    model = tied()
    add_adapter(model, LoRA(rank=2), seed=0)
    train(model)
    assert is_tied(model)
    merge_adapter(model)
    save_model(model, tokenizer(), tmp_path / "m")
    assert is_tied(load_model(tmp_path / "m"))


@pytest.mark.parametrize("with_adapter", [False, True])
def test_a_pad_token_that_ends_turns_is_learnt_and_written_as_their_end(with_adapter: bool, tmp_path: Path) -> None:
    words = copy.deepcopy(tokenizer())
    words.pad_token = words.eos_token
    save_model(llama(), words, tmp_path / "m")
    model, words = load_model(tmp_path / "m"), load_tokenizer(tmp_path / "m")
    assert words.pad_token_id == words.eos_token_id
    if with_adapter:
        add_adapter(model, LoRA(rank=8, alpha=32), seed=0)
    asked = [(Message("user", "one"),), (Message("user", "what is three"),)]
    answers = ["two", "one and two and three"]  # of different lengths, so that the batch is padded
    rows = [single_row(words, Demonstration("r", ask, answer)) for ask, answer in zip(asked, answers, strict=True)]
    learner = LocalLearner(model, optimizer=OptimizerSettings(lr=2e-2, num_steps=60))
    sft.train(
        start=0,
        stop=60,
        rows=rows,
        rows_per_step=2,
        pad_token_id=pad_token(words),
        learner=learner,
        algorithm=resolve("sft"),
        seed="s",
        on_step=lambda *_: None,
    )
    requests = [SampleRequest(prompt_tokens(words, ask), (n,)) for n, ask in enumerate(asked)]
    written = NativeSampler(model, words).sample(requests, SamplingSettings(32, temperature=0.01))
    for (completion,), answer in zip(written, answers, strict=True):
        assert completion.finish_reason == "stop" and completion.tokens[-1] == words.eos_token_id
        assert words.decode(completion.tokens[:-1]).strip() == answer
