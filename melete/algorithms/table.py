"""The table of policy-gradient algorithms.

A row says how credit is given (`credit`), what each token then costs (`loss`), how tokens become one number
(`aggregation`) and where the KL to the reference goes. A function is handed what its parameters name, so the functions
of `functional/` stand in the table as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, cast

from melete.algorithms.late import LateModule
from melete.algorithms.row import LOSS_INPUTS, Algorithm, Credit, parameters
from melete.algorithms.settings import AlgorithmSettings, one_of
from melete.errors import RecipeError
from melete.imports import import_path

if TYPE_CHECKING:
    from torch import Tensor

    from melete.functional import advantages as credits
    from melete.functional import distill, policy, supervised, value
else:  # the table is read without torch, which its functions bring
    credits, distill, policy = LateModule("advantages"), LateModule("distill"), LateModule("policy")
    supervised, value = LateModule("supervised"), LateModule("value")


def _row(
    name: str,
    credit: Callable[..., Credit],
    loss: Callable[..., Tensor],
    paper: str,
    formula: str,
    **settings: Any,
) -> Algorithm:
    return Algorithm(name, credit, loss, AlgorithmSettings(name, **settings), paper, formula)


CLIPPED = "-min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A)"

ALGORITHMS: Mapping[str, Algorithm] = {
    row.name: row
    for row in (
        _row(
            "sft",
            credits.uniform,
            supervised.negative_log_likelihood,
            paper="maximum likelihood; InstructGPT, Ouyang et al. 2022 (2203.02155), step 1",
            formula="loss = sum_t -logprobs / num_tokens",
            aggregation="token_mean",
        ),
        _row(
            "ppo",
            value.gae,
            policy.clipped,
            paper="Schulman et al. 2017 (1707.06347), eq. 7; for RLHF, InstructGPT (2203.02155)",
            formula=(
                "r_t = -kl_coef k1_t + [t last] r;  A_t = sum_k (gamma gae_lambda)^k delta_{t+k}, whitened;  "
                f"loss = sum_t {CLIPPED} / num_tokens"
            ),
            aggregation="token_mean",
            kl_coef=0.02,
            kl_estimator="k1",
            kl_place="reward",
            gae_lambda=0.95,
            whiten_advantages=True,
        ),
        _row(
            "grpo",
            credits.group_mean_std,
            policy.clipped,
            paper="DeepSeekMath, Shao et al. 2024 (2402.03300), eq. 3; kl_coef 0.001 as in DeepSeek-R1 (2501.12948)",
            formula=f"A = (r - mean) / std;  loss = mean_rows mean_t ({CLIPPED} + kl_coef k3)",
            aggregation="sequence_mean_token_mean",
            kl_coef=0.001,
            kl_estimator="k3",
        ),
        _row(
            "grpo_process",
            credits.process_mean_std,
            policy.clipped,
            paper="DeepSeekMath, Shao et al. 2024 (2402.03300), section 4.1.3",
            formula=f"A_t = sum of the normalised rewards of steps ending at or after t;  loss as in grpo: {CLIPPED}",
            aggregation="sequence_mean_token_mean",
            kl_coef=0.001,
            kl_estimator="k3",
        ),
        _row(
            "dr_grpo",
            credits.group_mean,
            policy.clipped,
            paper="Understanding R1-Zero-like training, Liu et al. 2025 (2503.20783), section 3.2",
            formula=f"A = r - mean;  loss = mean_rows sum_t {CLIPPED} / aggregation_constant",
            aggregation="constant",
        ),
        _row(
            "dapo",
            credits.group_mean_std,
            policy.clipped,
            paper="DAPO, Yu et al. 2025 (2503.14476), eq. 8",
            formula=f"A = (r - mean) / std;  loss = sum_t {CLIPPED} / num_tokens",
            aggregation="token_mean",
            clip_low=0.2,
            clip_high=0.28,
            overlong_filter=True,
            dynamic_sampling=True,
        ),
        _row(
            "lite_ppo",
            credits.batch_std,
            policy.clipped,
            paper="Tricks or Traps, Liu et al. 2025 (2508.08221)",
            formula=f"A = (r - mean) / std of the batch;  loss = sum_t {CLIPPED} / num_tokens",
            aggregation="token_mean",
        ),
        _row(
            "rloo",
            credits.leave_one_out,
            policy.reinforce,
            paper="Back to Basics, Ahmadian et al. 2024 (2402.14740), eq. 8",
            formula="R = r - kl_coef sum_t k1;  A = R - mean(others);  loss = mean_rows sum_t -A logprobs",
            aggregation="sequence_mean_token_sum",
            kl_coef=0.03,
            kl_estimator="k1",
            kl_place="reward",
        ),
        _row(
            "reinforce_plus_plus",
            credits.batch_whitened_returns,
            policy.clipped,
            paper="REINFORCE++, Hu 2025 (2501.03262)",
            formula=f"A_t = sum_(s >= t) r_s, whitened over the step's tokens;  loss = sum_t {CLIPPED} / num_tokens",
            aggregation="token_mean",
            kl_coef=0.01,
            kl_estimator="k1",
            kl_place="reward",
        ),
        _row(
            "reinforce_plus_plus_baseline",
            credits.group_mean_batch_whitened,
            policy.clipped,
            paper="REINFORCE++ with baseline, Hu 2025 (2501.03262)",
            formula=(
                f"A = r - mean, whitened over the step's tokens;  loss = sum_t ({CLIPPED} + kl_coef k2) / num_tokens"
            ),
            aggregation="token_mean",
            kl_coef=0.01,
            kl_estimator="k2",
        ),
        _row(
            "gspo",
            credits.group_mean_std,
            policy.sequence_clipped,
            paper="GSPO, Zheng et al. 2025 (2507.18071), eq. 5 and 14",
            formula=(
                "s = exp(mean_t log ratio);  loss = mean_rows mean_t -min(s A, clip(s, 1 - clip_low, 1 + clip_high) A)"
            ),
            aggregation="sequence_mean_token_mean",
            clip_low=3e-4,
            clip_high=4e-4,
        ),
        _row(
            "cispo",
            credits.group_mean_std,
            policy.cispo,
            paper="MiniMax-M1, 2025 (2506.13585), eq. 4",
            formula="loss = sum_t -sg(clip(ratio, 1 - clip_low, 1 + clip_high)) A logprobs / num_tokens",
            aggregation="token_mean",
            clip_low=1.0,
            clip_high=4.0,
        ),
        _row(
            "gdpo",
            credits.per_reward_group_mean_std,
            policy.clipped,
            paper="GDPO, Liu et al. 2026 (2601.05242)",
            formula=f"A = whitened sum_k w_k (r_k - mean_k) / std_k;  loss = sum_t {CLIPPED} / num_tokens",
            aggregation="token_mean",
        ),
        _row(
            "two_sided",
            credits.group_mean_std,
            policy.clipped,
            paper="INTELLECT-2, 2025 (2505.07291), section 3.4",
            formula=f"loss = sum_t {CLIPPED} / num_tokens, and for A < 0 the ratio counts as at most dual_clip",
            aggregation="token_mean",
            dual_clip=4.0,
        ),
        _row(
            "decoupled_ppo",
            credits.group_mean_std,
            policy.clipped,
            paper="AReaL, Fu et al. 2025 (2505.24298), eq. 5",
            formula=f"loss = sum_t min(exp(old - rollout), correction_cap) {CLIPPED} / num_tokens",
            aggregation="token_mean",
            correction="token_weights",
            correction_cap=5.0,
        ),
        _row(
            "on_policy_distillation",
            distill.sampled_reverse_kl_advantages,
            policy.clipped,
            paper="MiniLLM, Gu et al. 2023 (2306.08543); On-Policy Distillation, Thinking Machines 2025",
            formula=f"A_t = teacher_logprobs - logprobs;  loss = sum_t {CLIPPED} / num_tokens",
            aggregation="token_mean",
        ),
    )
}


def resolve(name: str, *, max_new_tokens: int | None = None, **overrides: Any) -> Algorithm:
    """The row `name` with other settings; an override of `None` keeps the row's value.

    `name` may be the import path of your own loss, "package.module:function". Its parameters are any of `logprobs,
    old_logprobs, ref_logprobs, advantages, mask` and settings of `AlgorithmSettings`; it returns one loss per token,
    and everything else is as in `grpo` with aggregation "token_mean" and no KL. It may also name a whole row, an
    `Algorithm`.
    `max_new_tokens` is the divisor of aggregation "constant" where none is given.

    >>> resolve("dapo", clip_high=0.3).settings.clip_high
    0.3
    """
    place = f"algorithm {name}"
    if ":" in name:
        row = _imported_row(name)
    else:
        one_of("algorithm", name, ALGORITHMS, place)
        row = ALGORITHMS[name]
    given = {key: value for key, value in overrides.items() if value is not None}
    known = [entry.name for entry in fields(AlgorithmSettings) if entry.name != "name"]
    for key in given:
        if key not in known:
            one_of("setting", key, sorted(row.defaults), place)
    # all at once, because one setting may switch another one on
    row = replace(row, settings=replace(row.settings, **given))
    for key in given:
        if key in row.settings.inactive:
            raise RecipeError(f"{key} changes nothing here: {INACTIVE[key]}", place=place, remedy=f"leave {key} out")
        one_of("setting", key, sorted(row.defaults), place)
    if row.aggregation == "constant" and row.settings.aggregation_constant is None and max_new_tokens:
        row = replace(row, settings=replace(row.settings, aggregation_constant=float(max_new_tokens)))
    _refuse_impossible(row)
    return row


INACTIVE: Mapping[str, str] = {
    "aggregation_constant": 'aggregation is not "constant"',
    "kl_estimator": "kl_coef is 0",
    "kl_place": "kl_coef is 0",
    "kl_target": "kl_coef is 0",
    "kl_horizon": "there is no kl_target",
    "correction_cap": "correction is not by weights",
    "correction_low": "correction is not by mask",
    "correction_high": "correction is not by mask",
}


def _refuse_impossible(row: Algorithm) -> None:
    place, constant = f"algorithm {row.name}", row.settings.aggregation_constant
    if row.aggregation == "constant" and (constant is None or constant <= 0):
        what = f'aggregation "constant" divides by a number above 0, and aggregation_constant is {constant}'
        raise RecipeError(what, place=place, remedy="set aggregation_constant, usually to max_new_tokens")
    if row.loss == policy.sequence_clipped and row.settings.correction.startswith("token"):
        what = "the ratio of a whole sequence cannot be corrected token by token: all its tokens share one ratio"
        raise RecipeError(what, place=place, remedy='use correction "sequence_weights" or "sequence_mask"')


def _imported_row(path: str) -> Algorithm:
    """The row, or the loss with the rest of a row around it, at "package.module:name"."""
    place = f"algorithm {path}"
    found = import_path(path, place=place, or_a=Algorithm)
    if isinstance(found, Algorithm):
        return found
    loss = cast("Callable[..., Tensor]", found)
    known = LOSS_INPUTS | {entry.name for entry in fields(AlgorithmSettings)}
    for name, parameter in parameters(loss).items():
        if name not in known and parameter.default is inspect.Parameter.empty:
            what = f"{path} asks for {name}, which a loss cannot have"
            raise RecipeError(what, place=place, remedy=f"parameters: {', '.join(sorted(known))}")
    if "logprobs" not in parameters(loss):
        raise RecipeError(f"{path} has no parameter logprobs, so it cannot teach the policy", place=place)
    formula = inspect.getdoc(loss) or ""
    return Algorithm(path, credits.group_mean_std, loss, AlgorithmSettings(path), "your own", formula)
