"""The loss of demonstrations, one value per token; masking and averaging belong to `aggregate`."""

from __future__ import annotations

from ._types import BT


def negative_log_likelihood(logprobs: BT) -> BT:
    """loss = -logprobs: maximum likelihood of the demonstrated tokens, SFT.

    >>> negative_log_likelihood(torch.tensor([[-0.5, -2.0]]))
    tensor([[0.5000, 2.0000]])
    """
    return -logprobs
