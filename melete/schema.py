"""What a recipe may say: a list of stages, each with its own settings, in TOML.

Every field carries its documentation below it; `--help`, the messages and the settings page are made from these lines.
Unknown keys are refused, and so are values that cannot work together, with the reason. Nothing here loads torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Problem: TypeAlias = tuple[str, str]  # a key below the settings object, and what is wrong with it
BUNDLED_MODELS = ("tiny",)


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # 3e7 tokens


Count = Annotated[int, BeforeValidator(_whole), Field(ge=1)]
CountOrNone = Annotated[int, BeforeValidator(_whole), Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
Setting: TypeAlias = bool | int | float | str


class Settings(BaseModel):
    """Frozen settings; a subclass says in `problems` which values cannot work together."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        populate_by_name=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    def problems(self) -> Iterator[Problem]:
        """Each impossible combination, as the key to change and the reason."""
        yield from ()

    @model_validator(mode="after")
    def _refuse_impossible(self) -> Settings:
        if found := list(self.problems()):
            raise ValueError("\n".join(f"{key}: {reason}" for key, reason in found))
        return self


class TaskSettings(Settings):
    """Where problems come from; further keys are the task's own, such as min_terms or num_numbers."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Setting]

    name: str
    """Name of the task."""
    seed: Seed = 0
    """Which problems are drawn; another seed gives other problems of the same difficulty."""

    def own_settings(self) -> dict[str, Setting]:
        """The keys that belong to the task itself, with the seed."""
        return {"seed": self.seed, **(self.__pydantic_extra__ or {})}


class EvaluationSettings(Settings):
    """When and how held-out problems are tried."""

    at: list[Share] = [0.0, 0.5, 1.0]
    """Shares of the stage at which a full evaluation is made: 0 is before the first step, 1 after the last."""
    num_problems: Count = 200
    """Held-out problems in a full evaluation."""
    num_samples: Count = 16
    """Completions per held-out problem; majority votes and pass@k go up to this k."""
    quick_every_steps: CountOrNone = 0
    """Steps between small evaluations for the curve; 0 for none."""
    quick_num_problems: Count = 50
    """Held-out problems in a small evaluation, one completion each."""

    def problems(self) -> Iterator[Problem]:
        if self.at != sorted(set(self.at)):
            yield "at", f"must rise without repeats, not {self.at}"


class Stage(Settings):
    """What every stage has."""

    name: Name
    """What later stages, overrides and the report call this stage."""

    def reads(self) -> str | None:
        """The model that the stage starts from, if it starts from one."""
        return None


class PretrainStage(Stage):
    """Next-token prediction on the generated corpus: makes a tokenizer and a base model from nothing."""

    kind: Literal["pretrain"]
    """The kind of stage."""
    corpus_seed: Seed = 0
    """Which documents are generated."""
    num_tokens: Count = 30_000_000
    """Tokens to train on, prompts included."""
    tokens_per_batch: Count = 4096
    """Tokens per optimizer step, padding included."""
    vocab_size: Annotated[Count, Field(ge=512)] = 768
    """Entries of the tokenizer: bytes, special tokens and merges."""
    hidden_size: Annotated[Count, Field(multiple_of=8)] = 128
    """Width of the model; the widths of attention and experts follow from it."""
    num_layers: Annotated[Count, Field(ge=2)] = 4
    """Layers, the first dense and the others with experts."""
    lr: Positive = 3e-3
    """Highest learning rate."""
    warmup_share: Positive = 0.01
    """Share of all tokens over which the learning rate rises."""
    decay_share: Positive = 0.3
    """Share of all tokens, at the end, over which it falls to a hundredth."""
    weight_decay: NotNegative = 0.05
    """Decoupled weight decay."""
    max_grad_norm: Positive = 1.0
    """Gradients with a larger norm are scaled down to it."""
    router_bias_rate: NotNegative = 1e-3
    """How far a router's bias moves per step to even out the load of its experts; 0 leaves it alone."""
    num_workers: Count = 1
    """Processes that share each batch, one thread each; on a small model two of them beat two threads."""
    out: str = ""
    """A directory that also receives the finished model; empty for none."""

    def problems(self) -> Iterator[Problem]:
        if self.warmup_share + self.decay_share > 1:
            yield "warmup_share", f"and decay_share add up to {self.warmup_share + self.decay_share:g}, more than 1"
        if self.num_tokens < self.tokens_per_batch:
            yield "num_tokens", f"{self.num_tokens} is less than one batch (tokens_per_batch {self.tokens_per_batch})"


class RLStage(Stage):
    """Reinforcement learning with verifiable rewards: sample, grade, give credit, update."""

    kind: Literal["rl"]
    """The kind of stage."""
    model: Annotated[str, Field(min_length=1)] = "tiny"
    """The model to start from: a bundled name, an earlier stage's name, or a directory in Hugging Face format."""
    task: TaskSettings
    """The problems."""
    rewards: Annotated[dict[str, float], Field(min_length=1)] = {"accuracy": 1.0}
    """Weight of each part of the reward, by name."""
    algorithm: str = "grpo"
    """A row of the table of algorithms, or the import path of a loss of your own, such as mypackage.losses:mine."""
    algorithm_settings: dict[str, Setting] = {}
    """Settings of the algorithm that differ from its own defaults, such as kl_coef or clip_high."""
    lr: Positive = 2e-4
    """Highest learning rate."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes on after the warm-up."""
    warmup_steps: CountOrNone = 5
    """Steps over which the learning rate rises."""
    max_grad_norm: Positive = 1.0
    """Gradients with a larger norm are scaled down to it."""
    num_steps: Count = 100
    """Optimizer steps, each on fresh rollouts."""
    prompts_per_step: Count = 16
    """Problems per step."""
    group_size: Count = 8
    """Rollouts per problem, compared with each other."""
    max_new_tokens: Count = 128
    """Longest completion, in tokens; longer ones are cut and count as truncated."""
    temperature: Positive = 1.0
    """Sampling temperature, the learner's too."""
    max_tokens_per_microbatch: Count = 8192
    """Tokens, padding included, that one forward and backward pass may hold; limits memory, changes no result."""
    reference_refresh_steps: CountOrNone = 0
    """Steps after which the reference model becomes the current one; 0 for never."""
    checkpoint_every_steps: CountOrNone = 10
    """Steps between checkpoints; 0 saves only when interrupted and at the end."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """Evaluation on held-out problems."""

    NO_GROUP: ClassVar[str] = (
        "with one rollout per problem there is nothing to compare it with: every advantage is 0 and nothing is learnt; "
        "use at least 2"
    )

    def reads(self) -> str | None:
        return self.model

    def problems(self) -> Iterator[Problem]:
        if self.group_size == 1:
            yield "group_size", self.NO_GROUP
        if self.warmup_steps > self.num_steps:
            yield "warmup_steps", f"{self.warmup_steps} is more than num_steps {self.num_steps}"
        if self.max_tokens_per_microbatch <= self.max_new_tokens:
            yield (
                "max_tokens_per_microbatch",
                f"{self.max_tokens_per_microbatch} cannot hold one completion of max_new_tokens {self.max_new_tokens}",
            )
        if all(weight == 0 for weight in self.rewards.values()):
            yield "rewards", "every weight is 0, so every reward is 0 and nothing is learnt"


AnyStage: TypeAlias = Annotated[PretrainStage | RLStage, Field(discriminator="kind")]
STAGE_KINDS: dict[str, type[Stage]] = {"pretrain": PretrainStage, "rl": RLStage}


class Recipe(Settings):
    """A named list of stages, run in order."""

    name: Name
    """What the recipe and, unless told otherwise, its run directory are called."""
    description: str = ""
    """One line for the list of recipes."""
    seed: Seed = 0
    """Every random choice of the run follows from it."""
    stages: Annotated[list[AnyStage], Field(alias="stage", min_length=1)]
    """The stages; each is a [[stage]] table."""

    def as_dict(self) -> dict[str, Any]:
        """Every setting, defaults included, as TOML or JSON would hold it; reading it back gives the same recipe."""
        return self.model_dump(mode="json", by_alias=True)
