"""What a sampler is: prompts in tokens go in, completions in tokens come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from melete.types import Completion, SampleRequest, SamplingSettings

OnCompletion = Callable[[int, int, Completion], object]


class Sampler(Protocol):
    """Writes completions with the weights it was last given."""

    policy_version: int

    def sample(
        self,
        requests: Sequence[SampleRequest],
        settings: SamplingSettings,
        *,
        on_completion: OnCompletion | None = None,
    ) -> list[list[Completion]]:
        """For each request one completion per key, in order. The result depends on nothing but request and weights.

        `on_completion` hears of each as soon as it is written: number of the request, number of the key, completion.
        """
        ...

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        """From now on completions are written with these weights and carry this version."""
        ...
