"""SFT from top to bottom: a tiny GRU learns to count from demonstrations. Only torch and `melete.functional`.

    python examples/flat_loops/sft.py

The prompt is a digit d; the demonstrated completion is d+1, d+2, ... for one to four numbers (after 9 comes 0) and the
end token. The number of numbers is the second token of the prompt. Rows differ in length, so the batch is split into
micro-batches whose gradients add up to that of the whole: the denominator is counted once, for all of them.
"""

# ruff: noqa: T201
from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from melete.functional.aggregate import aggregate, denominators
from melete.functional.logprobs import logprobs
from melete.functional.supervised import negative_log_likelihood

END, VOCABULARY, MAX_NUMBERS = 10, 11, 4
PROMPT_TOKENS = 2


class Model(nn.Module):
    """Embedding, GRU, linear head: tokens [B, T] to the logits of the next token [B, T, V]."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, width), nn.Linear(width, VOCABULARY)
        self.gru = nn.GRU(width, width, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.gru(self.embed(tokens))[0])


def demonstration(start: int, count: int) -> list[int]:
    """Prompt [start, count] and the completion that it asks for.

    >>> demonstration(8, 3)
    [8, 3, 9, 0, 1, 10]
    """
    return [start, count, *((start + i) % 10 for i in range(1, count + 1)), END]


def pack(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Rows padded on the right, and the mask of the completions: prompts and padding are not learnt."""
    width = max(map(len, rows))
    tokens = torch.tensor([row + [END] * (width - len(row)) for row in rows])
    position = torch.arange(width)[None]
    return tokens, (position >= PROMPT_TOKENS) & (position < torch.tensor([len(row) for row in rows])[:, None])


@torch.no_grad()
def exact_match(model: Model, rows: list[list[int]]) -> float:
    """The share of prompts that the model completes to the last token, taking the likeliest token each time."""
    right = 0
    for row in rows:
        tokens = row[:PROMPT_TOKENS]
        while tokens[-1] != END and len(tokens) < PROMPT_TOKENS + MAX_NUMBERS + 1:
            tokens = [*tokens, int(model(torch.tensor([tokens]))[0, -1].argmax())]
        right += tokens == row
    return right / len(rows)


def train(num_steps: int, *, seed: int = 0, rows_per_step: int = 32, rows_per_microbatch: int = 8) -> list[float]:
    """Returns the loss of each step."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    everything = [demonstration(start, count) for start in range(10) for count in range(1, MAX_NUMBERS + 1)]
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    curve: list[float] = []
    for step in range(num_steps):
        chosen = torch.randint(len(everything), (rows_per_step,), generator=generator).tolist()
        # rows of similar length together, so that little is padded
        tokens, mask = pack(sorted((everything[i] for i in chosen), key=len))
        totals = denominators(mask, "token_mean")
        optimizer.zero_grad()
        total = 0.0
        for rows, kept in zip(tokens.split(rows_per_microbatch), mask.split(rows_per_microbatch), strict=True):
            losses = negative_log_likelihood(logprobs(model(rows), rows))
            loss = aggregate(losses, kept, "token_mean", totals)
            loss.backward()
            total += float(loss.detach())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        curve.append(total)
        if step % 20 == 0 or step == num_steps - 1:
            print(f"step {step:3d}  loss {total:.3f}  exact match {exact_match(model, everything):.2f}")
    return curve


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the model is too small to share out
    train(arguments.num_steps, seed=arguments.seed)
