"""What the forward pass costs, counted in operations and not in seconds: here a later change is seen to cost more."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from tiny_models import tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from melete.batch import TokenRows, masked_row
from melete.forward.layout import Layout, buckets_of
from melete.forward.memory import Memory
from melete.forward.rows import Prompts, Rows, lean_model
from melete.learning.scoring import score
from melete.sampling.native import NativeSampler
from melete.types import SampleRequest, SamplingSettings

VIEWS = ("view", "slice", "transpose", "t", "expand", "unsqueeze", "split", "select", "as_strided", "alias", "detach")


class Calls(TorchDispatchMode):
    """Counts the operations that do work: what only looks at memory in another way is not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not name.startswith(VIEWS) and "unsafe_view" not in name:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))


def model_of(num_layers: int) -> LlamaForCausalLM:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=128, num_hidden_layers=num_layers, **shape))


def operations_of_a_token(num_layers: int, prompt: tuple[int, ...]) -> int:
    lean = lean_model(model_of(num_layers))
    assert lean is not None
    lean.refresh()
    with torch.no_grad():
        rows = Rows(lean, Prompts(lean, [prompt]), torch.zeros(3, dtype=torch.long))
        rows.step(torch.tensor([5, 6, 7]))
        with Calls() as calls:
            rows.step(torch.tensor([5, 6, 7]))
    return calls.names.total()


@pytest.mark.parametrize(("prompt_length", "most"), [(8, 24), (100, 32)])
def test_a_layer_writes_a_token_in_few_operations(prompt_length: int, most: int) -> None:
    """Small models wait for calls, not for products; a dozen more would be felt."""
    prompt = tuple(range(5, 5 + prompt_length))
    of_a_layer = operations_of_a_token(3, prompt) - operations_of_a_token(2, prompt)
    assert 10 < of_a_layer <= most


def test_a_token_is_noted_in_few_operations() -> None:
    """A copy of a layer's share and nothing else: the rest is computed in its place."""
    most = {True: 0, False: 0}
    for noted in most:
        of_layers = []
        for num_layers in (2, 3):
            lean = lean_model(model_of(num_layers))
            assert lean is not None
            lean.refresh()
            memory = Memory(lean)
            with torch.no_grad(), memory.opened():
                notes = memory.lane(0, 1) if noted else None
                prompts = Prompts(lean, [tuple(range(5, 105))], notes)
                rows = Rows(lean, prompts, torch.zeros(3, dtype=torch.long), notes)
                rows.step(torch.tensor([5, 6, 7]))
                with Calls() as calls:
                    rows.step(torch.tensor([5, 6, 7]))
            of_layers.append(calls.names.total())
        most[noted] = of_layers[1] - of_layers[0]
    assert most[False] - 1 <= most[True] <= most[False] + 1


def test_an_update_on_what_was_remembered_has_no_forward_pass_over_it() -> None:
    """Of a layer, 3 times the products of its weights; with a memory all but those of the last two once more."""
    model = model_of(2)
    torch.manual_seed(0)
    sampler = NativeSampler(model, tokenizer())
    sampler.end_tokens = torch.tensor([-1])
    assert sampler.memory is not None
    requests = [SampleRequest(tuple(range(5, 45)), tuple(range(8)))]
    with sampler.memory.opened():
        found = sampler.sample(requests, SamplingSettings(60))[0]
    rows = TokenRows.pack([masked_row(requests[0].prompt_tokens, one.tokens) for one in found], 0)
    costs = []
    for memory in (None, sampler.memory):
        with FlopCounterMode(display=False) as counter:
            score(model, rows.tokens, rows.loss_mask, 1.0, memory=memory).logprobs.sum().backward()
        costs.append(counter.get_total_flops())
    assert costs[1] < 0.95 * costs[0]


def flops(num_siblings: int, prompt_length: int, length: int) -> int:
    """Of scoring a group forward and backward."""
    model = model_of(2)
    torch.manual_seed(0)
    prompt = torch.randint(5, 100, (1, prompt_length)).expand(num_siblings, -1)
    tokens = torch.cat([prompt, torch.randint(5, 100, (num_siblings, length))], dim=1)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, prompt_length:] = True
    with FlopCounterMode(display=False) as counter:
        score(model, tokens, mask, 1.0).logprobs.sum().backward()
    return counter.get_total_flops()


def test_a_long_prompt_is_paid_for_once_whatever_the_group() -> None:
    """Twice the siblings cost far less than twice as much."""
    two, four, eight = (flops(size, 200, 10) for size in (2, 4, 8))
    assert four < 1.25 * two and eight < 1.45 * two
    assert flops(8, 1, 100) == pytest.approx(8 * flops(1, 1, 100), rel=0.02)


def test_the_cost_grows_with_the_tokens_and_no_faster() -> None:
    per_token = [flops(size, 4, 50) / (size * 50) for size in (4, 16, 64)]
    assert per_token == pytest.approx([per_token[0]] * 3, rel=0.03)


def test_attention_pads_little_when_lengths_are_spread() -> None:
    """Rows of 1 to 256 tokens behind a prompt of 150: places looked at, against what they would be without padding."""
    lengths = [1 + (row * 37) % 256 for row in range(48)]
    wanted = sum(length * (150 + length) for length in lengths)
    buckets = buckets_of(lengths, 150)
    looked_at = sum(len(rows) * (most := max(lengths[row] for row in rows)) * (150 + most) for rows in buckets)
    assert sorted(row for rows in buckets for row in rows) == list(range(48))
    assert looked_at < 1.2 * wanted < 48 * 256 * 406 / 1.5
    assert len(buckets) <= 10


def test_a_layout_holds_each_token_once_and_no_padding() -> None:
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 3, 7, 0, 0], [1, 2, 8, 9, 9, 0]])
    where = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0]]).bool()
    layout = Layout.of(tokens, where)
    assert sorted(layout.tokens.tolist()) == [1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 9]
    assert layout.tokens[layout.wanted].tolist() == tokens[where].tolist()
