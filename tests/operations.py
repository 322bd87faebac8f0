"""Operations of torch, counted: what only looks at memory in another way is not counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = ("view", "slice", "transpose", "t", "expand", "unsqueeze", "split", "select", "as_strided", "alias", "detach")


class Calls(TorchDispatchMode):
    """Counts the operations that do work, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return self.names.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not name.startswith(VIEWS) and "unsafe_view" not in name:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))
