"""Algorithms are rows of a table, not trainer classes.

settings.py  what can be set, with meaning, default and source
row.py       a row: credit, loss, settings, and what they need
table.py     the policy-gradient rows, and `resolve`
losses.py    the loss of each token under a row
"""

from melete.algorithms.losses import token_losses
from melete.algorithms.row import CREDIT_INPUTS, LOSS_INPUTS, Algorithm, Stream
from melete.algorithms.settings import AlgorithmSettings
from melete.algorithms.table import ALGORITHMS, CLIPPED, resolve

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
