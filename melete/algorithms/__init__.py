"""Algorithms are rows of a table, not trainer classes.

settings.py  what can be set, with meaning, default and source
row.py       a row: credit, loss, settings, and what they need
table.py     the policy-gradient rows, and `resolve`
losses.py    the loss of each token under a row; this needs torch, the table does not
late.py      functions that a table names before torch is loaded
"""

from typing import TYPE_CHECKING, Any

from melete.algorithms.row import CREDIT_INPUTS, LOSS_INPUTS, Algorithm, Stream
from melete.algorithms.settings import AlgorithmSettings
from melete.algorithms.table import ALGORITHMS, CLIPPED, resolve

if TYPE_CHECKING:
    from melete.algorithms.losses import token_losses

__all__ = [
    "ALGORITHMS",
    "CLIPPED",
    "CREDIT_INPUTS",
    "LOSS_INPUTS",
    "Algorithm",
    "AlgorithmSettings",
    "Stream",
    "resolve",
    "token_losses",
]


def __getattr__(name: str) -> Any:
    if name == "token_losses":
        from melete.algorithms.losses import token_losses

        return token_losses
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
