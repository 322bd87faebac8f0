"""Settings of stages that make data without learning: written demonstrations, labels of safety."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from melete.schema.base import Artefact, Count, Positive, Problem, Share, Stage, TaskSettings

WRITTEN = ("chains", "chains_es", "short_chains", "countdowns", "general", "judgements")


class WriteStage(Stage):
    """Writes demonstrations by program, in the place of people."""

    makes: ClassVar[Artefact] = "data"
    kind: Literal["write"]
    """The kind of stage."""
    rows: Annotated[dict[str, Count], Field(min_length=1)]
    """How many of each: chains, chains_es, short_chains (of two or three digits), countdowns, general, judgements."""

    def plan(self) -> str:
        return "write " + ", ".join(f"{count} {name}" for name, count in self.rows.items())

    def problems(self) -> Iterator[Problem]:
        for name in self.rows:
            if name not in WRITTEN:
                yield f"rows.{name}", f"cannot be written; known are {', '.join(WRITTEN)}"


class LabelsStage(Stage):
    """Samples a model and labels each completion safe or unsafe by the task's rule, for a point-wise reward model."""

    makes: ClassVar[Artefact] = "data"
    kind: Literal["labels"]
    """The kind of stage."""
    model: Annotated[str, Field(min_length=1)] = "tiny"
    """The model that writes the completions."""
    task: TaskSettings
    """The requests; the task must be able to tell what is safe, as `general` is."""
    num_prompts: Count = 300
    """Requests to sample from."""
    samples_per_prompt: Count = 4
    """Samples of each request; the same text counts once."""
    max_share: Annotated[Share, Field(ge=0.5)] = 0.7
    """The commoner label may have at most this share; rows above are left out."""
    max_new_tokens: Count = 64
    """Longest completion, in tokens."""
    temperature: Positive = 1.0
    """Sampling temperature."""

    def reads(self) -> list[str]:
        return [self.model]

    def plan(self) -> str:
        return f"labels of {self.num_prompts} x {self.samples_per_prompt} samples of {self.model} on {self.task.name}"
