"""The values that travel through Melete, one complete type per stage of the path.

    Problem --sample--> Rollout --grade--> RolloutGroup --credit--> TrainBatch --update--> weights

Every type is frozen and complete when it is made: a field that would be `None` until later belongs to the next type.
This module imports the standard library only, so that reading a recipe or a log never loads torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation: `role` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A row of a task: what is asked, and what a grader needs to judge an answer.

    >>> Problem("arithmetic_chain/0", "arithmetic_chain", (Message("user", "3+5-2=?"),), "6").gold
    '6'
    """

    problem_id: str
    task: str
    messages: tuple[Message, ...]
    gold: str
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How tokens are drawn; `temperature = 0` is greedy, `top_k = 0` and `top_p = 1` switch the cuts off.

    Cuts change the distribution that tokens are drawn from, but `Completion.logprobs` always belong to the full
    softmax at `temperature`, which is what the learner computes (greedy: at temperature 1).
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 (greedy) or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or more, not {self.top_k}")


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One prompt and the random keys of the siblings wanted from it; `len(keys)` is the group size.

    A sibling's key and a token's position alone decide the random number that the token is drawn with.
    """

    prompt_tokens: tuple[int, ...]
    keys: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """What the sampler made of one prompt: tokens (the end-of-turn token included when it was drawn), their
    log-probs at the sampling temperature, why it stopped, and the version of the weights that wrote it."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    policy_version: int


@dataclass(frozen=True, slots=True)
class Rollout:
    """One attempt at a problem. `text` is the completion decoded once, for graders and people, end-of-turn removed."""

    problem: Problem
    sibling: int
    prompt_tokens: tuple[int, ...]
    completion: Completion
    text: str


@dataclass(frozen=True, slots=True)
class Reward:
    """A graded rollout's reward: `total` is the weighted sum of `parts`, or `None` when a grader failed.

    A failure is data: `reason` says what happened, and the rollout leaves its group's statistics.
    """

    total: float | None
    parts: Mapping[str, float | None]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """The graded siblings of one problem; `rewards[i]` belongs to `rollouts[i]`."""

    group_id: str
    problem: Problem
    rollouts: tuple[Rollout, ...]
    rewards: tuple[Reward, ...]

    def __post_init__(self) -> None:
        if len(self.rollouts) != len(self.rewards):
            raise ValueError(f"{self.group_id}: {len(self.rollouts)} rollouts but {len(self.rewards)} rewards")
        if any(rollout.problem != self.problem for rollout in self.rollouts):
            raise ValueError(f"{self.group_id}: a group never mixes problems")


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A prompt with a better and a worse completion, as text; tokenised once when a batch is packed.

    `margin` is how far apart a reward model should score them, for pairs that come with a degree of preference.
    """

    pair_id: str
    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    margin: float = 0.0


@dataclass(frozen=True, slots=True)
class RankedCompletions:
    """A prompt with completions in order, best first."""

    row_id: str
    messages: tuple[Message, ...]
    completions: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.completions) < 2:
            raise ValueError(f"{self.row_id}: a ranking has at least two completions, not {len(self.completions)}")


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt with a completion that is to be imitated."""

    row_id: str
    messages: tuple[Message, ...]
    completion: str


@dataclass(frozen=True, slots=True)
class LabelledCompletion:
    """A prompt with a completion that somebody marked good (True) or not: safe or unsafe, liked or disliked."""

    row_id: str
    messages: tuple[Message, ...]
    completion: str
    label: bool


@dataclass(frozen=True, slots=True)
class LabelledSteps:
    """A prompt with a completion cut into steps, each marked right (True) or wrong; the steps join to the whole."""

    row_id: str
    messages: tuple[Message, ...]
    steps: tuple[str, ...]
    labels: tuple[bool, ...]

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.labels):
            raise ValueError(f"{self.row_id}: {len(self.steps)} steps but {len(self.labels)} labels")
