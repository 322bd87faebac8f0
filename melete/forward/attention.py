"""What the tokens of a layout take from those before them: bucket by bucket, or in one call where there is a kernel.

The kernel for sequences of different lengths (FlashAttention 2, arXiv:2307.08691) needs no padding and no masks; it is
there for 16 bits on a GPU. Elsewhere rows of similar length are padded to one product, and what is whole in itself, a
beginning or a row that shares none, is told to be causal, which takes half as long as a mask if it is long.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, cached_property
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from melete.forward.architectures import Heads
from melete.forward.layout import Layout, Sequences

SHORT = 32  # keys up to which plain products are faster on a CPU than its fused kernel
MOST_WIDE = 256  # heads that the kernel for sequences takes
_CAUSAL = (-1, 0)  # everything to the left and nothing to the right, counted from the end of the keys


class Attention:
    """Attention over a layout, for all layers of a model: what masks it needs is made once."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def __call__(self, found: Heads, scale: float) -> Tensor:
        """What each token [N] takes from those before it: [N, H * E]."""
        if has_kernel(found):
            taken = in_one_call(found, self._sequences, scale).flatten(1)
            return torch.cat([taken, taken.new_zeros(self.layout.num_idle, taken.shape[1])])
        return self._by_bucket(found, scale)

    @cached_property
    def _sequences(self) -> Sequences:
        return Sequences.of(self.layout)

    @cached_property
    def _masks(self) -> list[Tensor | None]:
        return [bucket.mask() for bucket in self.layout.rests]

    def _by_bucket(self, found: Heads, scale: float) -> Tensor:
        layout = self.layout
        sizes = [len(layout.beginnings.places), *(len(bucket.grid.places) for bucket in layout.rests), layout.num_idle]
        first, *shares, _idle = zip(*(stream.split(sizes) for stream in found), strict=True)
        q, k, v = (layout.beginnings.padded(stream).transpose(1, 2) for stream in first)
        taken: list[Tensor] = []
        if layout.beginnings.width:
            taken.append(layout.beginnings.flat(attend(q, k, v, None, scale).transpose(1, 2)).flatten(1))
        for bucket, mask, part in zip(layout.rests, self._masks, shares, strict=True):
            own_q, keys, values = (bucket.grid.padded(stream).transpose(1, 2) for stream in part)
            if bucket.width:
                begun = (states[:, :, : bucket.width].index_select(0, bucket.beginning_of) for states in (k, v))
                keys, values = (torch.cat(both, dim=2) for both in zip(begun, (keys, values), strict=True))
            rest = attend(own_q, keys, values, mask, scale)
            taken.append(bucket.grid.flat(rest.transpose(1, 2)).flatten(1))
        return torch.cat([*taken, q.new_zeros(layout.num_idle, q.shape[1] * v.shape[3])])


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(scale q k^T) v: q [B, H, T, D], k [B, K, L, D], v [B, K, L, E], mask [B or 1, 1, T, L].

    Without a mask each of T = L tokens looks at those up to itself.
    """
    k, v = (_spread(states, q.shape[1] // k.shape[1]) for states in (k, v))
    is_long = k.shape[2] > SHORT and q.shape[-1] == v.shape[-1]  # the kernel has no form for unequal sizes
    if is_long or q.device.type != "cpu":
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)
    scores = (q * scale) @ k.transpose(2, 3)
    scores += _causal_bias(k.shape[2], q.dtype) if mask is None else added_to_scores(mask, q.dtype)
    return scores.softmax(dim=-1) @ v


def attend_and_sum(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """What `attend` gives without a mask on a CPU, and the logs [B, H, T] of the sums of exponentials."""
    spread = (_spread(states, q.shape[1] // k.shape[1]) for states in (k, v))
    taken, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, *spread, is_causal=True, scale=scale)
    return taken if k.shape[2] > SHORT else attend(q, k, v, None, scale), sums


def added_to_scores(mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """0 where a token may look and -inf elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


def _causal_bias(size: int, dtype: torch.dtype) -> Tensor:
    return torch.full((size, size), -torch.inf, dtype=dtype).triu_(1)


def _spread(states: Tensor, group: int) -> Tensor:
    """Keys or values [., K, ...] for every query head [., K * group, ...]."""
    return states if group == 1 else states.repeat_interleave(group, dim=1)


def has_kernel(found: Heads) -> bool:
    """Whether there is a kernel for sequences of different lengths with such heads."""
    q, _, v = found
    size = q.shape[-1]
    fits = size == v.shape[-1] and size % 8 == 0 and size <= MOST_WIDE
    return fits and q.dtype in (torch.bfloat16, torch.float16) and _is_recent(q.device)


def in_one_call(found: Heads, sequences: Sequences, scale: float) -> Tensor:
    """What the tokens of all sequences [M, H, E] take from what each of them sees, the first M of those in `found`."""
    q, k, v = found
    if sequences.seen is None:
        k, v = k[: sequences.num_tokens], v[: sequences.num_tokens]
    else:
        k, v = (states.index_select(0, sequences.seen) for states in (k, v))
    attended, is_told = _kernel()
    more = {"enable_gqa": q.shape[1] != k.shape[1]} if is_told else {}
    if not is_told:
        k, v = (_spread(states, q.shape[1] // k.shape[1]) for states in (k, v))
    ends, longest = (sequences.ends, sequences.seen_ends), (sequences.longest, sequences.most_seen)
    return attended(q[: sequences.num_tokens], k, v, *ends, *longest, scale=scale, window_size=_CAUSAL, **more)


@cache
def _is_recent(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


@cache
def _kernel() -> tuple[Callable[..., Tensor], bool]:
    """FlashAttention's function, and whether it is told that queries share keys; an older one wants keys for each."""
    from torch.nn.attention.varlen import varlen_attn  # takes a second, which no CPU needs to wait

    return cast(Callable[..., Tensor], varlen_attn), "enable_gqa" in inspect.signature(varlen_attn).parameters
