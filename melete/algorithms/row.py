"""A row of the table: credit, loss and settings, handed to each other by the names of their parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from melete.algorithms.settings import AlgorithmSettings, KLPlace, settings_of

if TYPE_CHECKING:
    from torch import Tensor

    from melete.functional.aggregate import Mode

Stream = Literal["old_logprobs", "ref_logprobs", "teacher_logprobs", "values", "step_rewards", "step_ends"]
Credit: TypeAlias = "Tensor | tuple[Tensor, Tensor]"

# what a credit function may name; `logprobs` are those at the start of the update
CREDIT_STREAMS: Mapping[str, Stream] = {
    "logprobs": "old_logprobs",
    "teacher_logprobs": "teacher_logprobs",
    "values": "values",
    "step_rewards": "step_rewards",
    "step_ends": "step_ends",
}
CREDIT_INPUTS = frozenset(
    {"rewards", "group_ids", "valid", "mask", "token_rewards", "reward_parts", "part_weights", *CREDIT_STREAMS}
)
LOSS_INPUTS = frozenset({"logprobs", "old_logprobs", "ref_logprobs", "rollout_logprobs", "advantages", "mask"})
EVERY_POLICY_ROW = frozenset(
    {
        "kl_coef",
        "kl_estimator",
        "kl_place",
        "kl_target",
        "kl_horizon",
        "entropy_coef",
        "overlong_filter",
        "correction",
        "correction_cap",
        "correction_low",
        "correction_high",
        "drift_limit",
    }
)


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A row: `credit(...)` gives advantages [B] or [B, T], or those and returns; `loss(logprobs, ...)` gives [B, T]."""

    name: str
    credit: Callable[..., Credit]
    loss: Callable[..., Tensor]
    settings: AlgorithmSettings
    paper: str
    formula: str

    @property
    def aggregation(self) -> Mode:
        return self.settings.aggregation

    @property
    def kl_coef(self) -> float:
        return self.settings.kl_coef

    @property
    def kl(self) -> tuple[str, KLPlace | None]:
        """The estimator and where its value goes; `None` when there is no KL."""
        return self.settings.kl_estimator, self.settings.kl_place if self.kl_coef > 0 else None

    @property
    def needs(self) -> frozenset[Stream]:
        """The streams that have to be computed before the update."""
        place, names = self.kl[1], parameters(self.loss)
        wanted: set[Stream] = {s for name, s in CREDIT_STREAMS.items() if name in parameters(self.credit)}
        if "old_logprobs" in names or place == "reward" or self.settings.correction != "none":
            wanted.add("old_logprobs")
        if "ref_logprobs" in names or place is not None:
            wanted.add("ref_logprobs")
        return frozenset(wanted)

    @property
    def optional(self) -> frozenset[Stream]:
        """Of those, what the update can do without when it is the only one of its rollouts: its own log-probs."""
        computed_from = "logprobs" in parameters(self.credit) or self.settings.correction != "none"
        return frozenset() if computed_from else frozenset({"old_logprobs"})

    @property
    def uses_groups(self) -> bool:
        """Whether siblings are compared, so that a group of one teaches nothing."""
        return {"rewards", "group_ids"} <= set(parameters(self.credit)) and "advantages" in parameters(self.loss)

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The settings that change what this row does, with the values it has; no other may be given."""
        names = set(parameters(self.credit)) | set(parameters(self.loss)) | {"aggregation", "aggregation_constant"}
        if "advantages" in names:
            names |= EVERY_POLICY_ROW
        if self.uses_groups:
            names.add("dynamic_sampling")
        if "values" in names:
            names |= {"value_clip", "whiten_advantages"}
        names -= self.settings.inactive
        return {key: value for key, value in settings_of(self.settings).items() if key in names}

    def advantages(self, rewards: Tensor, group_ids: Tensor, valid: Tensor, **streams: Tensor) -> Tensor:
        """Advantages of each row [B] or each token [B, T]; rows that are not valid get 0."""
        found = self.advantages_and_returns(rewards=rewards, group_ids=group_ids, valid=valid, **streams)
        return found[0] if isinstance(found, tuple) else found

    def advantages_and_returns(self, **inputs: Tensor) -> Credit:
        """The same, and for a row with a critic the returns [B, T] that it should have foretold.

        Raises `ValueError` when an input that the credit function cannot do without is missing.
        """
        unknown = [name for name in parameters(self.credit) if name in CREDIT_INPUTS and name not in inputs]
        missing = [n for n in unknown if parameters(self.credit)[n].default is inspect.Parameter.empty]
        if missing:
            raise ValueError(f"{self.name} needs {', '.join(missing)}")
        return call(self.credit, inputs, self.settings)


def parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def call(function: Callable[..., Any], inputs: Mapping[str, Any], settings: Any) -> Any:
    """Hands a function what its parameters name, first from `inputs`, then from `settings`."""
    wanted = [name for name in parameters(function) if name in inputs or hasattr(settings, name)]
    return function(**{name: inputs[name] if name in inputs else getattr(settings, name) for name in wanted})
