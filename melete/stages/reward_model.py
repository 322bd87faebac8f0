"""The stage that trains a reward model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from melete.datasets.files import read_rows
from melete.datasets.lengths import fitting, limit_of
from melete.errors import DataError
from melete.learning.reward_model import RewardModelLearner
from melete.loops import reward_model
from melete.models.heads import new_scalar_model, scalar_tokenizer
from melete.models.load import load_tokenizer, refuse_mismatch
from melete.schema import RewardModelStage
from melete.stages.context import StageContext
from melete.stages.rl import optimizer_settings
from melete.stages.training import Training
from melete.types import LabelledCompletion, LabelledSteps, PreferencePair, RankedCompletions

KINDS: Mapping[str, Any] = {
    "pairs": PreferencePair,
    "rankings": RankedCompletions,
    "pointwise": LabelledCompletion,
    "steps": LabelledSteps,
}


def run_reward_model(stage: RewardModelStage, context: StageContext) -> dict[str, Any]:
    """Trains on preferences or labels; returns the stage's entry of `summary.json`, with what held-out data say."""
    source = context.model_path(stage.model)
    tokenizer = load_tokenizer(source, chat_template=stage.chat_template)
    model = new_scalar_model(source, seed=context.seed, init_scale=1.0, device=stage.device, dtype=stage.dtype)
    refuse_mismatch(model, tokenizer, stage.model)
    context.prepare(stage, model)
    path = context.data_path(stage.data)
    read = read_rows(path, KINDS[stage.loss], columns=stage.columns, part=stage.part)
    read = fitting(read, tokenizer, limit_of(stage.max_tokens, model.config), stage.too_long, str(path))
    splits = reward_model.split_by_text(read, stage.held_out_share)
    if not splits.train or not (splits.held_out or stage.held_out_share == 0):
        what = f"{len(splits.train)} rows to learn from and {len(splits.held_out)} to measure with are too few"
        raise DataError(what, place=str(path), remedy="give more rows")
    rows = splits.train
    if stage.replay:
        old = [row for name in stage.replay for row in read_rows(context.data_path(name), KINDS[stage.loss])]
        seen = reward_model.split_by_text(old, stage.held_out_share).train
        rows = reward_model.with_replay(rows, seen, stage.replay_share, f"{context.seed}/{stage.name}/replay")
    num_steps = stage.num_epochs * -(-len(rows) // stage.rows_per_step)
    learner = RewardModelLearner(
        model,
        optimizer=optimizer_settings(stage, num_steps),
        max_tokens_per_microbatch=stage.max_tokens_per_microbatch,
        center_coef=stage.center_coef,
    )
    training = Training(stage, context, num_steps=num_steps, parts={"reward_model": learner})
    for begin, end in training.segments(training.resume()):
        reward_model.train(
            start=begin,
            stop=end,
            rows=rows,
            rows_per_step=stage.rows_per_step,
            tokenizer=tokenizer,
            learner=learner,
            seed=f"{context.seed}/{stage.name}",
            on_step=training.step_done,
        )
    context.keep(stage, model, scalar_tokenizer(model, tokenizer))
    return training.entry(held_out=_measured(stage, splits.held_out, tokenizer, learner))


def _measured(
    stage: RewardModelStage, rows: Sequence[Any], tokenizer: PreTrainedTokenizerBase, learner: RewardModelLearner
) -> dict[str, float]:
    if not rows:
        return {}
    if stage.loss == "steps":
        return reward_model.evaluate_steps(rows, tokenizer, learner.step_scores)
    if stage.loss == "pointwise":
        return reward_model.evaluate_labels(rows, tokenizer, learner.scores)
    return reward_model.evaluate_rankings(rows, tokenizer, learner.scores)
