"""The stage that makes a base model from nothing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerFast

from melete.corpus.mix import sample_texts
from melete.loops.pretrain import PretrainSettings, pretrain_with_workers
from melete.models.load import load_tokenizer, save_model
from melete.models.tiny import tiny_model, train_tokenizer
from melete.schema import PretrainStage
from melete.stages.context import Interrupted, StageContext


def run_pretrain(stage: PretrainStage, context: StageContext) -> dict[str, Any]:
    """Makes a tokenizer and trains a base model from nothing; returns the stage's entry of `summary.json`.

    It does not continue where it was cut off: it starts again.
    """
    started = time.perf_counter()
    context.run.truncate_metrics(stage.name, 0)
    settings = PretrainSettings(
        seed=stage.corpus_seed,
        num_tokens=stage.num_tokens,
        tokens_per_batch=stage.tokens_per_batch,
        lr=stage.lr,
        warmup_share=stage.warmup_share,
        decay_share=stage.decay_share,
        weight_decay=stage.weight_decay,
        max_grad_norm=stage.max_grad_norm,
        router_bias_rate=stage.router_bias_rate,
        num_workers=stage.num_workers,
    )
    if stage.tokenizer:
        tokenizer = cast(PreTrainedTokenizerFast, load_tokenizer(context.model_path(stage.tokenizer)))
    else:
        tokenizer = train_tokenizer(sample_texts(), stage.vocab_size)
    torch.manual_seed(context.seed)
    model = tiny_model(
        tokenizer, architecture=stage.architecture, hidden_size=stage.hidden_size, num_layers=stage.num_layers
    )
    context.view.stage_started(stage.name, stage.num_tokens // stage.tokens_per_batch)

    def on_step(step: int, metrics: dict[str, float]) -> None:
        speed = metrics.pop("tokens_per_second")
        context.run.log_metrics({"stage": stage.name, "step": step, **metrics})
        context.run.log_timings({"stage": stage.name, "step": step, "tokens_per_second": speed})
        context.view.step(stage.name, step - 1, metrics, None)
        if context.should_stop():
            raise Interrupted

    pretrain_with_workers(model, tokenizer, settings, on_step)
    for directory in [context.run.models / stage.name, *([Path(stage.out)] if stage.out else [])]:
        save_model(model, tokenizer, directory)
    seconds = time.perf_counter() - started
    return {
        "name": stage.name,
        "kind": stage.kind,
        "seconds": seconds,
        "model": f"models/{stage.name}",
        "evaluations": [],
    }
