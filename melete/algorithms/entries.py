"""Everything that has a name: rows of the tables, losses of reward models, methods of distillation, KL estimators."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from melete.algorithms import metrics, notes
from melete.algorithms.late import actual
from melete.algorithms.preference import PREFERENCE_ALGORITHMS, PreferenceAlgorithm, PreferenceSettings
from melete.algorithms.row import Algorithm, parameters
from melete.algorithms.settings import AlgorithmSettings, setting
from melete.algorithms.table import ALGORITHMS
from melete.functional import distill, kl, policy, reward_model, supervised

Function = Callable[..., Any]
POLICY, PREFERENCE, DISTILLATION = "policy gradient", "preference", "distillation"
REWARD_MODEL, KL_ESTIMATOR = "reward model", "KL estimator"


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of a row with the value it has there."""

    name: str
    value: Any
    meaning: str
    source: str


@dataclass(frozen=True, slots=True)
class Entry:
    """Something with a name that can be explained; `functions` maps a role (credit, loss, ...) to what plays it."""

    family: str
    name: str
    formula: str
    paper: str
    needs: tuple[str, ...]
    functions: Mapping[str, Function]
    settings: tuple[Setting, ...] = ()
    metrics: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        return notes.NOTES[self.name]

    @property
    def line(self) -> str:
        """The first sentence of the note."""
        return self.note.partition(". ")[0]


@dataclass(frozen=True, slots=True)
class MethodSettings:
    """Settings of distillation and of reward models, named as in a recipe."""

    student_share: float = setting(0.5, "share of prompts on which the student writes what is learnt from", "GKD 0.5")
    jsd_beta: float = setting(
        0.5, "0 is the forward KL, 1 the reverse, between them the generalised JSD", "GKD and TRL 0.5"
    )
    kd_temperature: float = setting(1.0, "divides the logits of student and teacher", "1; Hinton et al. 2015 up to 20")
    center_coef: float = setting(
        0.01, "weight of the squared sum of a pair's scores, which holds them near 0", "TRL none"
    )


# what a row needs -> the word for it in a table
NEEDS: Mapping[str, str] = {
    "old_logprobs": "old",
    "ref_logprobs": "ref",
    "teacher_logprobs": "teacher",
    "values": "values",
    "step_rewards": "step rewards",
    "step_ends": "step ends",
}


def overview() -> list[Entry]:
    """Every entry of every table, family by family."""
    return [
        *(policy_entry(row) for row in ALGORITHMS.values()),
        *(_of_preference(row) for row in PREFERENCE_ALGORITHMS.values()),
        *_reward_models(),
        *_distillation(),
        *_kl_estimators(),
    ]


def policy_entry(row: Algorithm) -> Entry:
    return Entry(
        POLICY,
        row.name,
        row.formula,
        row.paper,
        tuple(word for stream, word in NEEDS.items() if stream in row.needs),
        {"credit": actual(row.credit), "loss": actual(row.loss)},
        _settings(AlgorithmSettings, row.defaults),
        tuple(_policy_metrics(row)),
    )


def _policy_metrics(row: Algorithm) -> Iterable[str]:
    """What training with this row logs: `token_losses` and the learner decide by the same tests."""
    names = parameters(row.loss)
    if "advantages" not in names:
        return [*metrics.OPTIMIZER, "num_dropped_rows", "entropy"]
    unlogged = set[str]()
    if not row.settings.dynamic_sampling:
        unlogged.add("num_sampled_groups")
    if "old_logprobs" not in names:
        unlogged |= {"ratio_max", "approx_kl"}
    if not {"clip_low", "clip_high"} <= set(names) or actual(row.loss) is policy.cispo:
        unlogged.add("clip_fraction")
    if "ref_logprobs" not in row.needs:
        unlogged.add("kl")
    if row.settings.kl_target is None:
        unlogged.add("kl_coef")
    if row.settings.correction == "none":
        unlogged.add("correction")
    critic = metrics.CRITIC if "values" in row.needs else dict[str, str]()
    return [
        name
        for name in {**metrics.ROLLOUTS, **metrics.OPTIMIZER, **metrics.UPDATES, **metrics.TOKENS, **critic}
        if name not in unlogged
    ]


def _of_preference(row: PreferenceAlgorithm) -> Entry:
    data = "liked and disliked completions" if row.unpaired else "pairs"
    sums = {"chosen_logprobs", "rejected_logprobs", "margin", "pair_accuracy"}
    unlogged = sums if row.unpaired else {"kl_baseline"}
    if not row.needs_reference:
        unlogged |= {"chosen_reward", "rejected_reward"}
    return Entry(
        PREFERENCE,
        row.name,
        row.formula,
        row.paper,
        (data, "ref") if row.needs_reference else (data,),
        {"loss": actual(row.loss)},
        _settings(PreferenceSettings, row.defaults),
        (*metrics.OPTIMIZER, *(name for name in metrics.PREFERENCES if name not in unlogged), "reward", "length_mean"),
    )


def _reward_models() -> list[Entry]:
    of_pairs = ("pair_accuracy", "chosen_score", "rejected_score", "mean_margin", "score_mean")
    on_held_out = ("calibration_error", "length_correlation")

    def entry(loss: Function, formula: str, paper: str, needs: str, logged: tuple[str, ...], *settings: str) -> Entry:
        chosen = _settings(MethodSettings, {key: getattr(MethodSettings(), key) for key in settings})
        logged = (*metrics.OPTIMIZER, *logged, *on_held_out)
        return Entry(REWARD_MODEL, loss.__name__, formula, paper, (needs,), {"loss": loss}, chosen, logged)

    return [
        entry(
            reward_model.bradley_terry,
            "loss = -log sigmoid(s_chosen - s_rejected - margin) + center_coef (s_chosen + s_rejected)^2",
            "Bradley and Terry 1952; Learning to summarize, Stiennon et al. 2020 (2009.01325)",
            "pairs",
            of_pairs,
            "center_coef",
        ),
        entry(
            reward_model.ranking,
            "loss = mean over pairs i < j of -log sigmoid(s_i - s_j), best first",
            "InstructGPT, Ouyang et al. 2022 (2203.02155), eq. 1",
            "rankings",
            of_pairs,
        ),
        entry(
            reward_model.pointwise,
            "loss = -y log sigmoid(s) - (1 - y) log sigmoid(-s)",
            "DeepSeek-R1, 2025 (2501.12948); Let's Verify Step by Step, Lightman et al. 2023 (2305.20050)",
            "labels of completions or of steps",
            ("accuracy", "label_accuracy"),
        ),
    ]


def _distillation() -> list[Entry]:
    logged = (*metrics.OPTIMIZER, "num_tokens", "num_rows")

    def entry(name: str, loss: Function, formula: str, paper: str, needs: tuple[str, ...], *settings: str) -> Entry:
        chosen = _settings(MethodSettings, {key: getattr(MethodSettings(), key) for key in settings})
        return Entry(DISTILLATION, name, formula, paper, needs, {"divergence": loss}, chosen, logged)

    return [
        entry(
            "sequence",
            supervised.negative_log_likelihood,
            "loss = sum_t -logprobs / num_tokens, on the teacher's right answers",
            "Kim and Rush 2016 (1606.07947); DeepSeek-R1, 2025 (2501.12948)",
            ("a teacher to sample", "a grader"),
        ),
        entry(
            "logits",
            distill.forward_kl,
            "loss = sum_t T^2 KL(teacher || student) / num_tokens, on the teacher's right answers",
            "Hinton et al. 2015 (1503.02531)",
            ("a teacher's logits", "a grader"),
            "kd_temperature",
        ),
        entry(
            "gkd",
            distill.generalized_jsd,
            "M = b teacher + (1 - b) student;  loss = b KL(teacher || M) + (1 - b) KL(student || M),  b = jsd_beta",
            "GKD, Agarwal et al. 2023 (2306.13649)",
            ("a teacher's logits",),
            "student_share",
            "jsd_beta",
            "kd_temperature",
        ),
        entry(
            "on_policy",
            distill.reverse_kl,
            "loss = sum_t T^2 KL(student || teacher) / num_tokens, on what the student writes",
            "MiniLLM, Gu et al. 2023 (2306.08543); On-Policy Distillation, Thinking Machines 2025",
            ("a teacher's logits",),
            "kd_temperature",
        ),
    ]


def _kl_estimators() -> list[Entry]:
    formulas = {
        "k1": "k1 = -log u,  u = exp(ref_logprobs - logprobs)",
        "k2": "k2 = (log u)^2 / 2,  u = exp(ref_logprobs - logprobs)",
        "k3": "k3 = u - 1 - log u,  u = exp(ref_logprobs - logprobs)",
        "k3_straight_through": "sg(k3) + k2 - sg(k2),  sg stops the gradient",
        "exact": "KL = sum_v p[v] (log p[v] - log q[v])",
    }
    paper = "Schulman 2020, Approximating KL divergence"
    functions: dict[str, Function] = {**kl.ESTIMATORS, "exact": kl.exact}
    return [
        Entry(
            KL_ESTIMATOR,
            name,
            formulas[name],
            "" if name == "exact" else paper,
            ("logits of both" if name == "exact" else "ref",),
            {"value": function},
        )
        for name, function in functions.items()
    ]


def _settings(owner: Any, values: Mapping[str, Any]) -> tuple[Setting, ...]:
    documented = {entry.name: entry.metadata for entry in fields(owner)}
    return tuple(
        Setting(name, value, documented[name]["meaning"], documented[name]["source"]) for name, value in values.items()
    )
