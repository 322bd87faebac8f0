"""Settings of pre-training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from melete.schema.base import Artefact, Count, NotNegative, Positive, Problem, Seed, Stage


class PretrainStage(Stage):
    """Next-token prediction on the generated corpus: makes a tokenizer and a base model from nothing."""

    makes: ClassVar[Artefact] = "model"
    kind: Literal["pretrain"]
    """The kind of stage."""
    corpus_seed: Seed = 0
    """Which documents are generated."""
    num_tokens: Count = 30_000_000
    """Tokens to train on, prompts included."""
    tokens_per_batch: Count = 4096
    """Tokens per optimizer step, padding included."""
    architecture: Literal["deepseek_v3", "qwen3", "llama"] = "deepseek_v3"
    """Experts and latent attention, or a dense model."""
    tokenizer: str = ""
    """A model whose tokenizer is taken, so that texts can go from one to the other; empty to train one."""
    vocab_size: Annotated[Count, Field(ge=512)] = 768
    """Entries of the tokenizer: bytes, special tokens and merges."""
    hidden_size: Annotated[Count, Field(multiple_of=8)] = 128
    """Width of the model; the widths of attention and experts follow from it."""
    num_layers: Annotated[Count, Field(ge=2)] = 4
    """Layers; with experts, the first is dense."""
    lr: Positive = 3e-3
    """Highest learning rate."""
    warmup_share: Positive = 0.01
    """Share of all tokens over which the learning rate rises."""
    decay_share: Positive = 0.3
    """Share of all tokens, at the end, over which it falls to a hundredth."""
    weight_decay: NotNegative = 0.05
    """Decoupled weight decay."""
    max_grad_norm: Positive = 1.0
    """Gradients with a larger norm are scaled down to it."""
    router_bias_rate: NotNegative = 1e-3
    """How far a router's bias moves per step to even out the load of its experts; 0 leaves it alone."""
    num_workers: Count = 1
    """Processes that share each batch, one thread each; on a small model two of them beat two threads."""
    out: str = ""
    """A directory that also receives the finished model; empty for none."""

    def reads(self) -> list[str]:
        return [self.tokenizer] if self.tokenizer else []

    def plan(self) -> str:
        return f"pretrain a {self.architecture}, {self.num_tokens:,} tokens, lr {self.lr:g}"

    def problems(self) -> Iterator[Problem]:
        if self.warmup_share + self.decay_share > 1:
            yield "warmup_share", f"and decay_share add up to {self.warmup_share + self.decay_share:g}, more than 1"
        if self.num_tokens < self.tokens_per_batch:
            yield "num_tokens", f"{self.num_tokens} is less than one batch (tokens_per_batch {self.tokens_per_batch})"
