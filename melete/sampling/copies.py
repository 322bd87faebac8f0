"""Copies of this process that write rows beside it, with the weights that the model has at the time."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Sequence

from torch import nn

from melete.machine.forks import Fork, Work
from melete.sampling.shared_weights import SharedWeights


class Copies:
    """Of a process with `model`: made when they are first asked for, and anew when anything but weights has changed."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.weights: SharedWeights | None = None
        self.forks: list[Fork] = []
        self._state: tuple[object, ...] = ()
        weakref.finalize(self, _close, self.forks)

    def ready(self, num: int, state: Sequence[object], work: Callable[[SharedWeights], Work]) -> Sequence[Fork]:
        """At most `num` copies, fewer where no more can be had, and the weights where they see them.

        A copy does `work(weights)` with its jobs; `state` is what else it depends on.
        """
        places = [tensor.data_ptr() for tensor in (*self.model.parameters(), *self.model.buffers())]
        if self.weights is None or (*state, *places) != self._state:
            self.close()
            self._state, self.weights = (*state, *places), SharedWeights(self.model)
        self.weights.put()
        with contextlib.suppress(OSError):  # no memory or no process to be had
            while len(self.forks) < num:
                self.forks.append(Fork(work(self.weights)))
        return self.forks[:num]

    def close(self) -> None:
        """Ends them all."""
        _close(self.forks)
        self.forks.clear()


def _close(forks: Sequence[Fork]) -> None:
    for fork in forks:
        fork.close()
