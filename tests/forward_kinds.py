"""Tiny random models of every architecture that the lean forward pass knows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tiny_models import deepseek, llama, tokenizer
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SHARED = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}


def _of(config_class: type, model_class: type, **more: object) -> Callable[[], PreTrainedModel]:
    def make() -> PreTrainedModel:
        torch.manual_seed(0)
        model = model_class(config_class(vocab_size=len(tokenizer()), **SHARED, **more)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(0, 0.5)  # transformers starts them at 0, where nobody would miss them
        return model

    return make


def _latent_queries() -> PreTrainedModel:
    """DeepSeek-V3 with low-rank queries, rotary pairs apart, groups of experts and more than one shared expert."""
    torch.manual_seed(0)
    config = DeepseekV3Config(
        vocab_size=len(tokenizer()), hidden_size=32, intermediate_size=64, moe_intermediate_size=16,
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4, n_routed_experts=24, n_shared_experts=2,
        num_experts_per_tok=3, n_group=4, topk_group=2, first_k_dense_replace=1, q_lora_rank=12, kv_lora_rank=16,
        qk_rope_head_dim=8, qk_nope_head_dim=12, v_head_dim=10, rope_interleave=False, routed_scaling_factor=2.5,
        max_position_embeddings=256, initializer_range=0.2,
    )  # fmt: skip
    return DeepseekV3ForCausalLM(config).eval()


KINDS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": llama,
    "deepseek": deepseek,
    "deepseek_latent_queries": _latent_queries,
    "llama_bias": _of(LlamaConfig, LlamaForCausalLM, attention_bias=True, head_dim=12),
    "llama3_rope": _of(
        LlamaConfig,
        LlamaForCausalLM,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 1000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "mistral": _of(MistralConfig, MistralForCausalLM, sliding_window=None),
    "qwen2": _of(Qwen2Config, Qwen2ForCausalLM),
    "qwen3": _of(Qwen3Config, Qwen3ForCausalLM, head_dim=16),
}
