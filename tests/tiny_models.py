"""Tiny random models of two architectures, a small tokenizer, and rollouts written by the native sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor
from transformers import (
    DeepseekV3ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from melete.batch import Batch
from melete.learning.critic import LocalCritic
from melete.learning.optimizer import OptimizerSettings
from melete.models.tiny import tiny_model, train_tokenizer
from melete.sampling.native import NativeSampler
from melete.types import Completion, Message, Problem, Reward, Rollout, RolloutGroup, SampleRequest, SamplingSettings

# prompts of different lengths, so that every batch is padded
PROMPTS = ((1, 40, 41), (1, 50, 51, 52, 53, 54, 55, 56), (1, 60), (1, 70, 71, 72, 73))


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["what is one and two and three"] * 20, vocab_size=380)


def llama(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=tokenizer().bos_token_id,
        eos_token_id=tokenizer().eos_token_id,
        pad_token_id=tokenizer().pad_token_id,
    )
    return LlamaForCausalLM(config).eval()


def deepseek(seed: int = 0) -> PreTrainedModel:
    """Latent attention and a mixture of experts, with weights large enough that tokens differ in probability."""
    torch.manual_seed(seed)
    model = tiny_model(tokenizer(), hidden_size=32, num_layers=2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(3)
    return model.eval()


MODELS: dict[str, Callable[[], PreTrainedModel]] = {"llama": llama, "deepseek_v3": deepseek}
SCALAR_CLASSES = {"llama": LlamaForSequenceClassification, "deepseek_v3": DeepseekV3ForSequenceClassification}


def scalar_model(kind: str = "llama", head: float = 0.1) -> PreTrainedModel:
    """A reward model or critic with a random head."""
    trunk = MODELS[kind]()
    trunk.config.num_labels = 1
    model = SCALAR_CLASSES[kind](trunk.config).eval()
    model.model.load_state_dict(trunk.model.state_dict())
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        model.score.weight.copy_(head * torch.randn(model.score.weight.shape, generator=generator))
    return model


def ending_often(model: PreTrainedModel, num_end_tokens: int = 60) -> PreTrainedModel:
    """The model with so many end-of-turn tokens that rows end at different lengths."""
    model.generation_config.eos_token_id = list(range(len(tokenizer()) - num_end_tokens, len(tokenizer())))
    return model


def requests(group_size: int = 3, prompts: Sequence[tuple[int, ...]] = PROMPTS) -> list[SampleRequest]:
    return [
        SampleRequest(prompt, tuple(1000 * number + sibling for sibling in range(group_size)))
        for number, prompt in enumerate(prompts)
    ]


def groups_of(
    asked: Sequence[SampleRequest],
    completions: Sequence[Sequence[Completion]],
    reward: Callable[[int, int], float | None],
) -> list[RolloutGroup]:
    """Graded groups; `reward(group, sibling)` is the judgement."""
    groups = []
    for number, (request, siblings) in enumerate(zip(asked, completions, strict=True)):
        problem = Problem(f"p/{number}", "p", (Message("user", "?"),), "1")
        rollouts = tuple(
            Rollout(problem, sibling, request.prompt_tokens, completion, "")
            for sibling, completion in enumerate(siblings)
        )
        earned = [reward(number, sibling) for sibling in range(len(siblings))]
        rewards = tuple(Reward(value, {"accuracy": value}) for value in earned)
        groups.append(RolloutGroup(f"g/{number}", problem, rollouts, rewards))
    return groups


def first_wins(_group: int, sibling: int) -> float:
    return float(sibling == 0)


def sampled_batch(
    model: PreTrainedModel,
    *,
    temperature: float = 1.0,
    max_new_tokens: int = 12,
    group_size: int = 3,
    reward: Callable[[int, int], float | None] = first_wins,
) -> Batch:
    """Graded rollouts of uneven lengths, written by `model` itself."""
    asked = requests(group_size)
    sampler = NativeSampler(ending_often(model), tokenizer())
    completions = sampler.sample(asked, SamplingSettings(max_new_tokens, temperature=temperature))
    return Batch.from_groups(groups_of(asked, completions, reward), tokenizer().pad_token_id)


def tiny_critic(
    optimizer: OptimizerSettings,
    words: PreTrainedTokenizerFast | None = None,
    *,
    value_clip: float | None = 0.2,
) -> LocalCritic:
    """A critic of the smallest model of DeepSeek-V3's kind, whose values start at 0."""
    torch.manual_seed(0)
    trunk = tiny_model(words or tokenizer(), hidden_size=32, num_layers=2)
    model = DeepseekV3ForSequenceClassification(trunk.config).eval()
    model.model.load_state_dict(trunk.model.state_dict())
    torch.nn.init.zeros_(model.score.weight)
    return LocalCritic(model, optimizer=optimizer, value_clip=value_clip)


def copied(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def assert_close_gradients(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    largest = max(float(gradient.abs().max()) for gradient in one.values())
    assert largest > 1e-3
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=2e-6 * max(largest, 1.0))
