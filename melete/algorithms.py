"""The table of algorithms: an algorithm is a row, not a trainer class.

A row says how credit is given (`credit`, one advantage per row), what each token then costs (`loss`), how tokens become
one number (`aggregation`) and where the KL to the reference goes. A function is handed what its parameters name, so the
functions of `functional/` stand in the table as they are, and a new one is added in four hunks: the function, its
row, a golden test and a row of docs/algorithms.md.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from melete.errors import RecipeError
from melete.functional import advantages as credits
from melete.functional import kl, policy, supervised
from melete.functional.aggregate import MODES, Mode
from melete.functional.logprobs import log_ratio

KLPlace = Literal["loss", "reward"]
Stream = Literal["old_logprobs", "ref_logprobs"]
CREDIT_INPUTS = frozenset({"rewards", "group_ids", "valid"})
LOSS_INPUTS = frozenset({"logprobs", "old_logprobs", "ref_logprobs", "advantages"})


def _one_of(what: str, name: str, valid: list[str], place: str) -> None:
    if name not in valid:
        nearest = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.4)
        meant = f"did you mean {nearest[0]}? " if nearest else ""
        raise RecipeError(f"no {what} {name}", place=place, remedy=f"{meant}one of {', '.join(valid)}")


@dataclass(frozen=True, slots=True)
class AlgorithmSettings:
    """Every setting that a row of the table may declare; which ones it does is `Algorithm.defaults`."""

    name: str
    clip_low: float = 0.2  # a bad token stops falling at ratio 1 - clip_low
    clip_high: float = 0.2  # a good token stops rising at ratio 1 + clip_high
    kl_coef: float = 0.0  # weight of the KL to the reference; 0 needs no reference
    kl_estimator: str = "k3"
    kl_place: KLPlace = "loss"
    aggregation: Mode = "token_mean"
    aggregation_constant: float | None = None  # divisor of aggregation "constant", usually max_new_tokens
    std_epsilon: float = 1e-6  # added to a standard deviation before dividing by it
    std_correction: int = 1  # 1 divides squares by n - 1, 0 by n

    def __post_init__(self) -> None:
        place = f"algorithm {self.name}"
        if not 0 <= self.clip_low <= 1:
            raise RecipeError(f"clip_low must be in [0, 1], not {self.clip_low}", place=place)
        for key in ("clip_high", "kl_coef", "std_epsilon"):
            if not 0 <= getattr(self, key) < float("inf"):
                raise RecipeError(f"{key} must be 0 or more, not {getattr(self, key)}", place=place)
        _one_of("kl_estimator", self.kl_estimator, list(kl.ESTIMATORS), place)
        _one_of("kl_place", self.kl_place, ["loss", "reward"], place)
        _one_of("aggregation", self.aggregation, list(MODES), place)
        if self.std_correction not in (0, 1):
            raise RecipeError(f"std_correction must be 0 or 1, not {self.std_correction}", place=place)


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A row: `credit(rewards, group_ids, valid, ...) -> [B]`, `loss(logprobs, ...) -> [B, T]`, and their settings."""

    name: str
    credit: Callable[..., Tensor]
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
        """The log-probs that have to be computed before the update."""
        place, names = self.kl[1], _parameters(self.loss)
        old = "old_logprobs" in names or place == "reward"
        ref = "ref_logprobs" in names or place is not None
        wanted: list[tuple[Stream, bool]] = [("old_logprobs", old), ("ref_logprobs", ref)]
        return frozenset(name for name, is_wanted in wanted if is_wanted)

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The settings that change what this row does, with the values it has; no other may be given."""
        names = set(_parameters(self.credit)) | set(_parameters(self.loss)) | {"aggregation"}
        if self.aggregation == "constant":
            names.add("aggregation_constant")
        if "advantages" in names:
            names |= {"kl_coef", "kl_estimator", "kl_place"}
        return {f.name: getattr(self.settings, f.name) for f in fields(self.settings) if f.name in names - {"name"}}

    def advantages(self, rewards: Tensor, group_ids: Tensor, valid: Tensor) -> Tensor:
        """One advantage per row [B]; rows that are not valid get 0."""
        return _call(self.credit, {"rewards": rewards, "group_ids": group_ids, "valid": valid}, self.settings)


def _row(
    name: str,
    credit: Callable[..., Tensor],
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
    )
}


def resolve(name: str, *, max_new_tokens: int | None = None, **overrides: Any) -> Algorithm:
    """The row `name` with other settings; an override of `None` keeps the row's value.

    `name` may be the import path of your own loss, "package.module:function". Its parameters are any of `logprobs,
    old_logprobs, ref_logprobs, advantages` and settings of `AlgorithmSettings`; it returns one loss per token, and
    everything else is as in `grpo` with aggregation "token_mean" and no KL. `max_new_tokens` is the divisor of
    aggregation "constant" where none is given.

    >>> resolve("dapo", clip_high=0.3).settings.clip_high
    0.3
    """
    if ":" in name:
        row = replace(ALGORITHMS["grpo"], name=name, loss=_imported(name), settings=AlgorithmSettings(name))
        row = replace(row, paper="your own", formula=inspect.getdoc(row.loss) or "")
    else:
        _one_of("algorithm", name, list(ALGORITHMS), f"algorithm {name}")
        row = ALGORITHMS[name]
    given = {key: value for key, value in overrides.items() if value is not None}
    if "aggregation" in given:  # first, because it decides whether the constant is declared
        row = replace(row, settings=replace(row.settings, aggregation=given["aggregation"]))
    for key in given:
        _one_of("setting", key, sorted(row.defaults), f"algorithm {name}")
    row = replace(row, settings=replace(row.settings, **given))
    if row.aggregation == "constant" and row.settings.aggregation_constant is None and max_new_tokens:
        row = replace(row, settings=replace(row.settings, aggregation_constant=float(max_new_tokens)))
    constant = row.settings.aggregation_constant
    if row.aggregation == "constant" and (constant is None or constant <= 0):
        what = f'aggregation "constant" divides by a number above 0, and aggregation_constant is {constant}'
        raise RecipeError(what, place=f"algorithm {name}", remedy="set aggregation_constant, usually to max_new_tokens")
    return row


def token_losses(
    algorithm: Algorithm,
    *,
    logprobs: Tensor,
    advantages: Tensor,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of each token [B, T], KL included, and what to log about it, per token and without gradient.

    Without `old_logprobs` this is the only update of its rollouts, and the current log-probs stand in: ratio 1. With
    `mask`, no stream is read where it is False, so that a NaN there reaches neither the loss nor a gradient.
    Logged: `ratio`, `approx_kl` (k3 of KL(old || policy)), `clip_fraction` where the loss clips, `kl` to the reference.
    """
    if ref_logprobs is None and "ref_logprobs" in algorithm.needs and algorithm.kl[1] != "reward":
        raise ValueError(f"{algorithm.name} needs ref_logprobs")
    old_logprobs = logprobs.detach() if old_logprobs is None else old_logprobs
    streams = {"logprobs": logprobs, "old_logprobs": old_logprobs, "advantages": advantages}
    if ref_logprobs is not None:
        streams["ref_logprobs"] = ref_logprobs
    if mask is not None:
        counted = mask.bool()
        streams = {name: torch.where(counted, stream, 0.0) for name, stream in streams.items()}
    losses = _call(algorithm.loss, streams, algorithm.settings)
    estimator, place = algorithm.kl
    if place == "loss":
        losses = losses + algorithm.kl_coef * kl.ESTIMATORS[estimator](streams["logprobs"], streams["ref_logprobs"])
    return losses, _token_metrics(algorithm, streams)


@torch.no_grad()
def _token_metrics(algorithm: Algorithm, streams: Mapping[str, Tensor]) -> dict[str, Tensor]:
    metrics: dict[str, Tensor] = {}
    names = _parameters(algorithm.loss)
    if "old_logprobs" in names:
        metrics["ratio"] = log_ratio(streams["logprobs"], streams["old_logprobs"]).exp()
        metrics["approx_kl"] = kl.k3(streams["old_logprobs"], streams["logprobs"])
        if {"clip_low", "clip_high"} <= set(names):
            metrics["clip_fraction"] = _call(policy.clip_fraction, streams, algorithm.settings)
    if "ref_logprobs" in streams:
        metrics["kl"] = kl.ESTIMATORS[algorithm.kl[0]](streams["logprobs"], streams["ref_logprobs"])
    return metrics


def _parameters(function: Callable[..., Tensor]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def _call(function: Callable[..., Tensor], inputs: Mapping[str, Tensor], settings: AlgorithmSettings) -> Tensor:
    """Hands a function what its parameters name, first from `inputs`, then from `settings`."""
    wanted = [name for name in _parameters(function) if name in inputs or hasattr(settings, name)]
    return function(**{name: inputs[name] if name in inputs else getattr(settings, name) for name in wanted})


def _imported(path: str) -> Callable[..., Tensor]:
    """The loss at "package.module:function", refused when its parameters could not be handed to it."""
    module_name, _, function_name = path.partition(":")
    place = f"algorithm {path}"
    try:
        loss = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(f"cannot import {path}: {error}", place=place, remedy="package.module:function") from error
    if not callable(loss):
        raise RecipeError(f"{path} is not a function", place=place, remedy="package.module:function")
    known = LOSS_INPUTS | {f.name for f in fields(AlgorithmSettings)}
    for name, parameter in inspect.signature(loss).parameters.items():
        if name not in known and parameter.default is inspect.Parameter.empty:
            what = f"{path} asks for {name}, which a loss cannot have"
            raise RecipeError(what, place=place, remedy=f"parameters: {', '.join(sorted(known))}")
    if "logprobs" not in inspect.signature(loss).parameters:
        raise RecipeError(f"{path} has no parameter logprobs, so it cannot teach the policy", place=place)
    return cast(Callable[..., Tensor], loss)
