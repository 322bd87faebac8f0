"""PPO from top to bottom: the bundled model learns to think before it answers; only `functional` is imported.

    python examples/flat_loops/ppo.py

The prompt is a sum of five digits; a completion that ends in the right answer earns 1. The bundled model answers at
once or writes its steps down first, as it happens. The critic is a second copy of the model with a scalar head: it
foretells at each token what the row will earn, and what comes better than foretold becomes more likely.
"""

# ruff: noqa: T201
from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from melete.functional.aggregate import aggregate, denominators
from melete.functional.kl import k1
from melete.functional.logprobs import logprobs
from melete.functional.policy import clip_fraction, clipped
from melete.functional.value import explained_variance, gae, token_rewards, value_loss, whiten

MODEL = Path(__file__).parents[2] / "melete" / "data" / "tiny-base"
NUM_DIGITS, MAX_NEW_TOKENS = 5, 48
KL_COEF, GAMMA, GAE_LAMBDA = 0.001, 1.0, 1.0
CLIP, VALUE_CLIP = 0.2, 0.2
NUM_EPOCHS, ROWS_PER_MINIBATCH = 2, 24


class Critic(nn.Module):
    """The model with a scalar head: tokens [B, T] to values [B, T], each of the state before its token."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = AutoModel.from_pretrained(MODEL)
        self.head = nn.Linear(self.trunk.config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        states = self.trunk(tokens, use_cache=False).last_hidden_state
        # the state before token t is what the model has read up to t - 1
        return nn.functional.pad(self.head(states[:, :-1])[:, :, 0], (1, 0))


def reward(question: str, completion: str) -> float:
    """1 for the right answer in its tags, and for nothing after it.

    >>> reward("1+2+3=?", "<answer>6</answer>"), reward("1+2+3=?", "<answer>5</answer>"), reward("1+2+3=?", "6")
    (1.0, 0.0, 0.0)
    """
    found = re.fullmatch(r"(?:.*\n)*<answer>(\d+)</answer>", completion)
    return float(found is not None and int(found[1]) == sum(map(int, question.removesuffix("=?").split("+"))))


@torch.no_grad()
def sample(policy: nn.Module, prompts: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """Completions of prompts [B, N], all of one length: tokens [B, T], and the mask of what the policy wrote."""
    tokens = policy.generate(prompts, do_sample=True, top_k=0, max_new_tokens=MAX_NEW_TOKENS)
    after = torch.arange(tokens.shape[1])[None] >= prompts.shape[1]
    # the end token is written too, so it is in the mask; what follows it is padding
    ended_before = ((tokens == end) & after).long().cumsum(1) - ((tokens == end) & after).long()
    return tokens, after & (ended_before == 0)


def forward(policy: nn.Module, tokens: Tensor) -> Tensor:
    # a causal model never looks right, so padding on the right needs no mask
    return logprobs(policy(tokens, use_cache=False).logits, tokens)


def train(num_steps: int, *, seed: int = 0, prompts_per_step: int = 48) -> list[float]:
    """Returns the mean reward of each step."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    policy, reference = (AutoModelForCausalLM.from_pretrained(MODEL).requires_grad_(grad) for grad in (True, False))
    critic = Critic()
    policy_optimizer = torch.optim.Adam(policy.parameters(), lr=5e-4)
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3)
    curve: list[float] = []
    for step in range(num_steps):
        # 1. sample one completion for each prompt, and grade it
        digits = torch.randint(1, 10, (prompts_per_step, NUM_DIGITS)).tolist()
        questions = ["+".join(map(str, row)) + "=?" for row in digits]
        chats = [[{"role": "user", "content": question}] for question in questions]
        encoded = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=False)
        prompts = torch.tensor(encoded)  # every digit is a token, so all have one length
        tokens, mask = sample(policy, prompts, tokenizer.eos_token_id)
        written = tokenizer.batch_decode(tokens[:, prompts.shape[1] :], skip_special_tokens=True)
        rewards = torch.tensor([reward(*pair) for pair in zip(questions, written, strict=True)])
        # 2. what the updates compare with: policy, reference and critic before the first of them
        with torch.no_grad():
            old_logprobs, ref_logprobs = forward(policy, tokens), forward(reference, tokens)
            old_values = critic(tokens)
        # 3. credit: the KL is taken off each token's reward, so a token also answers for what it leads to
        kl = k1(old_logprobs, ref_logprobs)
        earned = token_rewards(rewards, kl, mask, kl_coef=KL_COEF)
        advantages, returns = gae(earned, old_values, mask, gamma=GAMMA, gae_lambda=GAE_LAMBDA)
        advantages = whiten(advantages, mask)
        # 4. two epochs of minibatches; both clips keep the later ones near the first
        clip_fractions: list[float] = []
        for _ in range(NUM_EPOCHS):
            for rows in torch.randperm(prompts_per_step).split(ROWS_PER_MINIBATCH):
                kept, old = mask[rows], old_logprobs[rows]
                totals = denominators(kept, "token_mean")
                current = forward(policy, tokens[rows])
                losses = clipped(current, old, advantages[rows], clip_low=CLIP, clip_high=CLIP)
                update(policy, policy_optimizer, aggregate(losses, kept, "token_mean", totals))
                losses = value_loss(critic(tokens[rows]), old_values[rows], returns[rows], value_clip=VALUE_CLIP)
                update(critic, critic_optimizer, aggregate(losses, kept, "token_mean", totals))
                clip_fractions.append(float(clip_fraction(current, old, advantages[rows])[kept].mean()))
        curve.append(float(rewards.mean()))
        explained = float(explained_variance(old_values, returns, mask))
        clip, length = sum(clip_fractions) / len(clip_fractions), float(mask.sum(1).float().mean())
        print(
            f"step {step:3d}  reward {curve[-1]:.2f}  explained variance {explained:5.2f}"
            f"  kl {float(kl[mask].mean()):.3f}"
            f"  clipped {clip:.3f}  tokens {length:.0f}"
        )
    return curve


def update(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-steps", type=int, default=14)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the model is too small to share out
    train(arguments.num_steps, seed=arguments.seed)
