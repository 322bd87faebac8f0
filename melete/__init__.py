"""Melete post-trains language models: from a base model to a reasoning one.

>>> import melete
>>> result = melete.sft(model="tiny", data="my.jsonl", lr=1e-4)  # doctest: +SKIP
>>> model, tokenizer = result.load()  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from melete.api import Result, Run, distill, dpo, evaluate, generate, reject, rl, rm, run, sft

__all__ = ["Result", "Run", "distill", "dpo", "evaluate", "generate", "reject", "rl", "rm", "run", "sft"]


def __getattr__(name: str) -> Any:
    """Loaded when they are first asked for, so that `import melete` costs nothing."""
    if name in __all__:
        from melete import api

        return getattr(api, name)
    raise AttributeError(f"module 'melete' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
