"""The keywords of `melete.sft` and the other functions, for editors and type checkers.

Made from the schema, which explains every setting; the page docs/settings.md has the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

if TYPE_CHECKING:
    from melete.results import Result

ModelLike: TypeAlias = "str | os.PathLike[str] | Result"
DataLike: TypeAlias = "str | os.PathLike[str] | Sequence[Mapping[str, Any]] | Result"
TaskLike: TypeAlias = str | Mapping[str, Any]
Value: TypeAlias = bool | int | float | str


class RunKeywords(TypedDict, total=False):
    """What every function takes besides its settings."""

    name: str
    """Name of the run's directory; by default the function's."""
    runs_dir: str | os.PathLike[str]
    """Where runs are kept; by default "runs"."""
    seed: int
    """Every random choice follows from it."""
    max_minutes: float | None
    """Refuse before work if it is estimated to take longer."""
    quiet: bool
    """Show nothing while it works."""


class EvaluationTable(TypedDict, total=False):
    """When and how held-out problems are tried."""

    at: Sequence[float]
    num_problems: int
    num_samples: int
    quick_every_steps: int
    quick_num_problems: int


class AdapterTable(TypedDict, total=False):
    """A low-rank adapter (LoRA) that is trained in place of the model's own weights; needs the extra `lora`."""

    rank: int
    alpha: float
    dropout: float
    target_modules: Sequence[str]
    rank_stabilised: bool
    merge: bool


class JudgePartTable(TypedDict, total=False):
    """A language model whose verdict is a part of the reward."""

    model: ModelLike
    verdict: Literal["correctness", "win_rate"]
    form: Literal["full", "short"]
    temperature: float
    base_url: str
    key_variable: str
    num_calls: int
    scope: Literal["answer", "completion"]
    max_new_tokens: int
    concurrency: int
    timeout_s: float


class HealthTable(TypedDict, total=False):
    """Limits of the findings. A pair is where a finding becomes a warning, and where it becomes serious."""

    off: Sequence[str]
    window: int
    dead_groups: Sequence[float]
    all_correct_groups: Sequence[float]
    truncated_share: Sequence[float]
    entropy_share: Sequence[float]
    entropy_floor: Sequence[float]
    kl: Sequence[float]
    approx_kl: Sequence[float]
    grader_failures: Sequence[float]
    format_gain: Sequence[float]
    verifier_fall: Sequence[float]
    sampler_mismatch: Sequence[float]
    length_growth: Sequence[float]
    clip_fraction: Sequence[float]
    gradient_spike: float
    flat_steps: int


class SupportTable(TypedDict, total=False):
    """The check before the first step: whether the model is sometimes right, so that there is something to learn."""

    num_problems: int
    min_pass_rate: float
    max_dead_share: float
    refuse: bool


class CriticTable(TypedDict, total=False):
    """The value model of PPO: foretells the return of each token."""

    model: ModelLike
    trunk: Literal["own", "shared"]
    lr: float
    value_coef: float
    warmup_steps: int


class RewardModelPartTable(TypedDict, total=False):
    """A trained reward model whose score is a part of the reward."""

    model: ModelLike
    span: Literal["whole", "summary"]


class RewardPartTable(TypedDict, total=False):
    """How a part of the reward is made and counted."""

    reward: str
    tasks: Sequence[str]
    gate: str
    normalise: Literal["none", "group", "step"]
    settings: Mapping[str, Value]


class LateTaskTable(TypedDict, total=False):
    """Further problems that join in the last part of the stage, such as general prompts with preference rewards."""

    task: TaskLike
    start: float
    share: float


class ReadableTable(TypedDict, total=False):
    """What makes a completion readable."""

    max_repeated_share: float
    repeated_ngram: int
    one_language: bool
    min_language_share: float
    max_paragraph_chars: int
    no_code_blocks: bool


class TrainingKeywords(RunKeywords, total=False):
    """What every stage has that updates a model."""

    model: ModelLike
    device: Literal["auto", "cpu", "cuda", "mps"]
    dtype: Literal["auto", "float32", "bfloat16"]
    chat_template: str
    adapter: AdapterTable | bool | None
    gradient_checkpointing: bool
    lr: float
    lr_schedule: Literal["constant", "linear", "cosine"]
    warmup_steps: int
    max_grad_norm: float
    max_tokens_per_microbatch: int
    checkpoint_every_steps: int


class SFT(TrainingKeywords, total=False):
    """Keywords of `melete.sft`: Supervised fine-tuning on demonstrations."""

    columns: Mapping[str, str]
    part: str
    max_tokens: int
    too_long: Literal["refuse", "drop", "truncate"]
    data: DataLike
    learn_from: Literal["every_turn", "last_turn"]
    num_epochs: int
    rows_per_step: int
    packing: bool
    task: TaskLike | None
    max_new_tokens: int
    evaluation: EvaluationTable


class RM(TrainingKeywords, total=False):
    """Keywords of `melete.rm`: Train a reward model on preferences."""

    columns: Mapping[str, str]
    part: str
    max_tokens: int
    too_long: Literal["refuse", "drop"]
    data: DataLike
    loss: Literal["pairs", "rankings", "pointwise", "steps"]
    num_epochs: int
    rows_per_step: int
    replay: Sequence[str]
    replay_share: float
    center_coef: float
    held_out_share: float


class DPO(TrainingKeywords, total=False):
    """Keywords of `melete.dpo`: DPO and its family: learn from pairs without a reward model."""

    columns: Mapping[str, str]
    part: str
    max_tokens: int
    too_long: Literal["refuse", "drop"]
    algorithm: str
    algorithm_settings: Mapping[str, Value]
    data: DataLike
    task: TaskLike | None
    num_epochs: int
    pairs_per_step: int
    num_steps: int
    samples_per_prompt: int
    reward_model: ModelLike
    judge: JudgePartTable | None
    max_new_tokens: int
    temperature: float
    evaluation: EvaluationTable


class RL(TrainingKeywords, total=False):
    """Keywords of `melete.rl`: Reinforcement learning: GRPO, PPO and their relatives."""

    sampler: Literal["native", "vllm"]
    sampler_memory_share: float
    task: TaskLike
    late: LateTaskTable | None
    rewards: Mapping[str | Callable[..., Any], float]
    reward_parts: Mapping[str, RewardPartTable]
    reward_models: Mapping[str, RewardModelPartTable]
    reward_judges: Mapping[str, JudgePartTable]
    algorithm: str
    algorithm_settings: Mapping[str, Value]
    num_steps: int
    num_epochs: int
    num_minibatches: int
    approx_kl_limit: float | None
    max_staleness: int
    max_draws: int
    critic: CriticTable | bool | None
    reference: str
    teacher: ModelLike
    step_rewards: str
    prompts_per_step: int
    group_size: int
    max_new_tokens: int
    temperature: float
    reference_refresh_steps: int
    evaluation: EvaluationTable
    support: SupportTable
    health: HealthTable


class Reject(RunKeywords, total=False):
    """Keywords of `melete.reject`: Rejection sampling: keep what is right and readable as demonstrations."""

    sampler: Literal["native", "vllm"]
    sampler_memory_share: float
    model: ModelLike
    task: TaskLike
    judge: JudgePartTable | None
    num_prompts: int
    samples_per_prompt: int
    max_new_tokens: int
    temperature: float
    top_p: float
    min_score: float
    require_format: bool
    require_thought: bool
    readable: ReadableTable
    form: Literal["keep", "tidy"]
    max_similarity: float
    keep_per_prompt: int
    prefer: Literal["random", "shortest", "diverse"]
    max_rows: int


class Distill(TrainingKeywords, total=False):
    """Keywords of `melete.distill`: Distillation: a student learns from a teacher with the same tokenizer."""

    teacher: ModelLike
    method: Literal["sequence", "logits", "gkd", "on_policy"]
    student_share: float
    jsd_beta: float
    kd_temperature: float
    task: TaskLike
    num_steps: int
    prompts_per_step: int
    max_new_tokens: int
    evaluation: EvaluationTable


class Evaluate(RunKeywords, total=False):
    """Keywords of `melete.evaluate`: Examine models on held-out problems: pass@k, majority votes, intervals."""

    labels: Mapping[str, str]
    same_prompts: int
    final: str
    max_rows: int
    data: DataLike
    task: TaskLike | Sequence[TaskLike]
    num_problems: int
    num_samples: int
    max_new_tokens: int
    temperature: float
    top_p: float


class Generate(RunKeywords, total=False):
    """Keywords of `melete.generate`: Sample completions of prompts into a file."""

    sampler: Literal["native", "vllm"]
    sampler_memory_share: float
    prompts: Sequence[str]
    data: DataLike
    task: TaskLike | None
    split: Literal["train", "held_out"]
    num_prompts: int
    system: str
    samples_per_prompt: int
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    stop: Sequence[str]
    max_rows: int
