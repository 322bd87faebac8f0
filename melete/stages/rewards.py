"""Rewards that need a model: scores of responses and of single steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from melete.batch import Batch, TokenRows
from melete.learning.scoring import end_scores, scores_at, stream_of
from melete.loops.rl import Annotator
from melete.models.heads import load_scalar_model
from melete.rewards import RewardContext, make_reward
from melete.rewards.endpoint import ChatModel, Endpoint, EndpointSettings
from melete.rewards.grade import RewardPart
from melete.rewards.judge import correctness, win_rate
from melete.rewards.rules import AnyReward, BatchReward, one_by_one
from melete.sampling.native import NativeSampler
from melete.sampling.replies import LocalChatModel
from melete.schema import JudgePart, RewardModelPart, RewardPartSettings, RLStage
from melete.stages.context import StageContext
from melete.tasks.base import Task, step_labels_of
from melete.text.chat import pad_token, tokens_after_thought
from melete.text.steps import step_ends
from melete.types import Rollout, RolloutGroup, SamplingSettings

Span = Literal["whole", "summary"]
TOKENS_AT_ONCE = 8192


def stage_rewards(
    stage: RLStage, reward_context: RewardContext, context: StageContext, tokenizer: PreTrainedTokenizerBase
) -> dict[str, RewardPart]:
    """All parts of a stage's reward: rules, scores of reward models and verdicts of judges, in the recipe's order."""
    made: dict[str, AnyReward] = dict(model_rewards(stage.reward_models, context, tokenizer))
    for name, judge in stage.reward_judges.items():
        made[name] = judge_reward(judge, context, thought_opened=reward_context.thought_opened)
    parts = {}
    for name, weight in stage.rewards.items():
        own = stage.reward_parts.get(name, RewardPartSettings())
        function = made[name] if name in made else make_reward(own.reward or name, reward_context, own.settings)
        parts[name] = RewardPart(function, weight, own.gate, own.normalise, frozenset(own.tasks))
    return parts


def judge_reward(part: JudgePart, context: StageContext, *, thought_opened: bool) -> AnyReward:
    """The verdict of a model behind an endpoint, asked while others still write, or of one on this machine."""
    model = judge_model(part, context)
    if part.verdict == "win_rate":
        judged = win_rate(model, num_calls=part.num_calls, scope=part.scope, thought_opened=thought_opened)
    else:
        judged = correctness(
            model,
            num_calls=part.num_calls,
            scope=part.scope,
            thought_opened=thought_opened,
            short=part.form == "short",
        )
    return one_by_one(judged, part.concurrency, part.model) if part.base_url else judged


def judge_model(part: JudgePart, context: StageContext) -> ChatModel:
    """The judge itself: a model behind an endpoint, whose replies are kept in the run's cache, or a local one."""
    if part.base_url:
        settings = EndpointSettings(
            part.base_url,
            part.model,
            part.key_variable,
            max_tokens=part.max_new_tokens,
            concurrency=part.concurrency,
            timeout=part.timeout_s,
            cache=context.run.path / "judge_cache.sqlite",
        )
        return Endpoint(settings)
    tokenizer, weights = context.load(part.model)
    sampler, settings = NativeSampler(weights, tokenizer), SamplingSettings(part.max_new_tokens, part.temperature)
    return LocalChatModel(sampler, tokenizer, settings, seed=context.seed)


def model_rewards(
    parts: Mapping[str, RewardModelPart], context: StageContext, tokenizer: PreTrainedTokenizerBase
) -> dict[str, BatchReward]:
    """Name -> the score of a trained reward model."""
    return {name: score_reward(part.model, part.span, context, tokenizer) for name, part in parts.items()}


def score_reward(name: str, span: Span, context: StageContext, tokenizer: PreTrainedTokenizerBase) -> BatchReward:
    """A reward model's score of the prompt with the whole response, or with what follows its thought."""
    model = load_scalar_model(context.model_path(name))
    pad = pad_token(tokenizer)

    def tokens(rollout: Rollout) -> list[int]:
        written = rollout.completion.tokens
        return [*rollout.prompt_tokens, *(written if span == "whole" else tokens_after_thought(tokenizer, written))]

    def scores(rollouts: Sequence[Rollout]) -> list[float]:
        rows = TokenRows.pack([(row, [True] * len(row)) for row in map(tokens, rollouts)], pad)
        return end_scores(model, rows, TOKENS_AT_ONCE).tolist()

    return BatchReward(scores)


def step_annotators(
    source: str, context: StageContext, task: Task, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Annotator]:
    """The streams of process supervision: where steps end, and what each is worth; none where `source` is empty.

    `source` is "task" for the task's own judgement of each step, or the name of a process reward model, whose score is
    turned into the probability that the step is right.
    """
    if not source:
        return {}
    model = None if source == "task" else load_scalar_model(context.model_path(source))

    def ends(batch: Batch, groups: Sequence[RolloutGroup]) -> Tensor:
        return _spread(batch, groups, lambda rollout: [(end, 1.0) for end in step_ends(tokenizer, rollout)])

    def judged(batch: Batch, groups: Sequence[RolloutGroup]) -> Tensor:
        if model is None:
            return _spread(batch, groups, lambda rollout: _task_steps(task, tokenizer, rollout))
        marked = TokenRows(batch.tokens, batch.attention_mask, ends(batch, groups).bool())
        scores = stream_of(marked, TOKENS_AT_ONCE, model, partial(scores_at, model))
        return torch.where(marked.loss_mask, scores.sigmoid(), 0.0)

    return {"step_ends": ends, "step_rewards": judged}


def _task_steps(task: Task, tokenizer: PreTrainedTokenizerBase, rollout: Rollout) -> list[tuple[int, float]]:
    ends = step_ends(tokenizer, rollout)
    labels = step_labels_of(task, rollout.problem, rollout.text)
    return [(end, float(label)) for end, label in zip(ends, labels, strict=True)]


def _spread(batch: Batch, groups: Sequence[RolloutGroup], steps) -> Tensor:
    """Values at the ends of steps, counted from the start of each completion, as a stream [B, T]."""
    stream = torch.zeros(batch.tokens.shape)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    for row, rollout in enumerate(rollouts):
        for end, value in steps(rollout):
            stream[row, len(rollout.prompt_tokens) + end] = value
    return stream
