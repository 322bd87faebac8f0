"""From graded rows to rows with advantages: the one step between rewards and the update."""

from __future__ import annotations

import torch

from melete.algorithms import Algorithm
from melete.batch import Annotations, Batch, TrainBatch
from melete.functional.aggregate import denominators
from melete.functional.kl import ESTIMATORS


def credit(batch: Batch, notes: Annotations, algorithm: Algorithm) -> TrainBatch:
    """Advantages of every token, without the rows that can teach nothing.

    A row whose grader failed leaves the statistics, the denominators and the batch, as if it had not been sampled. A
    row of advantage 0 stays in the denominators; it is dropped only when no KL term could still move it. Both are
    counted in `num_dropped_rows`.

    Rewards 1, 0, 0, None of one group under Dr. GRPO: advantages 2/3, -1/3, -1/3; one row dropped, three counted.
    """
    missing = algorithm.needs - notes.streams.keys() - {"old_logprobs"}
    if missing:
        raise ValueError(f"{algorithm.name} needs {', '.join(sorted(missing))}")
    per_row = algorithm.advantages(_rewards_with_kl(batch, notes, algorithm), batch.group_ids, batch.valid)
    advantages = torch.where(batch.loss_mask, per_row[:, None], 0.0)
    counted = batch.loss_mask & batch.valid[:, None]
    kept = batch.valid if algorithm.kl_coef > 0 else batch.valid & (per_row != 0)
    return TrainBatch(
        tokens=batch.tokens,
        attention_mask=batch.attention_mask,
        loss_mask=batch.loss_mask,
        advantages=advantages,
        streams=notes.streams,
        totals=denominators(counted, algorithm.aggregation, constant=algorithm.settings.aggregation_constant),
        num_dropped_rows=int((~kept).sum()),
        rollout_logprobs=batch.rollout_logprobs,
    ).select(kept)


def _rewards_with_kl(batch: Batch, notes: Annotations, algorithm: Algorithm) -> torch.Tensor:
    """reward - kl_coef * sum over the completion of the KL estimate, where the KL belongs in the reward."""
    estimator, place = algorithm.kl
    if place != "reward":
        return batch.rewards
    # without the learner's own log-probs the sampler's are the best estimate of what wrote the row
    behaviour = notes.streams.get("old_logprobs", batch.rollout_logprobs)
    per_token = ESTIMATORS[estimator](behaviour, notes.streams["ref_logprobs"])
    return batch.rewards - algorithm.kl_coef * torch.where(batch.loss_mask, per_token, 0.0).sum(dim=1)
