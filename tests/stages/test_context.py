"""What every stage needs from its run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from melete.machine import threads
from melete.stages.context import fit_threads


class Sized:
    """Something that has parameters."""

    def __init__(self, count: int) -> None:
        self.count = count

    def num_parameters(self) -> int:
        return self.count


def test_a_large_model_after_a_small_one_has_all_threads_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MELETE_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    before = torch.get_num_threads()
    small: Any = Sized(threads.SMALL_MODEL - 1)
    large: Any = Sized(threads.SMALL_MODEL)
    try:
        fit_threads(small)
        assert torch.get_num_threads() == 1
        fit_threads(large)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
