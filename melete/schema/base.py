"""What every part of a recipe is made of: frozen settings, and the tables that several stages share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from melete.suggest import did_you_mean

CHAT_TEMPLATES = ("plain", "chatml", "llama3")
Problem: TypeAlias = tuple[str, str]  # a key below the settings object, and what is wrong with it
Artefact: TypeAlias = Literal["model", "reward model", "data", "nothing"]


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
TaskSetting: TypeAlias = Setting | list[Any] | dict[str, Any]  # a mapping of columns, the parts of a mixture


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
    __pydantic_extra__: dict[str, TaskSetting]

    name: str
    """Name of the task."""
    seed: Seed = 0
    """Which problems are drawn; another seed gives other problems of the same difficulty."""

    def own_settings(self) -> dict[str, TaskSetting]:
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

    makes: ClassVar[Artefact] = "nothing"
    """What the stage leaves behind under its own name, for later stages to read."""

    name: Name
    """What later stages, overrides and the report call this stage."""

    def reads(self) -> list[str]:
        """The models that the stage reads."""
        return []

    def task_tables(self) -> dict[str, TaskSettings]:
        """Where problems come from, by the key of the table that says so."""
        task = getattr(self, "task", None)
        return {"task": task} if isinstance(task, TaskSettings) else {}

    def plan(self) -> str:
        """What the stage would do, on one line."""
        raise NotImplementedError

    def reads_data(self) -> list[str]:
        """The data sets that the stage reads."""
        return []


class SamplerStage(Stage):
    """What every stage has whose sampler may be chosen."""

    sampler: Literal["native", "vllm"] = "native"
    """What writes the completions: Melete itself, or vLLM (extra `vllm`), which is faster with real models on a GPU."""
    sampler_memory_share: Annotated[Share, Field(gt=0)] = 0.3
    """With vLLM: the share of the GPU's memory that it may take, weights included; on a CPU, of what is free."""

    @model_validator(mode="after")
    def _refuse_a_share_for_nobody(self) -> SamplerStage:
        default = type(self).model_fields["sampler_memory_share"].default
        if self.sampler == "native" and self.sampler_memory_share != default:
            raise ValueError('sampler_memory_share: belongs to sampler = "vllm"')
        return self


class AdapterSettings(Settings):
    """A low-rank adapter (LoRA) that is trained in place of the model's own weights; needs the extra `lora`."""

    kind: Literal["lora"] = "lora"
    """Which kind of adapter; there is one so far."""
    rank: Count = 16
    """Rank of the two matrices."""
    alpha: Positive = 32.0
    """The adapter is scaled by alpha / rank, or by alpha / sqrt(rank) if it is rank-stabilised."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of an adapter's inputs that is dropped while it learns; for stages that only read (sft, reward_model)."""
    target_modules: Annotated[list[str], BeforeValidator(lambda value: [] if value == "auto" else value)] = []
    """Last parts of the names of the linear layers that are adapted; empty, or "auto", for all but the heads."""
    rank_stabilised: bool = False
    """Scale by the root of the rank (rsLoRA), which keeps large ranks from learning more slowly."""
    merge: bool = True
    """Whether the stage leaves a whole model; if not, the adapter alone, which belongs to the model it started from."""


class TrainingStage(Stage):
    """What every stage has that updates a model."""

    makes: ClassVar[Artefact] = "model"
    model: Annotated[str, Field(min_length=1)] = "tiny"
    """The model to start from: a name of `melete models ls`, an earlier stage's name, owner/name on the Hugging Face
    hub, or a directory in its format."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the model works; auto is CUDA, else MPS, else the CPU."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the weights; auto is bfloat16 on CUDA where the GPU has it, else float32."""
    chat_template: str = "auto"
    """How turns look: the model's own, or one that fits its tokens; else plain, chatml, llama3 or a file."""
    adapter: AdapterSettings | None = None
    """Train a low-rank adapter; none trains all weights."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time, the same gradients."""
    lr: Positive = 2e-4
    """Highest learning rate."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes on after the warm-up."""
    warmup_steps: CountOrNone = 5
    """Optimizer steps over which the learning rate rises."""
    max_grad_norm: Positive = 1.0
    """Gradients with a larger norm are scaled down to it."""
    max_tokens_per_microbatch: Count = 1024
    """Tokens, padding included, that one forward and backward pass may hold; limits memory, changes no result."""
    checkpoint_every_steps: CountOrNone = 10
    """Steps between checkpoints; 0 saves only when interrupted and at the end."""

    def reads(self) -> list[str]:
        return [self.model]

    @model_validator(mode="after")
    def _refuse_what_no_training_can_use(self) -> TrainingStage:
        known = ["auto", *CHAT_TEMPLATES]
        if self.chat_template not in known and not Path(self.chat_template).is_file():
            hint = did_you_mean(self.chat_template, known)
            raise ValueError(f"chat_template: {self.chat_template!r} is neither a chat template nor a file; {hint}")
        if self.adapter and self.adapter.dropout and getattr(self, "kind", "") not in ("sft", "reward_model"):
            raise ValueError("adapter.dropout: must be 0: what is learnt is compared with log-probs without dropout")
        return self
