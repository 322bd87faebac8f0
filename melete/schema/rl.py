"""Settings of reinforcement learning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from melete.schema.base import (
    Artefact,
    Count,
    CountOrNone,
    EvaluationSettings,
    Positive,
    Problem,
    SamplerStage,
    Seed,
    Setting,
    Settings,
    Share,
    TaskSettings,
    TrainingStage,
)
from melete.schema.health import HealthSettings, SupportSettings
from melete.schema.rewards import JudgePart, RewardModelPart, RewardPartSettings


class CriticSettings(Settings):
    """The value model of PPO: foretells the return of each token."""

    model: str = ""
    """Where its weights start: empty for the policy's own, else an earlier reward model or a directory."""
    trunk: Literal["own", "shared"] = "own"
    """A model of its own, or no more than a head on the policy's trunk: half the memory, and the two losses mix."""
    lr: Positive = 1e-3
    """Highest learning rate; about ten times the policy's. With a shared trunk it is the head's."""
    value_coef: Positive = 0.1
    """With a shared trunk: weight of the value loss in the policy's."""
    warmup_steps: CountOrNone = 0
    """Steps at the start in which only the critic learns."""


class LateTask(Settings):
    """Further problems that join in the last part of the stage, such as general prompts with preference rewards."""

    task: TaskSettings
    """The problems."""
    start: Annotated[Share, Field(lt=1)] = 0.75
    """Share of the steps after which they come (DeepSeek-R1: after 1,300 of 1,700)."""
    share: Annotated[Share, Field(gt=0, lt=1)] = 0.5
    """Their share of the problems from then on."""


class RLStage(SamplerStage, TrainingStage):
    """Reinforcement learning with verifiable rewards: sample, grade, give credit, update."""

    kind: Literal["rl"]
    """The kind of stage."""
    task: TaskSettings
    """The problems."""
    late: LateTask | None = None
    """A table [stage.late] adds other problems in the last part of the stage."""
    rewards: Annotated[dict[str, float], Field(min_length=1)] = {"accuracy": 1.0}
    """Weight of each part of the reward, by name."""
    reward_parts: dict[str, RewardPartSettings] = {}
    """How single parts are made and counted, by the name that `rewards` weighs them with."""
    reward_models: dict[str, RewardModelPart] = {}
    """Parts of the reward that are scores of trained models, by the name that `rewards` weighs them with."""
    reward_judges: dict[str, JudgePart] = {}
    """Parts of the reward that are verdicts of language models, by the name that `rewards` weighs them with."""
    algorithm: str = "grpo"
    """A row of the table of algorithms, or the import path of a loss of your own, such as mypackage.losses:mine."""
    algorithm_settings: dict[str, Setting] = {}
    """Settings of the algorithm that differ from its own defaults, such as kl_coef or clip_high."""
    num_steps: Count = 100
    """Steps, each on fresh rollouts."""
    num_epochs: Count = 1
    """Passes over the rollouts of a step."""
    num_minibatches: Count = 1
    """Optimizer steps per pass."""
    approx_kl_limit: Positive | None = None
    """Updates of a step end early once the KL to the policy that wrote the rollouts exceeds this."""
    max_staleness: CountOrNone = 0
    """Steps that the sampler's weights may be behind the learner's; 0 is synchronous training."""
    max_draws: Count = 4
    """Draws of problems that dynamic sampling may make for one step."""
    critic: CriticSettings | None = None
    """A table [stage.critic] gives the algorithm a value model; ppo needs one."""
    reference: Annotated[str, Field(min_length=1)] = "start"
    """The reference of the KL: "start" for the model as it was when the stage began, "none", or another model."""
    teacher: str = ""
    """The model that on_policy_distillation learns from."""
    step_rewards: str = ""
    """What rewards single steps of a thought, for grpo_process: "task", or an earlier reward model."""
    prompts_per_step: Count = 16
    """Problems per step."""
    group_size: Count = 8
    """Rollouts per problem, compared with each other."""
    max_new_tokens: Count = 128
    """Longest completion, in tokens; longer ones are cut and count as truncated."""
    temperature: Positive = 1.0
    """Sampling temperature, the learner's too."""
    reference_refresh_steps: CountOrNone = 0
    """Steps after which the reference model becomes the current one; 0 for never."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """Evaluation on held-out problems."""
    support: SupportSettings = SupportSettings()
    """The check before the first step: is the model sometimes right?"""
    health: HealthSettings = HealthSettings()
    """Limits of the findings that are made while the stage runs."""

    def reads(self) -> list[str]:
        others = [self.reference] if self.reference not in ("start", "none") else []
        others += [self.teacher] if self.teacher else []
        others += [self.critic.model] if self.critic and self.critic.model else []
        others += [self.step_rewards] if self.step_rewards not in ("", "task") else []
        others += [judge.model for judge in self.reward_judges.values() if not judge.base_url]
        return [*super().reads(), *others, *(part.model for part in self.reward_models.values())]

    def task_tables(self) -> dict[str, TaskSettings]:
        return super().task_tables() | ({"late.task": self.late.task} if self.late else {})

    def plan(self) -> str:
        return f"{self.algorithm} from {self.model} on {self._budget()}"

    def _budget(self) -> str:
        rewards = " + ".join(f"{weight:g} {part}" for part, weight in self.rewards.items())
        rollouts = f"{self.prompts_per_step} x {self.group_size} rollouts"
        return f"{self.task.name}, {self.num_steps} steps of {rollouts}, lr {self.lr:g}, reward {rewards}"

    def problems(self) -> Iterator[Problem]:
        yield from self._critic_problems()
        yield from self._part_problems()
        if self.warmup_steps > self.num_steps:
            yield "warmup_steps", f"{self.warmup_steps} is more than num_steps {self.num_steps}"
        if self.max_tokens_per_microbatch <= self.max_new_tokens:
            yield (
                "max_tokens_per_microbatch",
                f"{self.max_tokens_per_microbatch} cannot hold one completion of max_new_tokens {self.max_new_tokens}",
            )
        if all(weight == 0 for weight in self.rewards.values()):
            yield "rewards", "every weight is 0, so every reward is 0 and nothing is learnt"

    def _critic_problems(self) -> Iterator[Problem]:
        if self.critic and self.critic.trunk == "shared" and self.critic.model:
            yield "critic.model", "starts a trunk of its own, and the trunk is shared; leave one of them out"
        if self.critic and self.critic.trunk == "own" and self.critic.value_coef != CriticSettings().value_coef:
            yield "critic.value_coef", 'belongs to trunk = "shared"; a critic of its own has its own loss'

    def _part_problems(self) -> Iterator[Problem]:
        for table in ("reward_models", "reward_judges", "reward_parts"):
            for name in getattr(self, table):
                if name not in self.rewards:
                    yield f"{table}.{name}", f"has no weight; add it to rewards: {name} = 1.0"
        for name in self.reward_models.keys() & self.reward_judges.keys():
            yield f"reward_judges.{name}", "is the name of a reward model too; choose another"
        for name, judge in self.reward_judges.items():
            if judge.verdict == "win_rate" and judge.num_calls < 2:
                yield f"reward_judges.{name}.num_calls", "must be at least 2 for win_rate, one in each order"
        for name, part in self.reward_parts.items():
            if part.gate and (part.gate not in self.rewards or part.gate == name):
                yield (
                    f"reward_parts.{name}.gate",
                    f"{part.gate!r} is no other part of rewards; give it a weight, 0 will do",
                )


TRAINING_SETTINGS = ("lr", "num_epochs", "num_minibatches")  # of a stage, and apart for each algorithm of a comparison


class CompareStage(RLStage):
    """The same reinforcement learning with several algorithms and seeds: one table and one plot."""

    makes: ClassVar[Artefact] = "nothing"
    kind: Literal["compare"]  # type: ignore[assignment]
    """The kind of stage."""
    algorithms: Annotated[list[str], Field(min_length=1)]
    """Rows of the table, or import paths."""
    settings_of: dict[str, dict[str, Setting]] = {}
    """Settings of single algorithms, by the algorithm's name: its own, or lr, num_epochs and num_minibatches."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0, 1, 2]
    """Each algorithm is run once with each seed."""
    num_workers: Count = 2
    """Processes that work at the same time, one thread each."""
    support: SupportSettings = SupportSettings(num_problems=0)
    """The check before the first step of each run; off, because they all begin with the same model."""

    def settings_for(self, algorithm: str) -> tuple[dict[str, Setting], dict[str, Setting]]:
        """Settings of this row, and of its training, that differ from what all share."""
        given = self.settings_of.get(algorithm, {})
        training = {name: given[name] for name in TRAINING_SETTINGS if name in given}
        return {name: value for name, value in given.items() if name not in training}, training

    def plan(self) -> str:
        names = ", ".join(self.algorithms)
        return f"{names} with {len(self.seeds)} seeds each, from {self.model} on {self._budget()}"
