"""From graded rows to rows with advantages: the one step between rewards and the update."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from melete.algorithms import Algorithm
from melete.algorithms.row import CREDIT_STREAMS, parameters
from melete.batch import Annotations, Batch, TrainBatch
from melete.functional.aggregate import denominators
from melete.functional.kl import ESTIMATORS
from melete.functional.value import token_rewards, whiten


def credit(
    batch: Batch, notes: Annotations, algorithm: Algorithm, reward_weights: Mapping[str, float] | None = None
) -> TrainBatch:
    """Advantages of every token, without the rows that can teach nothing.

    A row whose grader failed leaves the statistics, the denominators and the batch, as if it had not been sampled. With
    `overlong_filter` a truncated row counts in its group's statistics and nowhere else. A row of advantage 0 stays in
    the denominators; it is dropped only when nothing else (a KL in the loss, entropy, a critic) could still move it.
    All of these are counted in `num_dropped_rows`. `reward_weights` are those of the parts, 1 each where not given.

    Rewards 1, 0, 0, None of one group under Dr. GRPO: advantages 2/3, -1/3, -1/3; one row dropped, three counted.
    """
    missing = algorithm.needs - notes.streams.keys() - algorithm.optional
    if missing:
        raise ValueError(f"{algorithm.name} needs {', '.join(sorted(missing))}")
    counted = batch.loss_mask & batch.valid[:, None]
    found = algorithm.advantages_and_returns(**_inputs(batch, notes, algorithm, counted, reward_weights or {}))
    advantages, returns = found if isinstance(found, tuple) else (found, None)
    if advantages.ndim == 1:
        advantages = advantages[:, None].expand_as(counted)
    advantages = torch.where(counted, advantages, 0.0)
    if algorithm.settings.whiten_advantages:
        advantages = whiten(advantages, counted)
    streams = dict(notes.streams)
    if returns is not None:
        streams |= {"returns": returns, "old_values": streams.pop("values")}
    trained = counted & ~batch.truncated[:, None] if algorithm.settings.overlong_filter else counted
    has_signal = torch.where(trained, advantages, 0.0).ne(0).any(dim=1)
    is_moved_otherwise = algorithm.kl[1] == "loss" or algorithm.settings.entropy_coef > 0 or returns is not None
    kept = trained.any(dim=1) if is_moved_otherwise else has_signal
    return TrainBatch(
        tokens=batch.tokens,
        attention_mask=batch.attention_mask,
        loss_mask=trained,
        advantages=advantages.float(),
        streams=streams,
        totals=denominators(trained, algorithm.aggregation, constant=algorithm.settings.aggregation_constant),
        num_dropped_rows=int((~kept).sum()),
        rollout_logprobs=batch.rollout_logprobs,
    ).select(kept)


def _inputs(
    batch: Batch, notes: Annotations, algorithm: Algorithm, counted: Tensor, reward_weights: Mapping[str, float]
) -> dict[str, Tensor]:
    """What a credit function may name; a KL in the reward is spread over the tokens or taken off the row's reward."""
    per_token = _kl_in_reward(batch, notes, algorithm)
    inputs = {
        "group_ids": batch.group_ids,
        "valid": batch.valid,
        "mask": counted,
        "rewards": batch.rewards,
        "reward_parts": batch.reward_parts,
        "part_weights": torch.tensor([reward_weights.get(name, 1.0) for name in batch.part_names]),
    }
    if "token_rewards" in parameters(algorithm.credit):
        inputs["token_rewards"] = token_rewards(batch.rewards, per_token, counted, kl_coef=algorithm.kl_coef)
    elif per_token is not None:
        inputs["rewards"] = batch.rewards - algorithm.kl_coef * torch.where(counted, per_token, 0.0).sum(dim=1)
    return inputs | {name: notes.streams[stream] for name, stream in CREDIT_STREAMS.items() if stream in notes.streams}


def _kl_in_reward(batch: Batch, notes: Annotations, algorithm: Algorithm) -> Tensor | None:
    estimator, place = algorithm.kl
    if place != "reward":
        return None
    # without the learner's own log-probs the sampler's are the best estimate of what wrote the row
    behaviour = notes.streams.get("old_logprobs", batch.rollout_logprobs)
    return ESTIMATORS[estimator](behaviour, notes.streams["ref_logprobs"])
