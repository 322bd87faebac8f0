"""The learner of reward models: scores from rankings, from labels, or from labels of single steps."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from melete.batch import RankedRows, TokenRows
from melete.functional.reward_model import bradley_terry, pair_accuracy, pointwise
from melete.learning.optimizer import OptimizerSettings
from melete.learning.scoring import end_scores, scores_at, scores_at_end, stream_of
from melete.learning.updater import OneModel, Updater
from melete.parts import row_parts


class RewardModelLearner(OneModel):
    """Updates `model` in place; `center_coef` weighs the squared sum of a pair's scores, which keeps them near 0."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        optimizer: OptimizerSettings,
        max_tokens_per_microbatch: int = 8192,
        center_coef: float = 0.0,
    ) -> None:
        self.model, self.max_tokens, self.center_coef = model, max_tokens_per_microbatch, center_coef
        self.updater = Updater(model, optimizer)

    def update_rankings(self, rows: TokenRows, ranking_ids: Tensor, margins: Tensor | None = None) -> dict[str, float]:
        """One optimizer step on the mean loss of the rankings; a ranking's loss is the mean over its pairs.

        Rows of one id [B] stand in order, best first; a pair is a ranking of two. `margins` [B] is how far a row's
        score should be ahead of the rows behind it. Without margins and centring this is the loss of
        `functional.reward_model.ranking`. Metrics are means over all pairs, by the weights before the step.
        """
        batch = RankedRows(rows, ranking_ids, torch.zeros(rows.num_rows) if margins is None else margins)
        better, worse = batch.comparisons()
        num_rankings = max(len(ranking_ids[better].unique()), 1)
        scores = torch.zeros(rows.num_rows)

        def losses() -> Iterator[Tensor]:
            for part in batch.microbatches(self.max_tokens):
                picked = batch.select(part)
                found = self._scores(picked.rows)
                scores[part] = found.detach().float().cpu()
                yield _ranking_losses(picked, found, self.center_coef).sum() / num_rankings

        return self.updater.step(losses()) | _pair_metrics(scores[better], scores[worse])

    def update_pointwise(self, rows: TokenRows, labels: Tensor) -> dict[str, float]:
        """One optimizer step on the mean binary loss of completions that are good or not, each for itself."""
        labels, scores = labels.bool(), torch.zeros(rows.num_rows)
        if labels.shape != scores.shape:
            raise ValueError(f"labels must have one entry for each of the {rows.num_rows} rows")

        def losses() -> Iterator[Tensor]:
            for part in row_parts(rows.lengths, self.max_tokens):
                found = self._scores(rows.select(part))
                scores[part] = found.detach().float().cpu()
                yield pointwise(found, labels[part].to(found.device)).sum() / rows.num_rows

        return self.updater.step(losses()) | _accuracy(scores, labels)

    def update_steps(self, rows: TokenRows, step_labels: Tensor) -> dict[str, float]:
        """One optimizer step on the mean binary loss of single steps, each scored at its last token.

        `rows.loss_mask` marks those tokens; `step_labels` [B, T] says there which steps are right.
        """
        if step_labels.shape != rows.tokens.shape:
            raise ValueError(f"step_labels must have one entry for each token, {tuple(rows.tokens.shape)}")
        ends, labels = rows.loss_mask, step_labels.bool()
        num_steps = max(int(ends.sum()), 1)
        scores = torch.zeros(rows.tokens.shape)

        def losses() -> Iterator[Tensor]:
            for part in row_parts(rows.lengths, self.max_tokens):
                picked = rows.select(part).to(self.model.device)
                width, where = picked.tokens.shape[1], picked.loss_mask
                found = scores_at(self.model, picked.tokens, where)
                scores[part, :width] = found.detach().float().cpu()
                yield pointwise(found[where], labels[part, :width].to(where.device)[where]).sum() / num_steps

        return self.updater.step(losses()) | _accuracy(scores[ends], labels[ends])

    def scores(self, rows: TokenRows) -> Tensor:
        """The score [B] fp32 of each row at its last token, without gradient."""
        return end_scores(self.model, rows, self.max_tokens)

    def step_scores(self, rows: TokenRows) -> Tensor:
        """The scores [B, T] fp32 of the tokens under `rows.loss_mask`, each having read up to itself; 0 elsewhere."""
        return stream_of(rows, self.max_tokens, self.model, partial(scores_at, self.model))

    def _scores(self, rows: TokenRows) -> Tensor:
        device = self.model.device
        return scores_at_end(self.model, rows.tokens.to(device), rows.attention_mask.to(device))


def _ranking_losses(batch: RankedRows, scores: Tensor, center_coef: float) -> Tensor:
    """Each pair's loss divided by the number of pairs of its ranking, so that they add up to the rankings' losses."""
    better, worse = batch.comparisons()
    ids = batch.ranking_ids[better]
    num_pairs = (ids[:, None] == ids[None]).sum(dim=1).to(scores)
    margins = batch.margins[better].to(scores)
    return bradley_terry(scores[better], scores[worse], margins=margins, center_coef=center_coef) / num_pairs


def _pair_metrics(chosen: Tensor, rejected: Tensor) -> dict[str, float]:
    if not len(chosen):
        return {}
    return {
        "pair_accuracy": float(pair_accuracy(chosen, rejected)),
        "chosen_score": float(chosen.mean()),
        "rejected_score": float(rejected.mean()),
        "margin": float((chosen - rejected).mean()),
    }


def _accuracy(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Share of labels that a score above 0 (good) or not (bad) agrees with."""
    return {"label_accuracy": float(((scores > 0) == labels).float().mean())} if len(scores) else {}
