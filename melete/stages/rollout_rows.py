"""What `rollouts.jsonl` keeps of a step of reinforcement learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from melete.batch import TrainBatch, rollout_row
from melete.loops.rl import Step
from melete.rewards.grade import RewardPart
from melete.text.stream import TextStream
from melete.types import Rollout


def rollout_rows(
    stage: str, step: Step, parts: Mapping[str, RewardPart], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    """The siblings of the step's first problem: enough to see what is being learnt."""
    group = step.groups[0]
    graders = {name: by for name, part in parts.items() if (by := getattr(part.function, "graded_by", ""))}
    rows = []
    for rollout, reward in zip(group.rollouts, group.rewards, strict=True):
        rows.append(
            {
                "stage": stage,
                "step": step.number,
                "problem_id": rollout.problem.problem_id,
                "prompt": rollout.problem.messages[-1].content,
                "gold": rollout.problem.gold,
                "sibling": rollout.sibling,
                "text": rollout.text,
                "reward": reward.total,
                "reward_parts": dict(reward.parts),
                "reason": reward.reason,
                **({"graded_by": graders} if graders else {}),
                "finish_reason": rollout.completion.finish_reason,
                "num_tokens": len(rollout.completion.tokens),
                "credit": advantage_spans(tokenizer, rollout.completion.tokens, token_advantages(step.update, rollout)),
            }
        )
    return rows


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
