"""Whether an engine writes with the weights that it was sent: fixed prompts, scored by the model and by the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from melete.errors import ModelError

TEXTS = (
    "The sum of 17 and 25 is 42, for 10 + 20 = 30, 7 + 5 = 12 and 30 + 12 = 42. What is 3 x (8 - 2)? ",
    "def area(width, height):\n    return width * height\n\n\nprint(area(3, 4))  # 12\n",
    "She opened the window, looked at the rain for a while, and went on reading. Why? Nobody knew; it was late. ",
)
# mean difference in nats that rounding explains: engines sum in another order, and bfloat16 has eight bits
TOLERANCES = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 0.1}
OF_ONE_TOKEN = 10  # the difference of a single token may be so many times as large
MOVED = 1e-4  # nats that a model must have moved for an engine that did not move at all to be a fault
REMEDY = 'sampler = "native"; or another version of vLLM, if this one does not compute this model as transformers does'


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probs of the tokens of all probes after their first [N], and of the token that follows each [P]."""

    prompts: Tensor
    following: Tensor

    def all(self) -> Tensor:
        """Both, one after the other: [N + P]."""
        return torch.cat([self.prompts, self.following])


def probe_prompts(tokenizer: PreTrainedTokenizerBase, length: int) -> list[tuple[int, ...]]:
    """The fixed texts as so many tokens each, repeated where they are shorter."""
    prompts: list[tuple[int, ...]] = []
    for text in TEXTS:
        tokens = list[int](tokenizer.encode(text, add_special_tokens=False))
        prompts.append(tuple((tokens * (length // len(tokens) + 1))[:length]))
    return prompts


@torch.inference_mode()
def model_scores(model: PreTrainedModel, prompts: Sequence[Sequence[int]], following: Sequence[int]) -> Scores:
    """What the model itself says, by a plain forward pass for each prompt; `following` are the tokens after them."""
    scored: list[Tensor] = []
    last: list[Tensor] = []
    for prompt, token in zip(prompts, following, strict=True):
        tokens = torch.tensor([*prompt, token], device=model.device)
        logprobs = model(input_ids=tokens[None, :-1]).logits[0].float().log_softmax(dim=-1)
        found = logprobs.gather(1, tokens[1:, None])[:, 0].cpu()
        scored.append(found[:-1])
        last.append(found[-1:])
    return Scores(torch.cat(scored), torch.cat(last))


def refuse_difference(
    engine: Scores, model: Scores, before: tuple[Scores, Scores] | None, tolerance: float, place: str
) -> None:
    """Raises `ModelError` where the engine's scores are not the model's.

    `before` are the scores of both after the push before this one: an engine that says bit for bit what it said then
    did not take weights that changed the model, however little.
    """
    if not bool(torch.isfinite(engine.all()).all()):
        what = "the engine's log-probs of the probes are not finite"
        raise ModelError(what, place=place, remedy=REMEDY)
    if before is not None:
        moved = float((model.all() - before[1].all()).abs().max())
        if moved > MOVED and torch.equal(engine.prompts, before[0].prompts):
            what = (
                f"the push did not take: the model's log-probs moved by up to {moved:.2g}, and the engine's not at all"
            )
            raise ModelError(what, place=place, remedy=REMEDY)
    difference = (engine.prompts - model.prompts).abs()
    mean, largest = float(difference.mean()), float(difference.max())
    if mean > tolerance or largest > OF_ONE_TOKEN * tolerance:
        what = (
            f"the engine does not write with the weights that it was sent: its log-probs of {len(difference)} probe "
            f"tokens differ by {mean:.2g} in the mean and {largest:.2g} at most, where {tolerance:.2g} and "
            f"{OF_ONE_TOKEN * tolerance:.2g} are rounding"
        )
        raise ModelError(what, place=place, remedy=REMEDY)
    largest = float((engine.following - model.following).abs().max())
    if largest > OF_ONE_TOKEN * tolerance:
        what = (
            f"the engine scores the probes right and goes on from them wrong (by {largest:.2g}): it reads prompts that "
            "earlier weights have left in its prefix cache"
        )
        raise ModelError(what, place=place, remedy=REMEDY)
