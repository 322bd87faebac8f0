"""The bundled models and their byte-pair tokenizer: a base of DeepSeek-V3's architecture at about a million parameters,
and dense ones of half that size and less for it to teach."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, cast

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from melete.forward.products import quickened

Architecture = Literal["deepseek_v3", "qwen3", "llama"]
SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# numbers up to 99 are one token each; a word carries its leading space
PATTERN = r"\p{N}{1,2}| ?\p{L}+|\n| ?[^\s\p{L}\p{N}]|\s+"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; the tags of thought and answer and the numbers 0-99 are single tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(TAGS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    two_digits = [str(n) for n in range(10, 100)] * 1000  # frequent enough to be merged first
    tokenizer.train_from_iterator([*two_digits, *texts], trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|bos|>", eos_token="<|end|>", pad_token="<|pad|>", padding_side="right"
    )
    fast.add_special_tokens({"additional_special_tokens": ["<|system|>", "<|user|>", "<|assistant|>"]})
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_model(
    tokenizer: PreTrainedTokenizerFast,
    *,
    architecture: Architecture = "deepseek_v3",
    hidden_size: int = 128,
    num_layers: int = 4,
) -> PreTrainedModel:
    """A randomly initialised model of four attention heads; DeepSeek-V3's has experts in all layers but the first."""
    shared: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "intermediate_size": 2 * hidden_size,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
        "initializer_range": 0.06,
        "tie_word_embeddings": True,
        "bos_token_id": cast(int, tokenizer.bos_token_id),
        "eos_token_id": cast(int, tokenizer.eos_token_id),
        "pad_token_id": cast(int, tokenizer.pad_token_id),
    }
    if architecture == "deepseek_v3":
        return quickened(DeepseekV3ForCausalLM(_deepseek_v3(shared)))
    dense: dict[str, Any] = shared | {"num_key_value_heads": 2, "head_dim": hidden_size // 4}
    if architecture == "qwen3":
        return quickened(Qwen3ForCausalLM(Qwen3Config(**dense)))
    return quickened(LlamaForCausalLM(LlamaConfig(**dense)))


def _deepseek_v3(shared: dict[str, Any]) -> DeepseekV3Config:
    """Latent attention in every layer."""
    hidden_size = shared["hidden_size"]
    config = DeepseekV3Config(
        **shared,
        num_key_value_heads=4,
        moe_intermediate_size=hidden_size // 2,
        n_shared_experts=1,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=None,
        kv_lora_rank=hidden_size // 2,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        v_head_dim=hidden_size // 4,
        routed_scaling_factor=1.0,
        norm_topk_prob=True,
    )
    config._experts_implementation = "grouped_mm"
    return config
