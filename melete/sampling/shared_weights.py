"""The weights of a model, where copies of this process see them change."""

from __future__ import annotations

import mmap
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_ALIGNMENT = 64


class SharedWeights:
    """What a model's weights were when they were last put here; `number` counts how often."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors = list(_different([*model.parameters(), *model.buffers()]))
        self.number = 0
        self._versions = self._present_versions()
        sizes = [-(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT for tensor in self.tensors]
        shared, at = mmap.mmap(-1, max(sum(sizes), mmap.PAGESIZE)), 0
        self._places: list[Tensor] = []
        with torch.inference_mode(False):
            for tensor, size in zip(self.tensors, sizes, strict=True):
                flat = torch.frombuffer(shared, dtype=tensor.dtype, count=tensor.numel(), offset=at)
                self._places.append(flat.view(tensor.shape))
                at += size

    def _present_versions(self) -> list[int]:
        return [tensor._version for tensor in self.tensors]

    def put(self) -> None:
        """Puts the present weights here, if they are others than before."""
        versions = self._present_versions()
        if versions != self._versions:
            with torch.no_grad():
                for place, tensor in zip(self._places, self.tensors, strict=True):
                    place.copy_(tensor)
            self.number += 1
            self._versions = versions

    def take(self) -> None:
        """In a copy of the process: the model has the weights that are here, now and whenever they change."""
        for place, tensor in zip(self._places, self.tensors, strict=True):
            tensor.data = place


def _different(tensors: Iterable[Tensor]) -> Iterable[Tensor]:
    """Each once; those without a number are left out."""
    seen: set[int] = set()
    for tensor in tensors:
        if tensor.numel() and id(tensor) not in seen:
            seen.add(id(tensor))
            yield tensor
