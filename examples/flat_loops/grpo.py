"""GRPO from top to bottom: a tiny GRU learns to count by reward alone. Only torch and `melete.functional`.

    python examples/flat_loops/grpo.py

The prompt is a digit; the completion that earns most counts on from it to 9 and then ends, so lengths differ. The
policy starts from random weights and never sees a right answer: it samples a group of completions per prompt, and
those that did better than their siblings become more likely.
"""

# ruff: noqa: T201
from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from melete.functional.advantages import group_mean_std, zero_signal_groups
from melete.functional.aggregate import aggregate, denominators
from melete.functional.kl import k3
from melete.functional.logprobs import logprobs
from melete.functional.policy import clip_fraction, clipped

END, VOCABULARY = 10, 11
LOWEST, MAX_NEW_TOKENS = 4, 8


class Policy(nn.Module):
    """Embedding, GRU, linear head: tokens [B, T] to the logits of the next token [B, T, V]."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, width), nn.Linear(width, VOCABULARY)
        self.gru = nn.GRU(width, width, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.gru(self.embed(tokens))[0])


@torch.no_grad()
def sample(policy: Policy, prompts: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Completions of prompts [B]: tokens [B, 1 + MAX_NEW_TOKENS] and the mask of what the policy wrote.

    The end token is written too, so it is in the mask; what follows it is padding.
    """
    tokens, running = prompts[:, None], torch.ones(len(prompts), dtype=torch.bool)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    for _ in range(MAX_NEW_TOKENS):
        p = policy(tokens)[:, -1].softmax(dim=-1)
        new = torch.where(running, torch.multinomial(p, 1, generator=generator)[:, 0], END)
        tokens, mask = torch.cat([tokens, new[:, None]], dim=1), torch.cat([mask, running[:, None]], dim=1)
        running = running & (new != END)
    return tokens, mask


def reward(tokens: list[int]) -> float:
    """The share of the right answer that a row [prompt, completion...] begins with.

    >>> reward([6, 7, 8, 9, END]), reward([6, 7, 8, 5, END]), reward([6, 8, 9, END])
    (1.0, 0.5, 0.0)
    """
    right, completion = [*range(tokens[0] + 1, 10), END], tokens[1:]
    matched = 0
    while matched < min(len(right), len(completion)) and completion[matched] == right[matched]:
        matched += 1
    return matched / len(right)


def train(num_steps: int, *, seed: int = 0, prompts_per_step: int = 10, group_size: int = 16) -> list[float]:
    """Returns the mean reward of each step."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    policy, reference = Policy(), Policy()
    reference.load_state_dict(policy.state_dict())
    optimizer = torch.optim.Adam(policy.parameters(), lr=5e-3)
    curve: list[float] = []
    for step in range(num_steps):
        # 1. sample a group of siblings for each prompt, and grade them
        prompts = torch.randint(LOWEST, 10, (prompts_per_step,), generator=generator).repeat_interleave(group_size)
        group_ids = torch.arange(prompts_per_step).repeat_interleave(group_size)
        tokens, mask = sample(policy, prompts, generator)
        rewards = torch.tensor([reward(row) for row in tokens.tolist()])
        # 2. credit: how much better than its siblings is a row? every token of the row gets the answer
        valid = torch.ones_like(rewards, dtype=torch.bool)
        advantages = group_mean_std(rewards, group_ids, valid)[:, None] * mask
        # 3. what the update compares with: the policy at its start, and the policy at the start of the run
        with torch.no_grad():
            old_logprobs = logprobs(policy(tokens), tokens)
            ref_logprobs = logprobs(reference(tokens), tokens)
        # 4. two updates of the same rollouts; the clip keeps the second one near the first
        for _ in range(2):
            current = logprobs(policy(tokens), tokens)
            losses = clipped(current, old_logprobs, advantages, clip_low=0.2, clip_high=0.2)
            losses = losses + 0.001 * k3(current, ref_logprobs)
            mode = "sequence_mean_token_mean"
            loss = aggregate(losses, mask, mode, denominators(mask, mode))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
        curve.append(float(rewards.mean()))
        if step % 10 == 0 or step == num_steps - 1:
            clip = float(clip_fraction(current, old_logprobs, advantages)[mask].mean())
            dead = float(zero_signal_groups(rewards, group_ids, valid).float().mean())
            example = " ".join("end" if t == END else str(t) for t in tokens[0, : 1 + int(mask[0].sum())].tolist())
            print(f"step {step:3d}  reward {curve[-1]:.2f}  dead groups {dead:.2f}  clipped {clip:.3f}  {example}")
    return curve


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the model is too small to share out
    train(arguments.num_steps, seed=arguments.seed)
