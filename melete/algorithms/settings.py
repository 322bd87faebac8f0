"""The settings of policy-gradient algorithms: what each means, its default and where the default comes from."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from melete.errors import RecipeError

if TYPE_CHECKING:
    from melete.functional.aggregate import Mode

KLPlace = Literal["loss", "reward"]
AGGREGATIONS = ("sequence_mean_token_mean", "token_mean", "sequence_mean_token_sum", "constant")
KL_ESTIMATORS = ("k1", "k2", "k3", "k3_straight_through")
Correction = Literal["none", "token_weights", "sequence_weights", "token_mask", "sequence_mask"]


def setting(default: Any, meaning: str, source: str) -> Any:
    """A field that carries its own documentation; `source` says who has this default and who another."""
    return field(default=default, metadata={"meaning": meaning, "source": source})


def one_of(what: str, name: str, valid: Iterable[str], place: str) -> None:
    """Raises `RecipeError` naming the nearest of `valid` when `name` is none of them."""
    known = list(valid)
    if name not in known:
        nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
        meant = f"did you mean {nearest[0]}? " if nearest else ""
        raise RecipeError(f"no {what} {name}", place=place, remedy=f"{meant}one of {', '.join(known)}")


def check_bounds(settings: Any, bounds: Mapping[str, tuple[float, float]]) -> None:
    """Raises `RecipeError` for the first setting outside its closed interval; `None` is always inside."""
    for key, (low, high) in bounds.items():
        value = getattr(settings, key)
        if value is not None and not (low <= value <= high and value < float("inf")):
            wanted = f"{low:g} or more" if high == float("inf") else f"in [{low:g}, {high:g}]"
            raise RecipeError(f"{key} must be {wanted}, not {value}", place=f"algorithm {settings.name}")


NOT_NEGATIVE = (0.0, float("inf"))


@dataclass(frozen=True, slots=True)
class AlgorithmSettings:
    """Every setting that a row of the table may declare; which ones it does is `Algorithm.defaults`."""

    name: str
    clip_low: float = setting(0.2, "a bad token stops falling at ratio 1 - clip_low", "PPO 0.2; GSPO 3e-4")
    clip_high: float = setting(0.2, "a good token stops rising at ratio 1 + clip_high", "PPO 0.2; DAPO 0.28; GSPO 4e-4")
    dual_clip: float | None = setting(
        None, "a bad token weighs at most this ratio; above 1", "none in PPO; 3 in dual-clip PPO; 4 in INTELLECT-2"
    )
    kl_coef: float = setting(
        0.0,
        "weight of the KL to the reference; 0 needs no reference",
        "DeepSeekMath 0.04; DeepSeek-R1 0.001; DAPO none",
    )
    kl_estimator: str = setting("k3", "how the KL is estimated from the tokens written", "GRPO k3; RLOO and PPO k1")
    kl_place: KLPlace = setting("loss", "added to each token's loss, or taken off the reward", "GRPO loss; PPO reward")
    kl_target: float | None = setting(
        None, "KL per token that the weight is adapted to; none keeps it fixed", "Ziegler et al. 2019"
    )
    kl_horizon: float = setting(10_000.0, "rollouts over which the weight adapts", "Ziegler et al. 2019: 10,000")
    entropy_coef: float = setting(0.0, "weight of the entropy bonus of each token", "none in GRPO; PPO for games 0.01")
    aggregation: Mode = setting(
        "token_mean", "how tokens become one number", "the four modes differ on long completions"
    )
    aggregation_constant: float | None = setting(
        None,
        "divisor of aggregation constant",
        "Dr. GRPO's code: the generation limit, which is the default in a recipe",
    )
    std_epsilon: float = setting(1e-6, "added to a standard deviation before dividing by it", "TRL 1e-4; verl 1e-6")
    std_correction: int = setting(1, "1 divides squares by n - 1, 0 by n", "TRL and verl 1; the paper's std is 0")
    gamma: float = setting(1.0, "discount of later rewards", "1 in RLHF")
    gae_lambda: float = setting(1.0, "1 trusts returns, lower trusts the critic", "InstructGPT 0.95; long thoughts 1.0")
    value_clip: float | None = setting(
        0.2, "a value moves at most this far per batch; none switches it off", "PPO2 0.2"
    )
    whiten_advantages: bool = setting(
        False, "bring advantages to mean 0 and deviation 1 over the step's tokens", "true in PPO, else false"
    )
    overlong_filter: bool = setting(
        False, "completions cut at the limit teach nothing: they leave the loss, not the group", "DAPO and DeepSWE true"
    )
    dynamic_sampling: bool = setting(
        False, "groups whose rewards are all equal are replaced by groups of other problems", "DAPO true"
    )
    correction: Correction = setting(
        "none",
        "for the difference between sampler and learner: weights cut at correction_cap, or a mask outside a band",
        "TRL masks rows whose ratio is above 3 when it uses vLLM; prime-rl token_mask",
    )
    correction_cap: float = setting(2.0, "largest weight of a correction by weights", "TIS 2; AReaL 5")
    correction_low: float = setting(0.5, "lowest ratio that a correction by mask keeps", "IcePop 0.5")
    correction_high: float = setting(2.0, "highest ratio that a correction by mask keeps", "IcePop 5; MIS 2")
    drift_limit: float | None = setting(
        None, "bad rows whose mean log-prob has fallen by more than this are left out", "DeepSeek-V3.2; none elsewhere"
    )

    def __post_init__(self) -> None:
        place = f"algorithm {self.name}"
        one_of("kl_estimator", self.kl_estimator, KL_ESTIMATORS, place)
        one_of("kl_place", self.kl_place, get_args(KLPlace), place)
        one_of("aggregation", self.aggregation, AGGREGATIONS, place)
        one_of("correction", self.correction, get_args(Correction), place)
        bounds = dict.fromkeys(
            ("clip_high", "kl_coef", "std_epsilon", "entropy_coef", "value_clip", "drift_limit", "correction_low"),
            NOT_NEGATIVE,
        )
        check_bounds(
            self, bounds | {"gamma": (0.0, 1.0), "gae_lambda": (0.0, 1.0), "correction_cap": (1e-6, float("inf"))}
        )
        if not 0 <= self.clip_low <= 1:
            raise RecipeError(f"clip_low must be in [0, 1], not {self.clip_low}", place=place)
        if self.dual_clip is not None and not 1 < self.dual_clip < float("inf"):
            raise RecipeError(f"dual_clip must be more than 1, not {self.dual_clip}", place=place)
        if self.correction_high <= self.correction_low:
            raise RecipeError("correction_high must be more than correction_low", place=place)
        for key in ("kl_target", "kl_horizon"):
            if (value := getattr(self, key)) is not None and not 0 < value < float("inf"):
                raise RecipeError(f"{key} must be more than 0, not {value}", place=place)
        if self.std_correction not in (0, 1):
            raise RecipeError(f"std_correction must be 0 or 1, not {self.std_correction}", place=place)

    @property
    def inactive(self) -> frozenset[str]:
        """Settings that change nothing because another one has switched them off."""
        switches = {
            "aggregation_constant": self.aggregation == "constant",
            "kl_estimator": self.kl_coef > 0,
            "kl_place": self.kl_coef > 0,
            "kl_target": self.kl_coef > 0,
            "kl_horizon": self.kl_coef > 0 and self.kl_target is not None,
            "correction_cap": self.correction.endswith("weights"),
            "correction_low": self.correction.endswith("mask"),
            "correction_high": self.correction.endswith("mask"),
        }
        return frozenset(key for key, is_on in switches.items() if not is_on)


def settings_of(settings: Any) -> dict[str, Any]:
    """Name -> value of every setting, the row's own name left out."""
    return {entry.name: getattr(settings, entry.name) for entry in fields(settings) if entry.name != "name"}
