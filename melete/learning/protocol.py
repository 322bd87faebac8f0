"""What a learner is: it scores rows with its weights, and changes the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from melete.algorithms import Algorithm
from melete.batch import Batch, TrainBatch


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
