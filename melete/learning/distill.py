"""The learner of distillation: a student's distribution is moved towards a teacher's at every position."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from melete.batch import TokenRows
from melete.functional import distill
from melete.functional.logprobs import logprobs_at
from melete.learning.optimizer import OptimizerSettings
from melete.learning.scoring import logits_at
from melete.learning.updater import OneModel, Updater
from melete.parts import row_parts

Divergence = Literal["sequence", "forward_kl", "reverse_kl", "jsd"]


class DistillLearner(OneModel):
    """Updates the student in place; teacher and student share a vocabulary.

    Divergence "sequence" copies the tokens themselves (maximum likelihood) and never asks the teacher about them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        teacher: PreTrainedModel,
        *,
        optimizer: OptimizerSettings,
        divergence: Divergence,
        jsd_beta: float = 0.5,
        temperature: float = 1.0,
        max_tokens_per_microbatch: int = 8192,
        after_step: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        self.model, self.max_tokens = model, max_tokens_per_microbatch
        self.teacher = teacher.requires_grad_(False).eval()
        self.divergence, self.jsd_beta, self.temperature = divergence, jsd_beta, temperature
        self.updater = Updater(model, optimizer, after_step=after_step)

    def update(self, rows: TokenRows) -> dict[str, float]:
        """One optimizer step on the mean divergence over all completion tokens."""
        num_tokens = max(int(rows.loss_mask.sum()), 1)

        def losses() -> Iterator[Tensor]:
            for part in row_parts(rows.lengths, self.max_tokens):
                picked = rows.select(part).to(self.model.device)
                predicted = picked.loss_mask[:, 1:]
                logits = logits_at(self.model, picked.tokens, predicted)
                if self.divergence == "sequence":
                    yield -logprobs_at(logits, picked.tokens[:, 1:][predicted]).sum() / num_tokens
                    continue
                with torch.no_grad():
                    wanted = logits_at(self.teacher, picked.tokens, predicted)
                yield self._divergence(logits, wanted).sum() / num_tokens

        return self.updater.step(losses()) | {"num_tokens": float(num_tokens)}

    def _divergence(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        if self.divergence == "forward_kl":
            return distill.forward_kl(logits, teacher_logits, temperature=self.temperature)
        if self.divergence == "reverse_kl":
            return distill.reverse_kl(logits, teacher_logits, temperature=self.temperature)
        return distill.generalized_jsd(logits, teacher_logits, jsd_beta=self.jsd_beta, temperature=self.temperature)
