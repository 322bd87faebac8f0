"""Settings of the parts of a reward."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from melete.schema.base import Count, NotNegative, Positive, Setting, Settings


class JudgePart(Settings):
    """A language model whose verdict is a part of the reward."""

    model: Annotated[str, Field(min_length=1)]
    """The judge: its name at the endpoint; without base_url an earlier stage, a bundled model or a directory."""
    verdict: Literal["correctness", "win_rate"] = "correctness"
    """Right or wrong by the problem's gold answer, or better or worse than it, shown in both orders."""
    form: Literal["full", "short"] = "full"
    """How it is asked: with all rules, or shortly, as a small model that was trained to judge is."""
    temperature: NotNegative = 1.0
    """Sampling temperature of a judge on this machine; 0 takes the likeliest reply."""
    base_url: str = ""
    """An OpenAI-compatible endpoint, such as "https://host/v1"; empty for a model on this machine."""
    key_variable: str = ""
    """Name of the environment variable that holds the endpoint's key; empty for none."""
    num_calls: Count = 2
    """Calls for each completion; win_rate shows each order equally often."""
    scope: Literal["answer", "completion"] = "answer"
    """What the judge is shown: all but the thought, or everything."""
    max_new_tokens: Count = 512
    """Longest reply of the judge, in tokens."""
    concurrency: Count = 8
    """Questions that the endpoint is asked at the same time."""
    timeout_s: Positive = 60.0
    """Seconds that the endpoint has for one reply."""


class RewardModelPart(Settings):
    """A trained reward model whose score is a part of the reward."""

    model: Annotated[str, Field(min_length=1)]
    """An earlier reward_model stage, or a directory."""
    span: Literal["whole", "summary"] = "whole"
    """Score the whole response, or what is left of it without the thought."""


class RewardPartSettings(Settings):
    """How a part of the reward is made and counted."""

    reward: str = ""
    """The reward of the table, or an import path, that this part is; empty for the part's own name."""
    tasks: list[str] = []
    """The tasks, or parts of a mixture, whose problems this part counts for; empty for all."""
    gate: str = ""
    """Another part of the reward; where that is not above 0, this one counts as 0."""
    normalise: Literal["none", "group", "step"] = "none"
    """Bring the part to mean 0 and deviation 1 within each group, or within the whole step."""
    settings: dict[str, Setting] = {}
    """Settings of the reward itself."""
