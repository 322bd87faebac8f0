"""What a learner is: it scores rows with its weights, and changes the weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

from melete.algorithms import Algorithm
from melete.algorithms.preference import PreferenceAlgorithm
from melete.batch import Batch, LabelledBatch, PairBatch, TokenRows, TrainBatch


class Learner(Protocol):
    """Holds the policy that is trained and, where one is asked for, the frozen reference."""

    def logprobs(self, batch: Batch | TrainBatch) -> Tensor:
        """Log-probs [B, T] of the tokens under `loss_mask` by the current weights, without gradient; 0 elsewhere."""
        ...

    def ref_logprobs(self, batch: Batch | TrainBatch) -> Tensor:
        """The same by the reference model."""
        ...

    def refresh_reference(self) -> None:
        """The reference becomes the current policy."""
        ...

    def remembering(self) -> AbstractContextManager[None]:
        """While what the next update is about is being written."""
        ...

    def update(self, batch: TrainBatch, algorithm: Algorithm) -> dict[str, float]:
        """One optimizer step; returns what to log. Raises `TrainingError` and changes nothing if it is not finite."""
        ...

    def weights(self) -> Mapping[str, Tensor]:
        """The current weights by name; not copies."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on exactly from here."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to a saved state."""
        ...


class Critic(Protocol):
    """Foretells the return of each token."""

    def values(self, batch: Batch | TrainBatch) -> Tensor:
        """The value [B, T] of the state before each token under `loss_mask`, without gradient; 0 elsewhere."""
        ...

    def update(self, batch: TrainBatch) -> dict[str, float]:
        """One optimizer step towards the stream `returns`, held near `old_values`; returns what to log."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on exactly from here."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to a saved state."""
        ...


class PairLearner(Protocol):
    """A policy that learns from preferences, beside a frozen reference."""

    def ref_sums(self, rows: TokenRows) -> Tensor:
        """The reference's log-probs summed over each completion [B]."""
        ...

    def update_pairs(self, batch: PairBatch, algorithm: PreferenceAlgorithm) -> dict[str, float]:
        """One optimizer step on the mean loss of the pairs."""
        ...

    def update_labelled(self, batch: LabelledBatch, algorithm: PreferenceAlgorithm) -> dict[str, float]:
        """One optimizer step on the mean loss of single completions."""
        ...

    def weights(self) -> Mapping[str, Tensor]:
        """The current weights by name; not copies."""
        ...


class Student(Protocol):
    """A policy that is moved towards a teacher."""

    def update(self, rows: TokenRows) -> dict[str, float]:
        """One optimizer step on the mean divergence over all completion tokens."""
        ...

    def weights(self) -> Mapping[str, Tensor]:
        """The current weights by name; not copies."""
        ...


class RewardLearner(Protocol):
    """A model that learns to score responses."""

    def update_rankings(self, rows: TokenRows, ranking_ids: Tensor, margins: Tensor | None = None) -> dict[str, float]:
        """One optimizer step on rankings: rows of one id stand together, best first; `margins` [B] of each row."""
        ...

    def update_pointwise(self, rows: TokenRows, labels: Tensor) -> dict[str, float]:
        """One optimizer step on responses with a label each [B]."""
        ...

    def update_steps(self, rows: TokenRows, step_labels: Tensor) -> dict[str, float]:
        """One optimizer step on the tokens under `rows.loss_mask`, each the last of a step, with labels [B, T]."""
        ...
