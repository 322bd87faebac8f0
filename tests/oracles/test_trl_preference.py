"""Losses of preferences and of reward models against TRL's own code, run on a stand-in for its trainers.

A stand-in has the attributes that the trainer's method reads, and the model hands over log-probs or logits instead of
computing them. Written for TRL 1.16. Each docstring says what TRL counts differently.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, tensor

from melete.functional import preference
from melete.functional.reward_model import bradley_terry

pytest.importorskip("trl", minversion="1.16")

from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.reward_trainer import RewardTrainer

ACCELERATOR = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)
TRAINER = {
    "accelerator": ACCELERATOR,
    "model": SimpleNamespace(training=True),
    "aux_loss_enabled": False,
    "precompute_ref_logps": True,
    "beta": 0.1,
    "_metrics": {"train": defaultdict(list)},
    "_total_train_tokens": 0,
    "_tp_size": 1,
}
LENGTHS = tensor([5, 3, 1, 4, 2, 5, 4, 1])  # four chosen completions, then four rejected
MASK = torch.arange(5) < LENGTHS[:, None]
LENGTHS_C, LENGTHS_R = LENGTHS.double().chunk(2)


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def drawn(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Log-probs of each token, 0 where there is none, as a model of TRL gives them; and a reference near their sums."""
    logprobs = torch.where(MASK, -2 * noise(8, 5, seed=seed).abs(), 0.0)
    return logprobs.requires_grad_(), logprobs.detach().sum(1) + 4 * noise(8, seed=seed + 1)


def outputs(logprobs: Tensor) -> SimpleNamespace:
    """What a model of TRL returns: the log-probs, and zeros for what is only reported."""
    zeros = torch.zeros_like(logprobs.detach())
    return SimpleNamespace(log_probs=logprobs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def rows(mask: Tensor) -> dict[str, Tensor]:
    """The ids and masks of completions after a prompt of one token."""
    counted = torch.cat([torch.zeros(len(mask), 1, dtype=torch.long), mask.long()], dim=1)
    return {"input_ids": torch.ones_like(counted), "attention_mask": counted, "completion_mask": counted}


def trl_dpo(loss_type: str, logprobs: Tensor, ref: Tensor, **settings: Any) -> Tensor:
    names = ("ref_chosen_logps", "ref_rejected_logps")
    inputs = rows(MASK) | dict(zip(names, ref.chunk(2), strict=True))
    defaults = {
        "ld_alpha": None,
        "f_divergence_type": "reverse_kl",
        "use_weighting": False,
        "label_smoothing": 0.0,
        "loss_types": [loss_type],
        "loss_weights": [1.0],
    }
    trainer = SimpleNamespace(**TRAINER | defaults | settings)
    return DPOTrainer._compute_loss(trainer, lambda **_: outputs(logprobs), inputs, return_outputs=False)


def sums(logprobs: Tensor, ref: Tensor) -> tuple[Tensor, ...]:
    return (*logprobs.sum(1).chunk(2), *ref.chunk(2))


def assert_same(loss: Tensor, other: Tensor, leaf: Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(loss, other, atol=tolerance, rtol=tolerance, check_dtype=False)
    (grads,), (expected,) = (torch.autograd.grad(x, leaf, retain_graph=True) for x in (loss, other))
    assert expected.abs().max() > 0
    torch.testing.assert_close(grads, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_dpo_is_trls(beta: float) -> None:
    """The same formula; TRL's mean over pairs is the mean of ours."""
    logprobs, ref = drawn()
    theirs = trl_dpo("sigmoid", logprobs, ref, beta=beta)
    assert_same(preference.dpo(*sums(logprobs, ref), beta=beta).mean(), theirs, logprobs)


def test_trls_sigmoid_has_no_smoothing() -> None:
    """TRL reads label_smoothing for robust, exo_pair and aot only; under "sigmoid" it changes nothing."""
    logprobs, ref = drawn()
    assert torch.equal(trl_dpo("sigmoid", logprobs, ref, label_smoothing=0.2), trl_dpo("sigmoid", logprobs, ref))
    smoothed = preference.dpo(*sums(logprobs, ref), label_smoothing=0.2).mean()
    assert not torch.allclose(smoothed, trl_dpo("sigmoid", logprobs, ref))


def test_smoothed_dpo_is_trls_aot_of_a_single_pair() -> None:
    """TRL's aot sorts the log-ratios of the batch, which leaves one pair alone, and smooths as conservative DPO."""
    logprobs, ref = drawn()
    one, names = tensor([0, 4]), ("ref_chosen_logps", "ref_rejected_logps")
    inputs = rows(MASK[one]) | dict(zip(names, ref[one].chunk(2), strict=True))
    settings = {"loss_types": ["aot"], "loss_weights": [1.0], "label_smoothing": 0.2, "ld_alpha": None}
    settings |= {"f_divergence_type": "reverse_kl", "use_weighting": False}
    trainer = SimpleNamespace(**TRAINER | settings)
    theirs = DPOTrainer._compute_loss(trainer, lambda **_: outputs(logprobs[one]), inputs, return_outputs=False)
    got = preference.dpo(*(x[:1] for x in sums(logprobs, ref)), label_smoothing=0.2).mean()
    assert_same(got, theirs, logprobs)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4])
def test_robust_dpo_is_trls(share: float) -> None:
    """The same formula; only our default of 0.1 for the share differs from TRL's 0."""
    logprobs, ref = drawn()
    theirs = trl_dpo("robust", logprobs, ref, label_smoothing=share)
    assert_same(preference.robust_dpo(*sums(logprobs, ref), label_smoothing=share).mean(), theirs, logprobs)


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_ipo_is_trls(beta: float) -> None:
    """Both take means over the tokens of the completion, where the paper has sums."""
    logprobs, ref = drawn()
    theirs = trl_dpo("ipo", logprobs, ref, beta=beta)
    got = preference.ipo(*sums(logprobs, ref), LENGTHS_C, LENGTHS_R, beta=beta)
    assert_same(got.mean(), theirs, logprobs)


def test_length_normalized_dpo_is_trls_sigmoid_norm() -> None:
    """The same formula; TRL has one default beta for all losses, 0.1, ours is Tulu's 5."""
    logprobs, ref = drawn()
    theirs = trl_dpo("sigmoid_norm", logprobs, ref, beta=5.0)
    got = preference.length_normalized_dpo(*sums(logprobs, ref), LENGTHS_C, LENGTHS_R)
    assert_same(got.mean(), theirs, logprobs)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_hinge_is_trls(beta: float) -> None:
    """Both compare log-ratios to the reference, where SLiC-HF compares log-probs."""
    logprobs, ref = drawn(4)
    losses = preference.hinge(*sums(logprobs, ref), beta=beta)
    assert beta == 0.1 or (losses == 0).any()  # both sides of the kink
    assert_same(losses.mean(), trl_dpo("hinge", logprobs, ref, beta=beta), logprobs)


def test_the_likelihood_term_is_trls_sft_but_by_pair() -> None:
    """TRL's "sft" is a mean over all chosen tokens of the batch, ours over each pair's; swapped, they agree."""
    logprobs, ref = drawn()
    settings = {"loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]}
    theirs = trl_dpo("", logprobs, ref, **settings)
    got = preference.dpo_nll(*sums(logprobs, ref), LENGTHS_C, nll_coef=0.7).mean()
    assert not torch.allclose(got, theirs)
    by_token = logprobs[:4][MASK[:4]].mean()
    by_pair = (logprobs.sum(1)[:4] / LENGTHS_C).mean()
    assert_same(got + 0.7 * (by_pair - by_token), theirs, logprobs)


def test_apo_zero_is_kto_with_a_baseline_of_0() -> None:
    """TRL's "apo_zero" adds the two halves of a pair, which ours counts as two completions."""
    logprobs, ref = drawn()
    theirs = trl_dpo("apo_zero", logprobs, ref)
    desirable = torch.arange(8) < 4
    losses = preference.kto(logprobs.sum(1), ref, desirable, tensor(0.0, dtype=torch.float64))
    assert_same(2 * losses.mean(), theirs, logprobs)


@pytest.mark.parametrize("shift", [-2.0, 2.0])
@pytest.mark.parametrize("desirable", [[True, False] * 4, [True] * 8, [False] * 8])
def test_kto_and_its_baseline_are_trls(shift: float, desirable: list[bool]) -> None:
    """TRL makes the baseline of the micro-batch inside the loss; ours is handed over. A mean below 0 is 0 in both."""
    logprobs, ref = drawn()
    labels, mismatched = tensor(desirable), torch.where(MASK, noise(8, 5, seed=7) - 2, 0.0).requires_grad_()
    ref_mismatched = mismatched.detach().sum(1) - shift + 0.1 * noise(8, seed=8)
    batch = rows(MASK) | {"label": labels, "ref_logps": ref, "ref_KL_logps": ref_mismatched}
    batch |= {f"KL_{name}": value for name, value in rows(MASK).items()}
    batch["KL_input_ids"] = torch.full_like(batch["KL_input_ids"], 2)  # how the model below tells them apart

    def model(input_ids: Tensor, **_: Any) -> SimpleNamespace:
        return outputs(mismatched if (input_ids == 2).all() else logprobs)

    settings = {"calculate_KL": True, "loss_type": "kto", "desirable_weight": 1.3, "undesirable_weight": 0.6}
    trainer = SimpleNamespace(**TRAINER | settings)
    trainer._compute_kl_logps = lambda model, batch: KTOTrainer._compute_kl_logps(trainer, model, batch)
    theirs = KTOTrainer._compute_loss(trainer, model, batch, return_outputs=False)
    baseline = preference.kto_baseline(mismatched.sum(1), ref_mismatched)
    assert (baseline > 0) == (shift > 0)
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.6}
    losses = preference.kto(logprobs.sum(1), ref, labels, baseline, **weights)
    assert_same(losses.mean(), theirs, logprobs)


@pytest.mark.parametrize("centring", [None, 0.01])
@pytest.mark.parametrize("with_margin", [False, True])
def test_bradley_terry_is_trls(centring: float | None, with_margin: bool) -> None:
    """The same formula; TRL's coefficient of None is our 0."""
    scores, margins = noise(8, seed=9).requires_grad_(), noise(4, seed=10).abs()
    args = SimpleNamespace(center_rewards_coefficient=centring)
    inputs = {"attention_mask": MASK.long()} | ({"margin": margins} if with_margin else {})
    trainer = SimpleNamespace(**TRAINER | {"args": args})
    theirs = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=scores[:, None]), inputs)
    got = bradley_terry(*scores.chunk(2), margins=margins if with_margin else None, center_coef=centring or 0.0)
    assert_same(got.mean(), theirs, scores)


def experimental(name: str) -> Any:
    return pytest.importorskip(f"trl.experimental.{name}.{name}_trainer", reason=f"no {name} in this TRL")


def sequences(lengths: Tensor, num_prompt: int, prefix: str) -> dict[str, Tensor]:
    """`lengths` completions of tokens 1, 2, 1, 2, ... after `num_prompt` tokens, with labels of the completion."""
    ids = 1 + torch.arange(num_prompt + 5).expand(len(lengths), -1) % 2
    there = torch.arange(num_prompt + 5) < num_prompt + lengths[:, None]
    labels = ids.masked_fill(~there | (torch.arange(num_prompt + 5) < num_prompt), -100)
    return {
        f"{prefix}_input_ids": ids.masked_fill(~there, 0),
        f"{prefix}_attention_mask": there.long(),
        f"{prefix}_labels": labels,
    }


def trl_without_reference(
    trainer: type, logits: Tensor, lengths: Tensor, num_prompt: int, **settings: Any
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The loss of ORPOTrainer or CPOTrainer, and the batch that it is of."""
    chosen, rejected = lengths.chunk(2)
    batch = sequences(chosen, num_prompt, "chosen") | sequences(rejected, num_prompt, "rejected")
    defaults = {
        "is_encoder_decoder": False,
        "padding_value": 0,
        "pad_token_id": 0,
        "concatenated_inputs": trainer.concatenated_inputs,
        "get_batch_logps": trainer.get_batch_logps,
    }
    this = SimpleNamespace(**TRAINER | defaults | settings)
    for name in ("concatenated_forward", "odds_ratio_loss", "cpo_loss"):
        if hasattr(trainer, name):
            setattr(this, name, getattr(trainer, name).__get__(this))
    return trainer.get_batch_loss_metrics(this, lambda *_, **__: SimpleNamespace(logits=logits), batch)[0], batch


def token_logprobs(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Log-probs [2P, T - 1] of all tokens but the first."""
    ids = torch.cat([batch["chosen_input_ids"], batch["rejected_input_ids"]])[:, 1:]
    return torch.log_softmax(logits[:, :-1], dim=-1).gather(-1, ids[..., None])[..., 0]


def pair_sums(logits: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    labels = torch.cat([batch["chosen_labels"], batch["rejected_labels"]])[:, 1:]
    chosen, rejected = torch.where(labels != -100, token_logprobs(logits, batch), 0.0).sum(1).chunk(2)
    return chosen, rejected


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_orpo_is_trls_where_prompts_are_one_token_and_chosen_completions_equally_long(beta: float) -> None:
    """TRL's beta is our orpo_coef. It computes the odds in fp32, hence 1e-6 and no closer."""
    trainer = experimental("orpo").ORPOTrainer
    lengths = tensor([4, 4, 4, 4, 2, 5, 4, 1])
    logits = noise(8, 6, 3, seed=11).requires_grad_()
    theirs, batch = trl_without_reference(trainer, logits, lengths, 1, beta=beta)
    losses = preference.orpo(*pair_sums(logits, batch), *lengths.double().chunk(2), orpo_coef=beta)
    assert_same(losses.mean(), theirs, logits)


def test_the_likelihood_of_trls_orpo_is_of_the_prompt_as_well_and_by_token() -> None:
    """Replacing our mean per completion by the mean over all tokens, prompts included, gives TRL's loss."""
    trainer = experimental("orpo").ORPOTrainer
    logits = noise(8, 8, 3, seed=12).requires_grad_()
    theirs, batch = trl_without_reference(trainer, logits, LENGTHS, 3, beta=0.1)
    chosen, rejected = pair_sums(logits, batch)
    got = preference.orpo(chosen, rejected, LENGTHS_C, LENGTHS_R).mean()
    assert not torch.allclose(got, theirs.double())
    there = batch["chosen_attention_mask"][:, 1:].bool()
    by_token = token_logprobs(logits, batch)[:4][there].mean()
    assert_same(got + (chosen / LENGTHS_C).mean() - by_token, theirs, logits)


@pytest.mark.parametrize(("beta", "target_margin"), [(2.0, 1.0), (2.5, 0.0), (0.5, 1.4)])
def test_simpo_is_trls(beta: float, target_margin: float) -> None:
    """CPOTrainer with loss_type simpo and cpo_alpha 0. It subtracts simpo_gamma / beta and then multiplies by beta."""
    trainer = experimental("cpo").CPOTrainer
    logits = noise(8, 8, 3, seed=13).requires_grad_()
    settings = {"loss_type": "simpo", "cpo_alpha": 0.0, "alpha": 0.0, "label_smoothing": 0.0}
    settings |= {"beta": beta, "simpo_gamma": target_margin}
    theirs, batch = trl_without_reference(trainer, logits, LENGTHS, 3, **settings)
    losses = preference.simpo(*pair_sums(logits, batch), LENGTHS_C, LENGTHS_R, beta=beta, target_margin=target_margin)
    assert_same(losses.mean(), theirs, logits)


def test_cpo_is_dpo_with_a_reference_of_0_and_a_likelihood_by_token() -> None:
    """CPOTrainer's sigmoid has no reference; its likelihood is a mean over all chosen tokens, ours over each pair's."""
    trainer = experimental("cpo").CPOTrainer
    lengths = tensor([4, 4, 4, 4, 2, 5, 4, 1])
    logits, zeros = noise(8, 8, 3, seed=14).requires_grad_(), torch.zeros(4, dtype=torch.float64)
    settings = {"loss_type": "sigmoid", "cpo_alpha": 0.7, "alpha": 0.0, "label_smoothing": 0.0}
    theirs, batch = trl_without_reference(trainer, logits, lengths, 3, **settings)
    losses = preference.dpo_nll(*pair_sums(logits, batch), zeros, zeros, lengths[:4].double(), nll_coef=0.7)
    assert_same(losses.mean(), theirs, logits)


def test_the_reported_reward_is_trls() -> None:
    """TRL reports the mean of beta log(policy / ref) of the chosen and of the rejected."""
    logprobs, ref = drawn()
    metrics = defaultdict(list)
    trl_dpo("sigmoid", logprobs, ref, beta=0.3, _metrics={"train": metrics})
    chosen, rejected = preference.implied_reward(logprobs.sum(1), ref, beta=0.3).chunk(2)
    assert math.isclose(metrics["rewards/chosen"][0], chosen.mean().item())
    assert math.isclose(metrics["rewards/rejected"][0], rejected.mean().item())
