"""What `rollouts.jsonl` keeps of a step of reinforcement learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from melete.batch import TrainBatch, rollout_row
from melete.loops.rl import Step
from melete.rewards.grade import RewardPart
from melete.text.stream import TextStream
from melete.types import Reward, Rollout, RolloutGroup

MAX_UNGRADED = 8  # of a step, beside its first problem


def rollout_rows(
    stage: str, step: Step, parts: Mapping[str, RewardPart], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    """The siblings of the step's first problem, enough to see what is being learnt, and what could not be graded."""
    graders = _graders(parts)
    rows = []
    for rollout, reward in _first_and_ungraded(step.groups):
        advantages = token_advantages(step.update, rollout)
        credit = advantage_spans(tokenizer, rollout.completion.tokens, advantages)
        rows.append({**_row(stage, step.number, rollout, reward, graders), "credit": credit})
    return rows


def refused_rows(
    stage: str, step: int, groups: Sequence[RolloutGroup], parts: Mapping[str, RewardPart]
) -> list[dict[str, Any]]:
    """All rollouts of a step that was refused, for whoever looks for the one that was to blame."""
    graders = _graders(parts)
    found = [pair for group in groups for pair in zip(group.rollouts, group.rewards, strict=True)]
    return [{**_row(stage, step, rollout, reward, graders), "refused": True} for rollout, reward in found]


def _first_and_ungraded(groups: Sequence[RolloutGroup]) -> list[tuple[Rollout, Reward]]:
    first, *others = ([*zip(group.rollouts, group.rewards, strict=True)] for group in groups)
    ungraded = [pair for group in others for pair in group if pair[1].total is None]
    return [*first, *ungraded[:MAX_UNGRADED]]


def _graders(parts: Mapping[str, RewardPart]) -> dict[str, Any]:
    graders = {name: by for name, part in parts.items() if (by := getattr(part.function, "graded_by", ""))}
    return {"graded_by": graders} if graders else {}


def _row(stage: str, step: int, rollout: Rollout, reward: Reward, graders: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "stage": stage,
        "step": step,
        "problem_id": rollout.problem.problem_id,
        "prompt": rollout.problem.messages[-1].content,
        "gold": rollout.problem.gold,
        "sibling": rollout.sibling,
        "text": rollout.text,
        "reward": reward.total,
        "reward_parts": dict(reward.parts),
        "reason": reward.reason,
        **graders,
        "finish_reason": rollout.completion.finish_reason,
        "num_tokens": len(rollout.completion.tokens),
    }


def token_advantages(update: TrainBatch, rollout: Rollout) -> list[float]:
    """The advantage of each token of the completion; 0 where the rollout was left out of the update.

    A row is found by its tokens: the same completion of the same prompt has the same advantages.
    """
    tokens, _ = rollout_row(rollout)
    start, end = len(rollout.prompt_tokens), len(tokens)
    for row in (update.lengths == end).nonzero().flatten().tolist():
        if update.tokens[row, :end].tolist() == tokens:
            return update.advantages[row, start:end].tolist()
    return [0.0] * (end - start)


def advantage_spans(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], advantages: Sequence[float]
) -> list[tuple[str, float]]:
    """The text in pieces that share an advantage (to three decimals), in order: one where all tokens have the same."""
    stream = TextStream(tokenizer)
    spans: list[tuple[str, float]] = []
    for token, advantage in zip(tokens, advantages, strict=True):
        text, value = stream.add(token), round(advantage, 3) + 0.0
        if spans and spans[-1][1] == value:
            spans[-1] = spans[-1][0] + text, value
        elif text:  # the bytes of an unfinished character belong to the token that completes it
            spans.append((text, value))
    if spans and (rest := stream.rest()):
        spans[-1] = spans[-1][0] + rest, spans[-1][1]
    return spans
