"""What a step of reinforcement learning reports, under the names of `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from melete.evaluation.reflection import R1_WORDS, reflection
from melete.loops.rl_rollouts import Collected, has_signal
from melete.text.answers import parse_completion
from melete.types import RolloutGroup


def step_metrics(
    found: Collected, stats: Mapping[str, float], *, step: int, thought_opened: bool = False
) -> dict[str, float]:
    """Means over all rollouts of a step, the shape of its groups, and the learner's own numbers."""
    groups = found.all_groups
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewards = [reward for group in groups for reward in group.rewards]
    lengths = [len(rollout.completion.tokens) for rollout in rollouts]
    texts = [rollout.text for rollout in rollouts]
    thoughts = [parse_completion(text, thought_opened=thought_opened).thought for text in texts]
    totals = [reward.total for reward in rewards if reward.total is not None]
    metrics = {
        "reward": _mean(totals),
        "share_thinking": _mean([float(thought is not None) for thought in thoughts]),
        "length_mean": _mean(lengths),
        "length_max": float(max(lengths)),
        "truncated_share": _mean([float(r.completion.finish_reason == "length") for r in rollouts]),
        "reflection_per_1k": reflection(texts, sum(lengths), R1_WORDS).per_1k,
        "grader_failures": float(len(rewards) - len(totals)),
        "num_completion_tokens": float(sum(lengths)),
        "staleness_max": float(step - min(rollout.completion.policy_version for rollout in rollouts)),
    }
    for name in dict.fromkeys(name for reward in rewards for name in reward.parts):
        metrics[f"reward/{name}"] = _mean([value for r in rewards if (value := r.parts.get(name)) is not None])
    if len(groups) != len(found.groups):
        metrics["num_sampled_groups"] = float(len(groups))
    return metrics | _group_metrics(groups) | dict(stats)


def _group_metrics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Shares of groups that teach nothing (all rewards equal), and of those in which everything was right."""
    accuracies = [
        [reward.parts["accuracy"] for reward in group.rewards if "accuracy" in reward.parts] for group in groups
    ]
    return {
        "dead_groups": _mean([float(not has_signal(group)) for group in groups]),
        "all_correct_groups": _mean([float(all(a == 1.0 for a in parts)) for parts in accuracies if parts]),
    }


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0
