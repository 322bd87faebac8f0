"""Settings of stages that make data out of samples, and out of other data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from melete.schema.base import (
    Artefact,
    Count,
    CountOrNone,
    Positive,
    Problem,
    SamplerStage,
    Settings,
    Share,
    Stage,
    TaskSettings,
)
from melete.schema.rewards import JudgePart


class ReadableSettings(Settings):
    """What makes a completion readable."""

    max_repeated_share: Share = 0.3
    """Share of n-grams that may be repetitions, in the thought and after it; 1 for any."""
    repeated_ngram: Count = 4
    """Words of these n-grams."""
    one_language: bool = True
    """Words that tell a language must be in the question's, or in the one that the task declares for the answer."""
    min_language_share: Annotated[Share, Field(gt=0)] = 0.95
    """With one_language: the share of these words that must be."""
    max_paragraph_chars: CountOrNone = 1000
    """Characters of a thought without a line break; 0 for any number."""
    no_code_blocks: bool = True
    """Refuse code blocks in a thought."""


class RejectStage(SamplerStage):
    """Rejection sampling: samples of each problem, of which the right and readable ones become demonstrations."""

    makes: ClassVar[Artefact] = "data"
    kind: Literal["reject"]
    """The kind of stage."""
    model: Annotated[str, Field(min_length=1)] = "tiny"
    """The model that writes the samples."""
    task: TaskSettings
    """The problems, of its training split; the task's grade decides what is right."""
    judge: JudgePart | None = None
    """A table [stage.judge] lets a language model decide instead; how often it agrees with the grade is reported."""
    num_prompts: Count = 300
    """Different problems to sample from; fewer if the task has no more."""
    samples_per_prompt: Count = 4
    """Samples of each problem."""
    max_new_tokens: Count = 128
    """Longest completion, in tokens; what is cut there is dropped."""
    temperature: Positive = 1.0
    """Sampling temperature."""
    top_p: Annotated[Share, Field(gt=0)] = 1.0
    """Sample from the likeliest tokens that together have this probability."""
    min_score: Share = 1.0
    """Grade, or mean verdict of the judge, that a sample needs."""
    require_format: bool = True
    """Tags must be in order, where the task wants tags."""
    require_thought: bool = False
    """A thought must be there."""
    readable: ReadableSettings = ReadableSettings()
    """What makes a sample readable."""
    form: Literal["keep", "tidy"] = "keep"
    """Keep samples as they are, or tidy white space and lines that repeat at once, and grade them again."""
    max_similarity: Annotated[Share, Field(gt=0)] = 0.9
    """Samples of a problem that are at least as alike (Jaccard index of 3-grams) count once; 1: only equal ones do."""
    keep_per_prompt: Count = 4
    """Samples of a problem that are kept at most, so that easy problems do not dominate."""
    prefer: Literal["random", "shortest", "diverse"] = "random"
    """Which of a problem's samples stay when there are more; diverse takes those that are least alike."""
    max_rows: CountOrNone = 0
    """Stop when so many are kept; 0 for all."""

    def reads(self) -> list[str]:
        return [self.model, *([self.judge.model] if self.judge and not self.judge.base_url else [])]

    def problems(self) -> Iterator[Problem]:
        most = self.num_prompts * min(self.keep_per_prompt, self.samples_per_prompt)
        if self.max_rows > most:
            yield "max_rows", f"is more than the {most} that can be kept of {self.num_prompts} problems"
        if self.judge and self.judge.verdict == "win_rate" and self.judge.num_calls < 2:
            yield "judge.num_calls", "must be at least 2 for win_rate, one in each order"

    def plan(self) -> str:
        judge = f", judged by {self.judge.model}" if self.judge else ""
        budget = f"{self.num_prompts} x {self.samples_per_prompt} samples of {self.model} on {self.task.name}"
        return f"keep what is right and readable of {budget}{judge}, at most {self.keep_per_prompt} per problem"


class MixStage(Stage):
    """Joins data sets in given proportions, without repeating rows, and shuffles them."""

    makes: ClassVar[Artefact] = "data"
    kind: Literal["mix"]
    """The kind of stage."""
    parts: Annotated[dict[str, Positive], Field(min_length=1)]
    """Earlier stages that make data, or files of it, with their weights: reasoning = 3, general = 1 gives 3:1."""
    num_rows: CountOrNone = 0
    """Rows of the result; 0 for as many as the proportions allow."""
    repeat: bool = False
    """With num_rows: let rows of a part that has too few come more than once."""

    def reads_data(self) -> list[str]:
        return list(self.parts)

    def problems(self) -> Iterator[Problem]:
        if self.repeat and not self.num_rows:
            yield "repeat", "needs num_rows: without it a mix is as large as it can be with no row repeated"

    def plan(self) -> str:
        size = f", {self.num_rows} rows" if self.num_rows else ""
        return "mix of " + ", ".join(f"{weight:g} {name}" for name, weight in self.parts.items()) + size
