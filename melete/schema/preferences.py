"""Settings of stages that make and use preferences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from melete.schema.base import (
    Artefact,
    Count,
    CountOrNone,
    EvaluationSettings,
    NotNegative,
    Positive,
    Problem,
    Setting,
    Share,
    Stage,
    TaskSettings,
    TrainingStage,
)
from melete.schema.data import DataSettings
from melete.schema.rewards import JudgePart

DataName = Annotated[str, Field(min_length=1)]


class PairsStage(Stage):
    """Makes preferences: samples of each problem, graded, the better one against a worse one."""

    makes: ClassVar[Artefact] = "data"
    kind: Literal["pairs"]
    """The kind of stage."""
    model: Annotated[str, Field(min_length=1)] = "tiny"
    """The model that writes the samples."""
    task: TaskSettings
    """The problems; the task's grade decides which sample is better."""
    judge: JudgePart | None = None
    """A table [stage.judge] lets a language model decide instead, each pair shown in both orders."""
    judge_threshold: NotNegative = 1.0
    """With a judge: pairs it does not call this far apart, on a scale of -2 to 2, are left out (DeepSeek-R1: 1)."""
    num_prompts: Count = 300
    """Problems to sample from."""
    samples_per_prompt: Annotated[Count, Field(ge=2)] = 4
    """Samples of each problem."""
    pairs_per_prompt: Count = 1
    """Pairs made of each problem's samples, the widest gap in grade first."""
    label_noise: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of pairs that are turned round, as people disagree."""
    max_new_tokens: Count = 64
    """Longest completion, in tokens."""
    temperature: Positive = 1.0
    """Sampling temperature."""

    def reads(self) -> list[str]:
        return [self.model, *([self.judge.model] if self.judge and not self.judge.base_url else [])]

    def problems(self) -> Iterator[Problem]:
        if self.judge and self.judge.num_calls < 2:
            yield "judge.num_calls", "must be at least 2, one in each order"
        if self.judge and self.pairs_per_prompt > 1:
            yield "pairs_per_prompt", "is 1 with a judge, who is asked about two samples of each prompt"

    def plan(self) -> str:
        return f"pairs of {self.num_prompts} x {self.samples_per_prompt} samples of {self.model} on {self.task.name}"


class RewardModelStage(TrainingStage, DataSettings):
    """Trains a model that gives a response a score."""

    makes: ClassVar[Artefact] = "reward model"
    kind: Literal["reward_model"]
    """The kind of stage."""
    data: DataName
    """An earlier stage that makes data, or a file or `datasets` directory of what `loss` learns from."""
    loss: Literal["pairs", "rankings", "pointwise", "steps"] = "pairs"
    """Bradley-Terry on pairs or on longer rankings, binary on single responses, or on each step of a thought."""
    num_epochs: Count = 1
    """Passes over the data; more than one or two overfits."""
    rows_per_step: Count = 32
    """Pairs, or responses, per optimizer step."""
    replay: list[str] = []
    """Earlier data that is learnt again beside the new, so that a reward model that goes on does not forget."""
    replay_share: Annotated[Share, Field(gt=0, lt=1)] = 0.1
    """Share of what is learnt from that comes from `replay`."""
    center_coef: NotNegative = 0.01
    """Keeps scores near 0: weight of the squared sum of a pair's scores."""
    held_out_share: Annotated[Share, Field(lt=1)] = 0.15
    """Share of the data, chosen by its text, that only measures."""

    def reads_data(self) -> list[str]:
        return [self.data, *self.replay]

    def problems(self) -> Iterator[Problem]:
        if self.adapter and not self.adapter.merge:
            yield "adapter.merge", "must be true: a reward model is kept whole, with its head"

    def plan(self) -> str:
        return f"reward model on {self.model} from {self.data} ({self.loss}), {self.num_epochs} passes, lr {self.lr:g}"


class PreferenceStage(TrainingStage, DataSettings):
    """DPO and its family: learns from pairs without a reward model."""

    kind: Literal["preference"]
    """The kind of stage."""
    algorithm: str = "dpo"
    """A row of the table of preference algorithms, or the import path of a loss of your own."""
    algorithm_settings: dict[str, Setting] = {}
    """Settings of the algorithm that differ from its own defaults, such as beta."""
    data: str = ""
    """An earlier stage that makes pairs, or a file or `datasets` directory; empty to make pairs online from the current
    policy."""
    task: TaskSettings | None = None
    """Where held-out problems come from, none for no evaluation; online, the problems to sample from too."""
    num_epochs: Count = 1
    """Passes over the pairs."""
    pairs_per_step: Count = 32
    """Pairs per optimizer step; online, problems per step."""
    num_steps: CountOrNone = 0
    """Online: optimizer steps. Offline: 0 for all of the data, else at most so many."""
    samples_per_prompt: Annotated[Count, Field(ge=2)] = 4
    """Online: samples of each problem, of which the best and the worst make a pair."""
    reward_model: str = ""
    """Online: the reward model that judges; empty for the task's own grade."""
    judge: JudgePart | None = None
    """Online: a table [stage.judge] makes a language model the judge."""
    max_new_tokens: Count = 64
    """Longest completion, in tokens."""
    temperature: Positive = 1.0
    """Sampling temperature, the learner's too."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """Evaluation on held-out problems."""

    def reads(self) -> list[str]:
        judges = [self.judge.model] if self.judge and not self.judge.base_url else []
        return [self.model, *([self.reward_model] if self.reward_model else []), *judges]

    def reads_data(self) -> list[str]:
        return [self.data] if self.data else []

    def plan(self) -> str:
        source = f"{self.num_epochs} passes over {self.data}" if self.data else f"{self.num_steps} steps online"
        task = f" on {self.task.name}" if self.task else ""
        return f"{self.algorithm} from {self.model}{task}, {source}, lr {self.lr:g}"

    def problems(self) -> Iterator[Problem]:
        if not self.data and not self.num_steps:
            yield "num_steps", "is missing: without data, pairs are made online and num_steps says for how long"
        if not self.data and self.task is None:
            yield "task", "is missing: without data, pairs are made online from a task's problems"
        for name in ("reward_model", "judge"):
            if self.data and getattr(self, name):
                yield name, "judges online pairs only, and data is given"
        if self.reward_model and self.judge:
            yield "judge", "and reward_model both decide which sample is better; leave one out"
        if self.judge and self.judge.verdict == "win_rate" and self.judge.num_calls < 2:
            yield "judge.num_calls", "must be at least 2 for win_rate, one in each order"
