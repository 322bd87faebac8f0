"""The table of preference algorithms: DPO and its family.

A row names a loss of pairs, or of single completions that somebody liked or did not (`kto`). A loss is handed what its
parameters name: sums of log-probs over the completion, lengths in tokens, and settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, cast

from melete.algorithms.late import LateModule
from melete.algorithms.row import call, parameters
from melete.algorithms.settings import NOT_NEGATIVE, check_bounds, one_of, setting, settings_of
from melete.errors import RecipeError
from melete.imports import import_path

if TYPE_CHECKING:
    from torch import Tensor

    from melete.functional import preference
else:  # the table is read without torch, which its functions bring
    preference = LateModule("preference")

PAIR_INPUTS = frozenset(
    {
        "chosen_logprobs",
        "rejected_logprobs",
        "ref_chosen_logprobs",
        "ref_rejected_logprobs",
        "chosen_lengths",
        "rejected_lengths",
    }
)
SINGLE_INPUTS = frozenset({"logprobs", "ref_logprobs", "desirable", "kl_baseline"})


@dataclass(frozen=True, slots=True)
class PreferenceSettings:
    """Every setting that a row may declare; which ones it does is `PreferenceAlgorithm.defaults`."""

    name: str
    beta: float = setting(
        0.1, "how strongly the policy is held to the reference", "DPO 0.1; length-normalised 5; SimPO 2"
    )
    label_smoothing: float = setting(
        0.0, "share of pairs taken to be the wrong way round", "DPO 0; cDPO and robust 0.1"
    )
    target_margin: float = setting(1.0, "margin in reward that a pair should have", "SimPO gamma/beta about 0.5")
    orpo_coef: float = setting(0.1, "weight of the odds-ratio term", "ORPO 0.1")
    nll_coef: float = setting(1.0, "weight of imitating the chosen completion", "iterative RPO 1")
    desirable_weight: float = setting(1.0, "weight of liked completions", "KTO 1; raise it when they are rare")
    undesirable_weight: float = setting(1.0, "weight of disliked completions", "KTO 1")

    def __post_init__(self) -> None:
        names = ("target_margin", "orpo_coef", "nll_coef", "desirable_weight", "undesirable_weight")
        bounds: dict[str, tuple[float, float]] = {name: NOT_NEGATIVE for name in names}
        check_bounds(self, bounds)
        place = f"algorithm {self.name}"
        if not 0 < self.beta < float("inf"):
            raise RecipeError(f"beta must be more than 0, not {self.beta}", place=place)
        if not 0 <= self.label_smoothing < 0.5:
            raise RecipeError(f"label_smoothing must be in [0, 0.5), not {self.label_smoothing}", place=place)


@dataclass(frozen=True, slots=True)
class PreferenceAlgorithm:
    """A row: `loss(...)` gives one value per pair [P], or per completion [B] where it takes them unpaired."""

    name: str
    loss: Callable[..., Tensor]
    settings: PreferenceSettings
    paper: str
    formula: str

    @property
    def unpaired(self) -> bool:
        return "desirable" in parameters(self.loss)

    @property
    def needs_reference(self) -> bool:
        return any(name.startswith("ref_") for name in parameters(self.loss))

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The settings that change what this row does, with the values it has; no other may be given."""
        return {key: value for key, value in settings_of(self.settings).items() if key in parameters(self.loss)}

    def losses(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return call(self.loss, inputs, self.settings)


def _row(name: str, loss: Callable[..., Tensor], paper: str, formula: str, **settings: Any) -> PreferenceAlgorithm:
    return PreferenceAlgorithm(name, loss, PreferenceSettings(name, **settings), paper, formula)


H = "h = log(policy/ref)(chosen) - log(policy/ref)(rejected)"

PREFERENCE_ALGORITHMS: Mapping[str, PreferenceAlgorithm] = {
    row.name: row
    for row in (
        _row(
            "dpo", preference.dpo, "DPO, Rafailov et al. 2023 (2305.18290), eq. 7", f"{H};  loss = -log sigmoid(beta h)"
        ),
        _row(
            "cdpo",
            preference.dpo,
            "conservative DPO, Mitchell 2023",
            f"{H};  loss = -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h),  e = label_smoothing",
            label_smoothing=0.1,
        ),
        _row(
            "robust_dpo",
            preference.robust_dpo,
            "Provably Robust DPO, Chowdhury et al. 2024 (2403.00409)",
            "loss = ((1 - e) L(chosen, rejected) - e L(rejected, chosen)) / (1 - 2 e),  e = label_smoothing",
            label_smoothing=0.1,
        ),
        _row(
            "ipo",
            preference.ipo,
            "IPO, Azar et al. 2023 (2310.12036), eq. 17",
            "loss = (h - 1 / (2 beta))^2, h of mean log-probs",
        ),
        _row(
            "length_normalized_dpo",
            preference.length_normalized_dpo,
            "Tulu 3, Lambert et al. 2024 (2411.15124), section 5.2",
            "loss = -log sigmoid(beta (h_chosen / len_chosen - h_rejected / len_rejected))",
            beta=5.0,
        ),
        _row(
            "simpo",
            preference.simpo,
            "SimPO, Meng et al. 2024 (2405.14734), eq. 6",
            "loss = -log sigmoid(beta mean logprobs(chosen) - beta mean logprobs(rejected) - target_margin)",
            beta=2.0,
            target_margin=1.0,
        ),
        _row(
            "orpo",
            preference.orpo,
            "ORPO, Hong et al. 2024 (2403.07691), eq. 6 and 7",
            "loss = NLL(chosen) / len(chosen) - orpo_coef log sigmoid(log odds(chosen) - log odds(rejected))",
        ),
        _row("hinge", preference.hinge, "SLiC-HF, Zhao et al. 2023 (2305.10425)", f"{H};  loss = max(0, 1 - beta h)"),
        _row(
            "dpo_nll",
            preference.dpo_nll,
            "Iterative RPO, Pang et al. 2024 (2404.19733), eq. 1",
            f"{H};  loss = -log sigmoid(beta h) + nll_coef NLL(chosen) / len(chosen)",
        ),
        _row(
            "kto",
            preference.kto,
            "KTO, Ethayarajh et al. 2024 (2402.01306), eq. 7",
            "rho = log(policy/ref);  liked: loss = w (1 - sigmoid(beta (rho - z)));  "
            "disliked: loss = w (1 - sigmoid(beta (z - rho)))",
        ),
    )
}


def resolve_preference(name: str, **overrides: Any) -> PreferenceAlgorithm:
    """The row `name`, or the loss at "package.module:function" in a row of its own, with other settings.

    >>> resolve_preference("dpo", beta=0.5).settings.beta
    0.5
    """
    place = f"algorithm {name}"
    if ":" in name:
        row = _imported(name)
    else:
        one_of("preference algorithm", name, PREFERENCE_ALGORITHMS, place)
        row = PREFERENCE_ALGORITHMS[name]
    given = {key: value for key, value in overrides.items() if value is not None}
    for key in given:
        one_of("setting", key, sorted(row.defaults), place)
    return replace(row, settings=replace(row.settings, **given))


def _imported(path: str) -> PreferenceAlgorithm:
    place = f"algorithm {path}"
    found = import_path(path, place=place, or_a=PreferenceAlgorithm)
    if isinstance(found, PreferenceAlgorithm):
        return found
    loss = cast("Callable[..., Tensor]", found)
    known = PAIR_INPUTS | SINGLE_INPUTS | {entry.name for entry in fields(PreferenceSettings)}
    if unknown := [n for n, p in parameters(loss).items() if n not in known and p.default is p.empty]:
        what = f"{path} asks for {unknown[0]}, which a preference loss cannot have"
        raise RecipeError(what, place=place, remedy=f"parameters: {', '.join(sorted(known))}")
    return PreferenceAlgorithm(path, loss, PreferenceSettings(path), "your own", loss.__doc__ or "")


def pair_metrics(algorithm: PreferenceAlgorithm, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums over pairs: chosen and rejected log-probs apart, because both may fall while their gap grows."""
    inputs = {name: values.detach() for name, values in inputs.items()}
    chosen, rejected = inputs["chosen_logprobs"], inputs["rejected_logprobs"]
    metrics = {"chosen_logprobs": chosen, "rejected_logprobs": rejected}
    if algorithm.needs_reference:
        beta = algorithm.settings.beta
        good = preference.implied_reward(chosen, inputs["ref_chosen_logprobs"], beta=beta)
        bad = preference.implied_reward(rejected, inputs["ref_rejected_logprobs"], beta=beta)
        metrics |= {"chosen_reward": good, "rejected_reward": bad}
    else:
        sides = ((chosen, "chosen_lengths"), (rejected, "rejected_lengths"))
        good, bad = (sums / inputs[lengths].clamp(min=1) for sums, lengths in sides)
    metrics |= {"margin": good - bad, "pair_accuracy": (good > bad).to(good) + 0.5 * (good == bad).to(good)}
    return {name: values.sum() for name, values in metrics.items()}
