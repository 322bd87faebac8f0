"""The loss of each token under a row of the table: surrogate, off-policy correction, KL and entropy."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from melete.algorithms.late import actual
from melete.algorithms.row import Algorithm, call, parameters
from melete.functional import kl, off_policy, policy
from melete.functional.logprobs import log_ratio

# what counts as clipped under a loss that has two bounds; `clip_fraction` for any other
CLIP_FRACTIONS: Mapping[Callable[..., Tensor], Callable[..., Tensor]] = {
    policy.sequence_clipped: policy.sequence_clip_fraction
}


def token_losses(
    algorithm: Algorithm,
    *,
    logprobs: Tensor,
    advantages: Tensor,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    rollout_logprobs: Tensor | None = None,
    entropy: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of each token [B, T], KL included, and what to log about it, per token and without gradient.

    Without `old_logprobs` this is the only update of its rollouts, and the current log-probs stand in: ratio 1. With
    `mask`, no stream is read where it is False, so that a NaN there reaches neither the loss nor a gradient.
    A correction multiplies or masks the surrogate, not the KL, and leaves the denominators as they are.
    Logged: `ratio`, `approx_kl` (k3 of KL(old || policy)), `clip_fraction` where the loss clips, `kl` to the reference,
    `correction` (mean weight or kept share).
    """
    settings = algorithm.settings
    if ref_logprobs is None and "ref_logprobs" in algorithm.needs and algorithm.kl[1] != "reward":
        raise ValueError(f"{algorithm.name} needs ref_logprobs")
    if settings.correction != "none" and (rollout_logprobs is None or old_logprobs is None):
        raise ValueError(f"{algorithm.name} with a correction needs rollout_logprobs and old_logprobs")
    if settings.entropy_coef > 0 and entropy is None:
        raise ValueError(f"{algorithm.name} with entropy_coef above 0 needs entropy")
    given = {
        "logprobs": logprobs,
        "old_logprobs": logprobs.detach() if old_logprobs is None else old_logprobs,
        "advantages": advantages,
        "ref_logprobs": ref_logprobs,
        "rollout_logprobs": rollout_logprobs,
        "entropy": entropy,
    }
    counted = torch.ones_like(logprobs, dtype=torch.bool) if mask is None else mask.bool()
    streams = {name: torch.where(counted, stream, 0.0) for name, stream in given.items() if stream is not None}
    streams["mask"] = counted
    losses, metrics = _corrected(algorithm, streams, call(algorithm.loss, streams, settings))
    estimator, place = algorithm.kl
    if place == "loss":
        losses = losses + settings.kl_coef * kl.ESTIMATORS[estimator](streams["logprobs"], streams["ref_logprobs"])
    if settings.entropy_coef > 0:
        losses = losses - settings.entropy_coef * streams["entropy"]
    return losses, metrics | _token_metrics(algorithm, streams)


def _corrected(algorithm: Algorithm, streams: Mapping[str, Tensor], losses: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    settings, metrics = algorithm.settings, dict[str, Tensor]()
    if settings.correction != "none":
        pair = (streams["old_logprobs"], streams["rollout_logprobs"], streams["mask"])
        level = "sequence" if settings.correction.startswith("sequence") else "token"
        if settings.correction.endswith("weights"):
            weights = off_policy.truncated_weights(*pair, level=level, weight_cap=settings.correction_cap)
            losses = losses * weights
        else:
            low, high = settings.correction_low, settings.correction_high
            weights = off_policy.ratio_kept(*pair, level=level, ratio_low=low, ratio_high=high)
            losses = torch.where(weights, losses, 0.0)
        metrics["correction"] = weights.to(losses.dtype)
    if settings.drift_limit is not None:
        kept = off_policy.negative_drift_kept(
            streams["logprobs"],
            streams["old_logprobs"],
            streams["advantages"],
            streams["mask"],
            drift_limit=settings.drift_limit,
        )
        losses = torch.where(kept, losses, 0.0)
    return losses, metrics


@torch.no_grad()
def _token_metrics(algorithm: Algorithm, streams: Mapping[str, Tensor]) -> dict[str, Tensor]:
    metrics: dict[str, Tensor] = {}
    names, loss = parameters(algorithm.loss), actual(algorithm.loss)
    if "old_logprobs" in names:
        metrics["ratio"] = log_ratio(streams["logprobs"], streams["old_logprobs"]).exp()
        metrics["approx_kl"] = kl.k3(streams["old_logprobs"], streams["logprobs"])
        if {"clip_low", "clip_high"} <= set(names) and loss is not policy.cispo:  # it stops no gradient
            fraction = CLIP_FRACTIONS.get(loss, policy.clip_fraction)
            metrics["clip_fraction"] = call(fraction, streams, algorithm.settings)
    if "ref_logprobs" in streams:
        metrics["kl"] = kl.ESTIMATORS[algorithm.kl[0]](streams["logprobs"], streams["ref_logprobs"])
    return metrics
