"""Losses of preferences: numbers on paper, slow twins, gradients by finite differences."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, tensor

from melete.functional import preference

LOG2 = math.log(2)
OF_PAIRS: Mapping[str, Callable[..., Tensor]] = {
    loss.__name__: loss
    for loss in (
        preference.dpo,
        preference.robust_dpo,
        preference.ipo,
        preference.length_normalized_dpo,
        preference.simpo,
        preference.orpo,
        preference.hinge,
        preference.dpo_nll,
    )
}
of_pairs = pytest.mark.parametrize("name", sorted(OF_PAIRS))
with_reference = pytest.mark.parametrize("name", sorted(OF_PAIRS.keys() - {"simpo", "orpo"}))
POLICY, REF = ("chosen_logprobs", "rejected_logprobs"), ("ref_chosen_logprobs", "ref_rejected_logprobs")


def f64(*values: float) -> Tensor:
    return tensor(values, dtype=torch.float64)


def drawn(seed: int = 0, num_pairs: int = 6) -> dict[str, Tensor]:
    """Every input that a loss of pairs may name; sums of log-probs of completions of 1 to 6 tokens."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 7, (2, num_pairs), generator=generator).double()
    sums = -3 * counts.repeat(2, 1) * torch.rand(4, num_pairs, dtype=torch.float64, generator=generator)
    lengths = dict(zip(("chosen_lengths", "rejected_lengths"), counts, strict=True))
    return dict(zip((*POLICY, *REF), sums, strict=True)) | lengths


def wanted(name: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = inspect.signature(OF_PAIRS[name]).parameters
    return {key: value for key, value in inputs.items() if key in names}


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def by_loop(name: str, chosen: float, rejected: float, ref_c: float, ref_r: float, len_c: float, len_r: float) -> float:
    """The slow twin of one pair, at the default settings."""
    h = (chosen - ref_c) - (rejected - ref_r)
    mean_h = (chosen - ref_c) / len_c - (rejected - ref_r) / len_r
    mean_c, mean_r = chosen / len_c, rejected / len_r

    def log_odds(mean: float) -> float:
        return math.log(math.exp(mean) / (1 - math.exp(mean)))

    return {
        "dpo": lambda: -log_sigmoid(0.1 * h),
        "robust_dpo": lambda: (-0.9 * log_sigmoid(0.1 * h) + 0.1 * log_sigmoid(-0.1 * h)) / 0.8,
        "ipo": lambda: (mean_h - 5) ** 2,
        "length_normalized_dpo": lambda: -log_sigmoid(5 * mean_h),
        "simpo": lambda: -log_sigmoid(2 * mean_c - 2 * mean_r - 1),
        "orpo": lambda: -mean_c - 0.1 * log_sigmoid(log_odds(mean_c) - log_odds(mean_r)),
        "hinge": lambda: max(0.0, 1 - 0.1 * h),
        "dpo_nll": lambda: -log_sigmoid(0.1 * h) - mean_c,
    }[name]()


@of_pairs
def test_every_loss_is_that_of_a_loop_over_its_pairs(name: str) -> None:
    inputs = drawn()
    rows = zip(*(inputs[key].tolist() for key in (*POLICY, *REF, "chosen_lengths", "rejected_lengths")), strict=True)
    expected = f64(*(by_loop(name, *row) for row in rows))
    torch.testing.assert_close(OF_PAIRS[name](**wanted(name, inputs)), expected)


@of_pairs
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    inputs = wanted(name, drawn(1))
    policy = [inputs.pop(key).requires_grad_() for key in POLICY]
    assert torch.autograd.gradcheck(lambda c, r: OF_PAIRS[name](c, r, **inputs), policy)


@of_pairs
def test_a_pair_does_not_see_the_others(name: str) -> None:
    inputs = wanted(name, drawn(2))
    alone = [OF_PAIRS[name](**{key: value[i : i + 1] for key, value in inputs.items()}) for i in range(6)]
    torch.testing.assert_close(OF_PAIRS[name](**inputs), torch.cat(alone))


@with_reference
def test_the_reference_gets_no_gradient(name: str) -> None:
    inputs = {key: value.requires_grad_() for key, value in wanted(name, drawn()).items()}
    OF_PAIRS[name](**inputs).sum().backward()
    assert all(inputs[key].grad is None for key in REF)
    assert all(inputs[key].grad is not None for key in POLICY)


@with_reference
def test_only_the_ratio_to_the_reference_counts_except_for_a_likelihood_term(name: str) -> None:
    inputs = wanted(name, drawn())
    moved = {key: value + 0.7 if key in (*POLICY, *REF) else value for key, value in inputs.items()}
    same = torch.allclose(OF_PAIRS[name](**inputs), OF_PAIRS[name](**moved))
    assert same == (name != "dpo_nll")


@of_pairs
def test_every_setting_changes_the_loss(name: str) -> None:
    """I16."""
    inputs, loss = wanted(name, drawn()), OF_PAIRS[name]
    for parameter in inspect.signature(loss).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            changed = loss(**inputs, **{parameter.name: parameter.default + 0.3})
            assert not torch.allclose(changed, loss(**inputs)), parameter.name


@of_pairs
def test_the_gradient_raises_the_chosen_and_lowers_the_rejected(name: str) -> None:
    """Near the reference, where none of them is satisfied yet."""
    inputs = drawn()
    inputs |= {REF[i]: inputs[POLICY[i]].clone() for i in (0, 1)}
    policy = [inputs[key].requires_grad_() for key in POLICY]
    chosen, rejected = torch.autograd.grad(OF_PAIRS[name](**wanted(name, inputs)).sum(), policy)
    assert (chosen < 0).all()
    assert (rejected > 0).all()


@of_pairs
def test_no_pairs_give_no_losses(name: str) -> None:
    inputs = {key: value[:0] for key, value in wanted(name, drawn()).items()}
    assert OF_PAIRS[name](**inputs).shape == (0,)


@pytest.mark.parametrize("name", ["ipo", "length_normalized_dpo", "simpo", "orpo", "dpo_nll"])
def test_a_completion_without_tokens_is_finite(name: str) -> None:
    """Its sum is 0 and so is its mean, never 0 / 0; ORPO's probability is then 1."""
    inputs = {key: torch.zeros(1) for key in (*POLICY, *REF, "chosen_lengths", "rejected_lengths")}
    policy = [inputs[key].requires_grad_() for key in POLICY]
    loss = OF_PAIRS[name](**wanted(name, inputs)).sum()
    assert loss.isfinite()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(loss, policy))


def test_at_the_reference_dpo_is_log_2_and_its_gradients_cancel() -> None:
    """d loss / d chosen = -beta sigmoid(-beta h) = -beta / 2."""
    chosen, rejected = f64(-3.0, -7.0).requires_grad_(), f64(-4.0, -1.0).requires_grad_()
    loss = preference.dpo(chosen, rejected, chosen, rejected, beta=0.3)
    torch.testing.assert_close(loss, f64(LOG2, LOG2))
    up, down = torch.autograd.grad(loss.sum(), [chosen, rejected])
    torch.testing.assert_close(up, f64(-0.15, -0.15))
    assert torch.equal(up + down, f64(0.0, 0.0))


def test_dpo_of_odds_of_three_to_one() -> None:
    """beta h = log 3: sigmoid is 3/4, the loss log(4/3), the gradient of the chosen -1/4."""
    chosen, zero = f64(math.log(3)).requires_grad_(), f64(0.0)
    loss = preference.dpo(chosen, zero, zero, zero, beta=1.0)
    torch.testing.assert_close(loss, f64(math.log(4 / 3)))
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), chosen)[0], f64(-0.25))


@settings(max_examples=40, deadline=None)
@given(h=st.floats(-40, 40), share=st.floats(0, 0.45))
def test_smoothing_mixes_the_loss_with_that_of_the_flipped_label(h: float, share: float) -> None:
    zero = f64(0.0)
    right = preference.dpo(f64(h), zero, zero, zero)
    wrong = preference.dpo(zero, f64(h), zero, zero)
    got = preference.dpo(f64(h), zero, zero, zero, label_smoothing=share)
    torch.testing.assert_close(got, (1 - share) * right + share * wrong)


def test_the_optimum_of_smoothed_dpo_is_finite_and_says_the_share_of_wrong_labels() -> None:
    """sigmoid(beta h) = 1 - e = 3/4 at beta h = log 3."""
    chosen, zero = f64(math.log(3)).requires_grad_(), f64(0.0)
    loss = preference.dpo(chosen, zero, zero, zero, beta=1.0, label_smoothing=0.25)
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), chosen)[0], f64(0.0))


@settings(max_examples=40, deadline=None)
@given(h=st.floats(-40, 40), share=st.floats(0, 0.45))
def test_under_flipped_labels_robust_dpo_is_dpo_of_the_true_ones(h: float, share: float) -> None:
    """By enumeration of the two labels, in value and in gradient."""
    policy, zero = f64(h).requires_grad_(), f64(0.0)
    true = preference.robust_dpo(policy, zero, zero, zero, beta=0.5, label_smoothing=share)
    flipped = preference.robust_dpo(zero, policy, zero, zero, beta=0.5, label_smoothing=share)
    clean = preference.dpo(policy, zero, zero, zero, beta=0.5)
    expected = (1 - share) * true + share * flipped
    torch.testing.assert_close(expected, clean)
    got, truth = (torch.autograd.grad(loss.sum(), policy, retain_graph=True)[0] for loss in (expected, clean))
    torch.testing.assert_close(got, truth)


@pytest.mark.parametrize("name", ["dpo", "robust_dpo"])
@pytest.mark.parametrize("share", [-0.1, 0.5, 1.0])
def test_a_share_of_wrong_labels_of_one_half_or_more_is_refused(name: str, share: float) -> None:
    zero = f64(0.0)
    with pytest.raises(ValueError, match="label_smoothing"):
        OF_PAIRS[name](zero, zero, zero, zero, label_smoothing=share)


def test_a_rejected_completion_of_probability_zero_costs_nothing() -> None:
    chosen, zero = f64(-1.0).requires_grad_(), f64(0.0)
    loss = preference.dpo(chosen, f64(-math.inf), zero, zero)
    assert torch.equal(loss, f64(0.0))
    assert torch.equal(torch.autograd.grad(loss.sum(), chosen)[0], f64(0.0))


def test_dpo_of_a_huge_margin_the_wrong_way_round_is_finite() -> None:
    zero = torch.zeros(1)
    torch.testing.assert_close(preference.dpo(zero - 1e4, zero, zero, zero, beta=1.0), tensor([1e4]))


def test_the_optimum_of_ipo_is_a_margin_of_one_over_two_beta() -> None:
    """beta 1/4 asks for 2 nats per token; sums over 2 tokens are 4, and lengths of 1 give the paper's form."""
    zero, one, two = f64(0.0), f64(1.0), f64(2.0)
    chosen = f64(4.0).requires_grad_()
    loss = preference.ipo(chosen, zero, zero, zero, two, two, beta=0.25)
    assert torch.equal(loss, zero)
    assert torch.equal(torch.autograd.grad(loss.sum(), chosen)[0], zero)
    torch.testing.assert_close(preference.ipo(f64(4.0), zero, zero, zero, one, one, beta=0.25), f64(4.0))  # (4 - 2)^2
    past = preference.ipo(f64(8.0), zero, zero, zero, two, two, beta=0.25)
    torch.testing.assert_close(past, f64(4.0))  # 4 per token is as far off as 0: the margin is bounded


def test_ipo_refuses_a_beta_of_zero() -> None:
    zero, one = f64(0.0), f64(1.0)
    with pytest.raises(ValueError, match="beta"):
        preference.ipo(zero, zero, zero, zero, one, one, beta=0.0)


def test_a_longer_completion_of_equal_tokens_is_no_better_after_normalisation() -> None:
    """log 2 for 6 tokens of 1/2 against 2 of 1/2, where plain DPO sees a margin of 4 nats."""
    chosen, rejected, zero = f64(3.0), f64(1.0), f64(0.0)
    got = preference.length_normalized_dpo(chosen, rejected, zero, zero, f64(6.0), f64(2.0))
    torch.testing.assert_close(got, f64(LOG2))
    assert preference.dpo(chosen, rejected, zero, zero, beta=5.0) < LOG2


def test_simpo_is_log_2_where_the_margin_is_the_target_and_not_before() -> None:
    """beta 2 times half a nat per token is the target 1; the target counts reward, not nats."""
    chosen, rejected = f64(-2.0), f64(-1.5)  # -1/2 over 4 tokens, -1 over 1.5
    got = preference.simpo(chosen, rejected, f64(4.0), f64(1.5), beta=2.0, target_margin=1.0)
    torch.testing.assert_close(got, f64(LOG2))
    without = preference.simpo(chosen, rejected, f64(4.0), f64(1.5), beta=2.0, target_margin=0.0)
    torch.testing.assert_close(without, f64(-log_sigmoid(1.0)))


def test_orpo_of_three_to_one_against_even_odds() -> None:
    """p = 3/4 and 1/2: odds ratio 3, sigmoid(log 3) = 3/4, so log(4/3) + 0.1 log(4/3)."""
    one = f64(1.0)
    got = preference.orpo(f64(math.log(3 / 4)), f64(-LOG2), one, one)
    torch.testing.assert_close(got, f64(1.1 * math.log(4 / 3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chosen", [-1e-9, 0.0, -1e-300, -80.0, -1e4])
@pytest.mark.parametrize("rejected", [-1e-9, 0.0, -2.0, -1e4])
def test_orpo_stays_finite_as_a_probability_goes_to_one_or_zero(
    chosen: float, rejected: float, dtype: torch.dtype
) -> None:
    one = torch.ones(1, dtype=dtype)
    policy = [torch.tensor([value], dtype=dtype, requires_grad=True) for value in (chosen, rejected)]
    loss = preference.orpo(*policy, one, one)
    assert loss.isfinite().all()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(loss.sum(), policy))


def test_the_log_odds_keep_their_precision_near_one() -> None:
    """1 - exp(-1e-9) is 1e-9; written out as 1 - exp() it has 7 right digits in fp64."""
    one = f64(1.0)
    got = preference.orpo(f64(-1e-9), f64(-1e-6), one, one, orpo_coef=1.0)
    ratio = math.expm1(1e-6) / math.expm1(1e-9)  # odds p / (1 - p) = 1 / (exp(x) - 1) at p = exp(-x)
    torch.testing.assert_close(got, f64(1e-9 + math.log1p(1 / ratio)), rtol=1e-12, atol=1e-14)


def test_hinge_is_satisfied_at_a_margin_of_one() -> None:
    zero = f64(0.0, 0.0, 0.0)
    chosen = f64(-10.0, 5.0, 11.0).requires_grad_()
    loss = preference.hinge(chosen, zero, zero, zero, beta=0.1)
    torch.testing.assert_close(loss, f64(2.0, 0.5, 0.0))
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), chosen)[0], f64(-0.1, -0.1, 0.0))


def test_the_likelihood_term_weighs_pairs_alike_whatever_their_length() -> None:
    """Half a nat per token over 2 tokens and over 20."""
    chosen, lengths, zero = f64(-1.0, -10.0), f64(2.0, 20.0), f64(0.0, 0.0)
    got = preference.dpo_nll(chosen, zero, chosen, zero, lengths, nll_coef=2.0)
    torch.testing.assert_close(got, f64(LOG2 + 1, LOG2 + 1))


def test_the_margin_of_implied_rewards_is_the_argument_of_dpos_sigmoid() -> None:
    inputs = drawn()
    chosen, rejected = (
        preference.implied_reward(inputs[POLICY[i]].requires_grad_(), inputs[REF[i]].requires_grad_(), beta=0.3)
        for i in (0, 1)
    )
    expected = preference.dpo(**wanted("dpo", inputs), beta=0.3)
    torch.testing.assert_close(-torch.nn.functional.logsigmoid(chosen - rejected), expected)
    (chosen + rejected).sum().backward()
    assert all(inputs[key].grad is None for key in REF)


DESIRABLE = tensor([True, False, True, False])


def kto_inputs() -> dict[str, Tensor]:
    return {
        "logprobs": f64(-3.0, -2.0, -8.0, -1.0),
        "ref_logprobs": f64(-4.0, -3.0, -6.0, -4.0),
        "desirable": DESIRABLE,
        "kl_baseline": tensor(0.5, dtype=torch.float64),
    }


def test_kto_of_odds_of_three_to_one() -> None:
    """beta (rho - z) = log 3: liked 1 - 3/4, twice; disliked 1 - 1/4, four times."""
    rho, zero = f64(math.log(3) + 1, math.log(3) + 1), f64(0.0, 0.0)
    baseline = tensor(1.0, dtype=torch.float64)
    kinds, weights = tensor([True, False]), {"desirable_weight": 2.0, "undesirable_weight": 4.0}
    got = preference.kto(rho, zero, kinds, baseline, beta=1.0, **weights)
    torch.testing.assert_close(got, f64(0.5, 3.0))


def test_kto_is_that_of_a_loop() -> None:
    inputs, expected = kto_inputs(), []
    for logprob, ref, liked in zip(inputs["logprobs"], inputs["ref_logprobs"], DESIRABLE, strict=True):
        distance = 0.1 * (float(logprob - ref) - 0.5)
        expected.append(1 - math.exp(log_sigmoid(distance)) if liked else 1 - math.exp(log_sigmoid(-distance)))
    torch.testing.assert_close(preference.kto(**inputs), f64(*expected))


def test_kto_raises_what_is_liked_and_lowers_what_is_not_by_finite_differences() -> None:
    inputs = kto_inputs()
    logprobs = inputs.pop("logprobs").requires_grad_()
    grad = torch.autograd.grad(preference.kto(logprobs, **inputs).sum(), logprobs)[0]
    assert torch.equal(grad < 0, DESIRABLE)
    assert (grad != 0).all()
    assert torch.autograd.gradcheck(lambda x: preference.kto(x, **inputs), [logprobs])


def test_kto_gives_no_gradient_to_the_reference_or_to_the_baseline() -> None:
    inputs = kto_inputs()
    leaves = [inputs[key].requires_grad_() for key in ("logprobs", "ref_logprobs", "kl_baseline")]
    preference.kto(**inputs).sum().backward()
    assert [leaf.grad is None for leaf in leaves] == [False, True, True]


@pytest.mark.parametrize("setting", ["beta", "desirable_weight", "undesirable_weight"])
def test_every_setting_of_kto_changes_it(setting: str) -> None:
    """I16."""
    assert not torch.equal(preference.kto(**kto_inputs(), **{setting: 0.7}), preference.kto(**kto_inputs()))


def test_kto_keeps_its_precision_and_its_bounds_far_from_the_baseline() -> None:
    """Liked and 300 nats over the baseline: exp(-30), of which 1 - sigmoid(30) has no digit in fp32."""
    liked = tensor([True, True, False, False])
    got = preference.kto(tensor([300.0, -1e6, 300.0, -1e6]), torch.zeros(4), liked, tensor(0.0))
    torch.testing.assert_close(got, tensor([math.exp(-30), 1.0, 1.0, 0.0]), rtol=1e-5, atol=0.0)


def test_the_baseline_is_a_mean_that_is_never_negative_and_never_carries_gradient() -> None:
    policy = f64(-1.0, -1.0).requires_grad_()
    above, below = f64(-2.0, -4.0), f64(0.0, 0.0)
    assert torch.equal(preference.kto_baseline(policy, above), tensor(2.0, dtype=torch.float64))
    assert torch.equal(preference.kto_baseline(policy, below), tensor(0.0, dtype=torch.float64))
    assert not preference.kto_baseline(policy, above).requires_grad
    assert preference.kto_baseline(torch.zeros(0), torch.zeros(0)) == 0
