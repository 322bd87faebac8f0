"""The learner of preferences: a policy, a frozen reference, and losses of pairs."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from melete.algorithms.preference import PreferenceAlgorithm, pair_metrics
from melete.batch import LabelledBatch, PairBatch, TokenRows
from melete.functional.preference import kto_baseline
from melete.learning.optimizer import OptimizerSettings
from melete.learning.scoring import score, score_batch
from melete.learning.updater import OneModel, Updater
from melete.models.adapters import has_adapter, without_adapter
from melete.parts import row_parts


class PreferenceLearner(OneModel):
    """Updates `model` in place; the reference is the model as it was at the start, or without its adapter.

    `temperature` divides the logits of the policy and of the reference alike.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        optimizer: OptimizerSettings,
        max_tokens_per_microbatch: int = 8192,
        temperature: float = 1.0,
        after_step: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        self.model, self.max_tokens, self.temperature = model, max_tokens_per_microbatch, temperature
        self.updater = Updater(model, optimizer, after_step=after_step)
        self.reference = None if has_adapter(model) else copy.deepcopy(model).requires_grad_(False)

    def ref_sums(self, rows: TokenRows) -> Tensor:
        """The reference's log-probs summed over each completion [B]: fixed, so they are computed once and kept."""
        if self.reference is None:
            with without_adapter(self.model):
                return score_batch(self.model, rows, self.max_tokens, self.temperature).sum(dim=1)
        return score_batch(self.reference, rows, self.max_tokens, self.temperature).sum(dim=1)

    def update_pairs(self, batch: PairBatch, algorithm: PreferenceAlgorithm) -> dict[str, float]:
        """One optimizer step on the mean loss of the pairs; returns what to log, means over pairs."""
        sums: defaultdict[str, float] = defaultdict(float)

        def losses() -> Iterator[Tensor]:
            for part in batch.microbatches(self.max_tokens):
                inputs = self._pair_inputs(part)
                for name, total in pair_metrics(algorithm, inputs).items():
                    sums[name] += total.item()
                yield algorithm.losses(inputs).sum() / batch.num_pairs

        metrics = self.updater.step(losses())
        return metrics | {name: total / batch.num_pairs for name, total in sums.items()}

    def _pair_inputs(self, part: PairBatch) -> dict[str, Tensor]:
        sums = self._sums(part.rows)
        chosen, rejected = sums.view(-1, 2).unbind(dim=1)
        ref_chosen, ref_rejected = part.ref_sums.to(sums).view(-1, 2).unbind(dim=1)
        chosen_lengths, rejected_lengths = part.rows.loss_mask.sum(dim=1).to(sums).view(-1, 2).unbind(dim=1)
        return {
            "chosen_logprobs": chosen,
            "rejected_logprobs": rejected,
            "ref_chosen_logprobs": ref_chosen,
            "ref_rejected_logprobs": ref_rejected,
            "chosen_lengths": chosen_lengths,
            "rejected_lengths": rejected_lengths,
        }

    def update_labelled(self, batch: LabelledBatch, algorithm: PreferenceAlgorithm) -> dict[str, float]:
        """One optimizer step on the mean loss of single completions (KTO)."""
        num_rows = batch.rows.num_rows
        mismatched = score_batch(self.model, batch.mismatched, self.max_tokens, self.temperature).sum(dim=1)
        baseline = kto_baseline(mismatched, batch.mismatched_ref_sums)
        rewards = torch.zeros(num_rows)

        def losses() -> Iterator[Tensor]:
            for part in row_parts(batch.rows.lengths, self.max_tokens):
                sums = self._sums(batch.rows.select(part))
                ref, desirable = batch.ref_sums[part].to(sums), batch.desirable[part].to(sums.device)
                rewards[part] = algorithm.settings.beta * (sums.detach() - ref).cpu()
                inputs = {"logprobs": sums, "ref_logprobs": ref, "desirable": desirable}
                yield algorithm.losses(inputs | {"kl_baseline": baseline.to(sums)}).sum() / num_rows

        metrics = self.updater.step(losses())
        good, bad = rewards[batch.desirable], rewards[~batch.desirable]
        means = {"chosen_reward": good, "rejected_reward": bad}
        logged = {name: float(values.mean()) for name, values in means.items() if len(values)}
        return metrics | logged | {"kl_baseline": float(baseline)}

    def _sums(self, rows: TokenRows) -> Tensor:
        moved = rows.to(self.model.device)
        return score(self.model, moved.tokens, moved.loss_mask, self.temperature).logprobs.sum(dim=1)

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer, place in the schedule and reference; not copies."""
        reference = None if self.reference is None else self.reference.state_dict()
        return super().state_dict() | {"reference": reference}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to a saved state, bit for bit."""
        super().load_state_dict(state)
        if self.reference is not None:
            self.reference.load_state_dict(state["reference"])
