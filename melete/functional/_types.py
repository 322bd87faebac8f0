"""Names for the shapes in signatures: B rows, T tokens, V vocabulary, N positions picked out of B x T.

Every stream `x[:, t]` describes token `t`.
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

BT = Float[Tensor, "B T"]
BTV = Float[Tensor, "B T V"]
Mask = Bool[Tensor, "B T"] | Float[Tensor, "B T"]  # non-zero counts
TokenIds = Int[Tensor, "B T"]
Rows = Float[Tensor, "B"]
RowIds = Int[Tensor, "B"]
RowFlags = Bool[Tensor, "B"]
NV = Float[Tensor, "N V"]
N = Float[Tensor, "N"]
Targets = Int[Tensor, "N"]
Scalar = Float[Tensor, ""]
