"""Settings of the stage that samples a model and keeps everything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from melete.schema.base import Artefact, Count, CountOrNone, NotNegative, Problem, SamplerStage, Share, TaskSettings

PROBLEMS_OF_A_TASK = 100


class GenerateStage(SamplerStage):
    """Samples completions of prompts, your own or a task's, and keeps all of them."""

    makes: ClassVar[Artefact] = "data"
    kind: Literal["generate"]
    """The kind of stage."""
    model: Annotated[str, Field(min_length=1)] = "tiny"
    """The model that writes: a bundled name, an earlier stage's name, or a directory in Hugging Face format."""
    prompts: list[Annotated[str, Field(min_length=1)]] = []
    """What the user says, one text for each conversation."""
    data: str = ""
    """Prompts out of a table (columns messages, prompt or question), a .txt file with one in each line, or an earlier
    stage that makes data; what is answered there already is left out."""
    task: TaskSettings | None = None
    """The problems of a task; each completion is then graded."""
    split: Literal["train", "held_out"] = "train"
    """With a task: problems to learn from, or those to evaluate on."""
    num_prompts: CountOrNone = 0
    """The first so many prompts; 0 for all of them, and for a hundred problems of a task."""
    system: str = ""
    """What the system says before each prompt that has no such turn; empty for nothing."""
    samples_per_prompt: Count = 1
    """Completions of each prompt."""
    max_new_tokens: Count = 256
    """Longest completion, in tokens."""
    temperature: NotNegative = 1.0
    """Sampling temperature; 0 always takes the likeliest token."""
    top_p: Annotated[Share, Field(gt=0)] = 1.0
    """Sample from the likeliest tokens that together have this probability."""
    top_k: CountOrNone = 0
    """Sample from so many of the likeliest tokens; 0 for all."""
    stop: list[Annotated[str, Field(min_length=1)]] = []
    """A completion ends where it has written one of these."""
    max_rows: Count = 256
    """Completions that are written at once and then kept; limits memory and what a stop loses, changes no result."""

    def reads(self) -> list[str]:
        return [self.model]

    def reads_data(self) -> list[str]:
        return [self.data] if self.data else []

    def problems(self) -> Iterator[Problem]:
        sources = [name for name in ("prompts", "data", "task") if getattr(self, name)]
        if not sources:
            yield "prompts", "is missing: name prompts, data or a task"
        if len(sources) > 1:
            yield sources[1], f"and {sources[0]} both say what is asked; leave one out"
        if self.task is None and self.split != "train":
            yield "split", "belongs to a task"
        if self.temperature == 0 and self.samples_per_prompt > 1:
            what = f"at temperature 0 all {self.samples_per_prompt} samples of a prompt are the same"
            yield "samples_per_prompt", f"{what}; use 1"

    def plan(self) -> str:
        source = self.task.name if self.task else self.data or f"{len(self.prompts)} prompts"
        return f"{self.samples_per_prompt} samples of {self.model} for each prompt of {source}"
