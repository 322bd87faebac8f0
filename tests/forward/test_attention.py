"""Attention over a layout: in one call for sequences of different lengths, or by bucket, whole rows without a mask."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from forward_kinds import KINDS
from tiny_models import llama
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from melete.forward import attention
from melete.forward.architectures import Heads
from melete.forward.attention import Attention, has_kernel
from melete.forward.layout import Layout, Sequences
from melete.forward.trunk import states, states_at


def three_with_one_beginning_and_one_alone() -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    tokens = torch.randint(5, 300, (5, 40))
    tokens[1:3, :7] = tokens[0, :7]
    where = torch.zeros(5, 40, dtype=torch.bool)
    for row, (start, end) in enumerate([(6, 39), (6, 20), (6, 9), (3, 38), (0, 0)]):
        where[row, start:end] = True
    return tokens, where


def kernel(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, seen_ends: Tensor, longest: int, most_seen: int) -> Tensor:
    """What FlashAttention's function for sequences of different lengths gives, causal, scaled by 1."""
    assert ends.dtype == seen_ends.dtype == torch.int32 and len(q) == ends[-1] and len(k) == len(v) == seen_ends[-1]
    assert int(ends.diff().min()) > 0, "a sequence has tokens"
    assert (int(ends.diff().max()), int(seen_ends.diff().max())) == (longest, most_seen)
    taken: list[Tensor] = []
    for start, end, first, last in zip(ends, ends[1:], seen_ends, seen_ends[1:], strict=False):
        scores = torch.einsum("thd,lhd->htl", q[start:end], k[first:last])
        allowed = torch.ones(scores.shape[1:], dtype=torch.bool).tril(scores.shape[2] - scores.shape[1])
        taken.append(torch.einsum("htl,lhe->the", scores.masked_fill(~allowed, -torch.inf).softmax(-1), v[first:last]))
    return torch.cat(taken)


def old(*args: Any, scale: float, window_size: tuple[int, int]) -> Tensor:
    assert window_size == (-1, 0) and args[0].shape[1] == args[1].shape[1]
    return kernel(args[0] * scale, *args[1:])


def new(*args: Any, scale: float, window_size: tuple[int, int], enable_gqa: bool) -> Tensor:
    q, k, v, *rest = args
    assert enable_gqa == (q.shape[1] != k.shape[1])
    k, v = (states.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for states in (k, v))
    return old(q, k, v, *rest, scale=scale, window_size=window_size)


@pytest.fixture(params=[old, new])
def with_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    calls: list[int] = []

    def counted(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any, **said: Any) -> Tensor:
            calls.append(len(args[0]))
            return function(*args, **said)

        call.__signature__ = inspect.signature(function)  # pyright: ignore[reportFunctionMemberAccess]
        return call

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", counted(request.param))
    monkeypatch.setattr(attention, "has_kernel", lambda found: found.queries.shape[-1] == found.values.shape[-1])
    attention._kernel.cache_clear()  # pyright: ignore[reportPrivateUsage]
    yield calls
    attention._kernel.cache_clear()  # pyright: ignore[reportPrivateUsage]


def gradients(trunk: Any, found: Tensor) -> list[Tensor]:
    torch.manual_seed(0)
    trunk.zero_grad()
    (found * torch.randn(found.shape)).sum().backward()
    return [parameter.grad.clone() for parameter in trunk.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("multiple", [1, 32])
def test_one_call_for_all_sequences_gives_the_numbers_of_the_plain_pass(
    kind: str, multiple: int, with_kernel: list[int]
) -> None:
    trunk = KINDS[kind]().base_model
    tokens, where = three_with_one_beginning_and_one_alone()
    layout = Layout.of(tokens, where, multiple=multiple)
    found = states(trunk, layout)
    expected = trunk(input_ids=tokens, use_cache=False).last_hidden_state[where]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    if hasattr(trunk.layers[0].self_attn, "kv_b_proj"):
        assert not with_kernel, "of latent attention queries and values differ in size"
    else:
        assert with_kernel == [len(layout.tokens) - layout.num_idle] * trunk.config.num_hidden_layers
    torch.testing.assert_close(gradients(trunk, found), gradients(trunk, expected), rtol=1e-4, atol=1e-4)


def test_rows_that_share_nothing_see_their_own_tokens_where_they_stand() -> None:
    tokens, where = three_with_one_beginning_and_one_alone()
    alone = Sequences.of(Layout.of(tokens[2:], where[2:]))
    assert alone.seen is None and torch.equal(alone.ends, alone.seen_ends)
    assert (alone.num_tokens, alone.longest, alone.most_seen) == (9 + 38, 38, 38)
    shared = Sequences.of(Layout.of(tokens, where))
    assert shared.ends.diff().tolist() == [7, 32, 13, 2, 38]
    assert shared.seen_ends.diff().tolist() == [7, 39, 20, 9, 38]
    assert shared.seen is not None and shared.seen[7:14].tolist() == list(range(7)), "the beginning, seen by its row"


def test_nothing_at_all_is_laid_out() -> None:
    tokens, where = three_with_one_beginning_and_one_alone()
    layout = Layout.of(tokens[4:], where[4:])
    assert (len(layout.tokens), layout.rests) == (0, ())


def test_the_kernel_is_for_sixteen_bits_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """And its function takes what it is told here."""
    assert {"scale", "window_size"} <= set(inspect.signature(varlen_attn).parameters)
    few = torch.zeros(3, 4, 16)
    assert not has_kernel(Heads(few, few, few)) and not has_kernel(Heads(*[few.bfloat16()] * 3))
    monkeypatch.setattr(attention, "_is_recent", lambda device: True)  # pyright: ignore[reportUnknownLambdaType]
    assert has_kernel(Heads(*[few.bfloat16()] * 3)) and not has_kernel(Heads(few, few, few))
    odd, wide = torch.zeros(3, 4, 20).bfloat16(), torch.zeros(3, 4, 512).bfloat16()
    assert not has_kernel(Heads(*[odd] * 3)) and not has_kernel(Heads(*[wide] * 3))
    assert not has_kernel(Heads(few.bfloat16(), few.bfloat16(), odd)), "latent attention"


def test_whole_rows_need_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long row that shares nothing is told to be causal: with a mask its attention takes twice as long."""
    asked: list[tuple[int, bool]] = []
    fused = attention.scaled_dot_product_attention

    def noted(q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor | None, is_causal: bool, scale: float) -> Tensor:
        asked.append((q.shape[2], attn_mask is None and is_causal))
        return fused(q, k, v, attn_mask=attn_mask, is_causal=is_causal, scale=scale)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", noted)
    torch.manual_seed(3)
    tokens = torch.randint(5, 300, (2, 60))
    states_at(llama().base_model, tokens, torch.ones_like(tokens).bool())
    assert asked == [(60, True)] * llama().config.num_hidden_layers
    asked.clear()
    tokens[1, :50] = tokens[0, :50]
    where = torch.zeros_like(tokens).bool()
    where[:, 49:] = True
    states_at(llama().base_model, tokens, where)
    assert (50, True) in asked and (10, False) in asked, "a beginning, and what is left behind it"


def test_masks_are_made_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, where = three_with_one_beginning_and_one_alone()
    attend = Attention(Layout.of(tokens, where))
    heads = Heads(*torch.randn(3, len(attend.layout.tokens), 2, 8).unbind())
    first = attend(heads, 0.3)
    monkeypatch.setattr("melete.forward.layout.Bucket.mask", None)
    torch.testing.assert_close(attend(heads, 0.3), first, rtol=0, atol=0)
