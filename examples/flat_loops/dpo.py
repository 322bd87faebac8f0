"""DPO from top to bottom: the bundled model learns from pairs of its own answers; only `functional` is imported.

    python examples/flat_loops/dpo.py

The prompt asks for a line about something, and the reader likes lines that speak to it ("Oh old sea: ..."). Of several
lines to one prompt, one that does and one that does not make a pair. Then there is no more sampling and no grading: the
loss compares how the two log-probs have moved from where they started. Both may fall while their gap grows, so they are
printed apart.
"""

# ruff: noqa: T201
from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from melete.functional.logprobs import logprobs
from melete.functional.preference import dpo, implied_reward

MODEL = Path(__file__).parents[2] / "melete" / "data" / "tiny-base"
TOPICS = ("the sea", "winter", "a cat", "a dog", "the rain", "a tree", "the night", "a flower")
MAX_NEW_TOKENS, SAMPLES_PER_PROMPT = 24, 4
BETA, LR, PAIRS_PER_STEP = 0.1, 1e-4, 16


def preference(completion: str) -> float:
    """1 for one line that speaks to its topic, 0 for anything else.

    >>> preference("Oh old, cold sea: it sings."), preference("The sea is old; it sings."), preference("Oh 5</answer>")
    (1.0, 0.0, 0.0)
    """
    return float(re.fullmatch(r"Oh [a-z, ]+: [a-z ]+\.", completion) is not None)


@torch.no_grad()
def sample(model: nn.Module, tokenizer: AutoTokenizer, num_prompts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lines about random topics: tokens [P, G, T], the mask of what the model wrote, and how they are liked [P, G]."""
    topics = [TOPICS[i] for i in torch.randint(len(TOPICS), (num_prompts,)).tolist() for _ in range(SAMPLES_PER_PROMPT)]
    chats = [[{"role": "user", "content": f"Write a line about {topic}."}] for topic in topics]
    # the topics are chosen so that all prompts have one length
    prompts = torch.tensor(tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=False))
    tokens = model.generate(prompts, do_sample=True, top_k=0, max_new_tokens=MAX_NEW_TOKENS)
    after = torch.arange(tokens.shape[1])[None] >= prompts.shape[1]
    # the end token is written too, so it is in the mask; what follows it is padding
    ended = ((tokens == tokenizer.eos_token_id) & after).long()
    mask = after & (ended.cumsum(1) - ended == 0)
    written = tokenizer.batch_decode(tokens[:, prompts.shape[1] :], skip_special_tokens=True)
    liked = torch.tensor([preference(completion) for completion in written])
    print(f"liked: {float(liked.mean()):.2f}, such as {written[int(liked.argmax())]!r}")
    shape = (num_prompts, SAMPLES_PER_PROMPT)
    return tokens.unflatten(0, shape), mask.unflatten(0, shape), liked.unflatten(0, shape)


def make_pairs(liked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Prompt, most and least liked sibling of each prompt whose siblings [P, G] differ.

    >>> make_pairs(torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]]))
    (tensor([0, 2]), tensor([1, 0]), tensor([0, 1]))
    """
    (prompts,) = (liked.amax(1) > liked.amin(1)).nonzero(as_tuple=True)
    return prompts, liked[prompts].argmax(1), liked[prompts].argmin(1)


def sums(model: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    """The log-prob of each completion: rows [B, T] to [B]. `where`, because padding may hold anything."""
    # a causal model never looks right, so padding on the right needs no mask
    per_token = logprobs(model(tokens, use_cache=False).logits, tokens)
    return torch.where(mask, per_token, 0.0).sum(1)


def train(num_steps: int, *, seed: int = 0, num_prompts: int = 192) -> list[float]:
    """Returns the loss of each step."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    policy = AutoModelForCausalLM.from_pretrained(MODEL)
    # 1. pairs, written by the model itself: two lines to one prompt, of which one is liked
    tokens, mask, liked = sample(policy, tokenizer, num_prompts)
    prompts, best, worst = make_pairs(liked)
    pairs = {"chosen": (tokens[prompts, best], mask[prompts, best])}
    pairs["rejected"] = (tokens[prompts, worst], mask[prompts, worst])
    print(f"{len(prompts)} pairs from {num_prompts} prompts")
    # 2. the reference is the policy of now, so its sums are made once and no second model is kept
    with torch.no_grad():
        ref = {
            side: torch.cat([sums(policy, *part) for part in zip(*(x.split(64) for x in pair), strict=True)])
            for side, pair in pairs.items()
        }
    # 3. epochs of minibatches
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LR, weight_decay=0.0)
    order: list[Tensor] = []
    curve: list[float] = []
    for step in range(num_steps):
        order = order or list(torch.randperm(len(prompts)).split(PAIRS_PER_STEP))
        rows = order.pop()
        # both sides in one pass
        tokens, mask = (torch.cat([pair[part][rows] for pair in pairs.values()]) for part in (0, 1))
        chosen, rejected = sums(policy, tokens, mask).chunk(2)
        loss = dpo(chosen, rejected, ref["chosen"][rows], ref["rejected"][rows], beta=BETA).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        curve.append(float(loss.detach()))
        if step % 5 == 0 or step == num_steps - 1:
            good = implied_reward(chosen.detach(), ref["chosen"][rows], beta=BETA)
            bad = implied_reward(rejected.detach(), ref["rejected"][rows], beta=BETA)
            print(
                f"step {step:3d}  loss {curve[-1]:.3f}  chosen {float(chosen.detach().mean()):7.2f}  "
                f"rejected {float(rejected.detach().mean()):7.2f}  margin {float((good - bad).mean()):5.2f}  "
                f"right way round {float((good > bad).float().mean()):.2f}"
            )
    # 4. what it writes now, to the same prompts
    sample(policy, tokenizer, 64)
    return curve


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-steps", type=int, default=26)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the model is too small to share out
    train(arguments.num_steps, seed=arguments.seed)
