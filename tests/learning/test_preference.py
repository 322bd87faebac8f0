"""The learner of preferences: one optimizer step on whole pairs, however they are split."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from tiny_models import MODELS, assert_close_gradients, copied, equal, llama, tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from melete.algorithms.preference import PREFERENCE_ALGORITHMS, PreferenceAlgorithm, resolve_preference
from melete.batch import PairBatch
from melete.errors import TrainingError
from melete.functional.logprobs import logprobs
from melete.learning.optimizer import OptimizerSettings
from melete.learning.preference import PreferenceLearner
from melete.loops.preference import PairData
from melete.types import Message, PreferencePair

UNCLIPPED = OptimizerSettings(lr=1e-3, max_grad_norm=1e9)
TEXTS = (("one and two", "three"), ("two", "one and three and what is two"), ("what", "is it"), ("12", "three and one"))
PAIRS = [
    PreferencePair(f"p/{n}", (Message("user", "what is one " * (1 + n % 3)),), good, bad)
    for n, (good, bad) in enumerate(TEXTS)
]
NUMBERS = range(len(PAIRS))
NAMES = sorted(PREFERENCE_ALGORITHMS)
Learn = Callable[[PreferenceLearner, PreferenceAlgorithm], dict[str, float]]


def learner_of(model: PreTrainedModel, *, moved: bool = True, **settings: object) -> PreferenceLearner:
    """A learner whose policy is, if `moved`, no longer its reference."""
    learner = PreferenceLearner(model, **({"optimizer": UNCLIPPED} | settings))
    if moved:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1 + 0.1 * torch.randn(weight.shape, generator=generator))
    return learner


def updated(
    learner: PreferenceLearner, algorithm: PreferenceAlgorithm, numbers: Sequence[int] = NUMBERS
) -> dict[str, float]:
    data = PairData(PAIRS, tokenizer())
    if algorithm.unpaired:
        return learner.update_labelled(data.labelled(numbers, learner), algorithm)
    return learner.update_pairs(data.batch(numbers, learner, with_reference=algorithm.needs_reference), algorithm)


def gradient_of(
    learner: PreferenceLearner, algorithm: PreferenceAlgorithm
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The gradient that the optimizer used, by name, and what was logged."""
    seen: dict[str, Tensor] = {}

    def keep(*_: object) -> None:
        seen.update({n: p.grad.clone() for n, p in learner.model.named_parameters() if p.grad is not None})

    learner.updater.optimizer.register_step_pre_hook(keep)
    metrics = updated(learner, algorithm)
    return seen, metrics


def row_sums(model: PreTrainedModel, rows) -> Tensor:
    """Log-probs summed over completions, read off the whole logits."""
    logits = model(input_ids=rows.tokens, attention_mask=rows.attention_mask.long()).logits
    return torch.where(rows.loss_mask, logprobs(logits, rows.tokens), 0.0).sum(dim=1)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", ["dpo", "simpo", "kto"])
def test_loss_and_gradient_do_not_depend_on_the_split(kind: str, name: str) -> None:
    """I1: one micro-batch, a few, or one pair each (kto: one row), against the loss over the whole logits."""
    algorithm = resolve_preference(name)
    twin = learner_of(MODELS[kind]())
    data = PairData(PAIRS, tokenizer())
    if algorithm.unpaired:
        batch = data.labelled(NUMBERS, twin)
        sums, crossed = row_sums(twin.model, batch.rows), row_sums(twin.model, batch.mismatched)
        ref, ref_crossed = row_sums(twin.reference, batch.rows), row_sums(twin.reference, batch.mismatched)
        inputs = {"logprobs": sums, "ref_logprobs": ref, "desirable": batch.desirable}
        inputs["kl_baseline"] = (crossed - ref_crossed).mean().clamp(min=0)
    else:
        rows = data.batch(NUMBERS, twin, with_reference=False).rows
        names = ("chosen", "rejected")
        sums, ref = (row_sums(model, rows).view(-1, 2) for model in (twin.model, twin.reference))
        lengths = rows.loss_mask.sum(dim=1).float().view(-1, 2)
        inputs = {f"{side}_logprobs": sums[:, i] for i, side in enumerate(names)}
        inputs |= {f"ref_{side}_logprobs": ref[:, i] for i, side in enumerate(names)}
        inputs |= {f"{side}_lengths": lengths[:, i] for i, side in enumerate(names)}
    expected = algorithm.losses(inputs).mean()
    expected.backward()
    gradient = {n: p.grad for n, p in twin.model.named_parameters() if p.grad is not None}
    assert max(float(g.abs().max()) for g in gradient.values()) > 1e-4
    logged = []
    for max_tokens in (1, 60, 10_000):
        seen, metrics = gradient_of(learner_of(MODELS[kind](), max_tokens_per_microbatch=max_tokens), algorithm)
        assert metrics["loss"] == pytest.approx(float(expected.detach()), abs=1e-5)
        assert_close_gradients(seen, gradient)
        logged.append(metrics)
    for metrics in logged[1:]:
        assert metrics == pytest.approx(logged[0], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("max_tokens", [1, 40, 60, 100, 10_000])
def test_a_pair_stays_together_and_a_micro_batch_keeps_to_its_budget(max_tokens: int) -> None:
    batch = PairData(PAIRS, tokenizer()).batch(NUMBERS, learner_of(llama()), with_reference=True)
    pairs = {
        tuple(map(tuple, pair.tolist())): sums.tolist()
        for pair, sums in zip(batch.rows.tokens.view(4, 2, -1), batch.ref_sums.view(4, 2), strict=True)
    }
    parts = batch.microbatches(max_tokens)
    assert sum(part.num_pairs for part in parts) == 4
    width = batch.rows.tokens.shape[1]
    for part in parts:
        assert part.num_pairs == 1 or part.rows.tokens.numel() <= max_tokens
        padded = torch.nn.functional.pad(part.rows.tokens, (0, width - part.rows.tokens.shape[1]))
        for pair, sums in zip(padded.view(-1, 2, width), part.ref_sums.view(-1, 2), strict=True):
            assert pairs.pop(tuple(map(tuple, pair.tolist()))) == sums.tolist()
    assert not pairs


def test_the_order_of_the_pairs_changes_nothing() -> None:
    """I4."""
    algorithm = resolve_preference("dpo")
    one, other = learner_of(llama()), learner_of(llama())
    first, second = updated(one, algorithm), updated(other, algorithm, [2, 0, 3, 1])
    assert first == pytest.approx(second, rel=1e-4, abs=1e-6)


def test_the_references_sums_are_computed_once_and_are_those_computed_anew() -> None:
    """They belong to the frozen reference, whatever the policy has become and whichever pairs stood beside."""
    learner, algorithm = learner_of(llama()), resolve_preference("dpo")
    data, asked = PairData(PAIRS, tokenizer()), []
    plain = learner.ref_sums
    learner.ref_sums = lambda rows: (asked.append(rows.num_rows), plain(rows))[1]  # type: ignore[method-assign]
    for numbers in ([2], [0, 1], [1, 2], [3, 0, 1, 2]):
        learner.update_pairs(data.batch(numbers, learner, with_reference=True), algorithm)
    assert asked == [2, 4, 2]  # each pair's two rows once
    kept = data.batch(NUMBERS, learner, with_reference=True).ref_sums
    fresh = PairData(PAIRS, tokenizer()).batch(NUMBERS, learner, with_reference=True)
    torch.testing.assert_close(kept, fresh.ref_sums, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kept, row_sums(llama(), fresh.rows).detach(), rtol=1e-4, atol=1e-4)


def test_a_batch_without_reference_never_asks_for_it() -> None:
    learner = learner_of(llama())
    learner.ref_sums = None  # type: ignore[assignment]
    batch = PairData(PAIRS, tokenizer()).batch([0, 1], learner, with_reference=False)
    assert batch.ref_sums.tolist() == [0.0] * 4


def test_the_reference_does_not_follow_the_policy() -> None:
    learner = learner_of(llama(), moved=False)
    before = copied(learner.reference)
    updated(learner, resolve_preference("dpo"))
    assert equal(copied(learner.reference), before)
    assert not equal(copied(learner.model), before)


def test_the_first_step_of_dpo_is_a_coin_toss() -> None:
    """I10: policy and reference agree, so every implied reward is 0 and the loss is log 2."""
    metrics = updated(learner_of(llama(), moved=False), resolve_preference("dpo"))
    assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-5)
    for name in ("chosen_reward", "rejected_reward", "margin"):
        assert metrics[name] == pytest.approx(0.0, abs=1e-5)
    assert metrics["grad_norm"] > 1e-3


def test_the_first_step_of_kto_has_losses_of_a_half() -> None:
    metrics = updated(learner_of(llama(), moved=False), resolve_preference("kto"))
    assert metrics["loss"] == pytest.approx(0.5, abs=1e-5)
    assert metrics["kl_baseline"] == pytest.approx(0.0, abs=1e-5)


def test_kto_reads_its_baseline_off_prompts_with_other_pairs_completions() -> None:
    batch = PairData(PAIRS, tokenizer()).labelled(NUMBERS, learner_of(llama()))
    rows, crossed = batch.rows, batch.mismatched
    assert batch.desirable.tolist() == [True, False] * 4
    for row in range(8):
        other = (row + 2) % 8
        ours, theirs = ~rows.loss_mask[row], crossed.loss_mask[row]
        prompt = rows.tokens[row][ours & rows.attention_mask[row]]
        assert torch.equal(crossed.tokens[row][~theirs & crossed.attention_mask[row]], prompt)
        assert torch.equal(crossed.tokens[row][theirs], rows.tokens[other][rows.loss_mask[other]])


def margin(model: PreTrainedModel, start: PreTrainedModel) -> Tensor:
    """By how much more the model than its start prefers each chosen completion, per token [P]."""
    rows = PairData(PAIRS, tokenizer()).batch(NUMBERS, learner_of(llama()), with_reference=False).rows
    with torch.no_grad():
        gained = (row_sums(model, rows) - row_sums(start, rows)) / rows.loss_mask.sum(dim=1)
    chosen, rejected = gained.view(-1, 2).unbind(dim=1)
    return chosen - rejected


@pytest.mark.parametrize("name", NAMES)
def test_every_algorithm_comes_to_prefer_the_chosen(name: str) -> None:
    learner = learner_of(llama(), moved=False, optimizer=OptimizerSettings(lr=1e-3))
    algorithm = resolve_preference(name)
    logged = [updated(learner, algorithm) for _ in range(6)]
    assert float(margin(learner.model, llama()).min()) > 0.05
    assert logged[-1]["loss"] < logged[0]["loss"]
    if algorithm.unpaired:
        assert logged[-1]["chosen_reward"] - logged[-1]["rejected_reward"] > 0.05
    else:
        assert logged[-1]["margin"] > logged[0]["margin"] + 0.05


@pytest.mark.parametrize("name", NAMES)
def test_a_rate_of_zero_keeps_every_parameter(name: str) -> None:
    """I39."""
    learner = learner_of(llama(), optimizer=OptimizerSettings(lr=0.0, weight_decay=0.1))
    before, algorithm = copied(learner.model), resolve_preference(name)
    assert updated(learner, algorithm) == updated(learner, algorithm)
    assert equal(copied(learner.model), before)


OTHER_VALUES = {
    "beta": 0.7,
    "label_smoothing": 0.3,
    "target_margin": 0.4,
    "orpo_coef": 0.9,
    "nll_coef": 0.3,
    "desirable_weight": 2.0,
    "undesirable_weight": 0.5,
}


@pytest.mark.parametrize(("name", "key"), [(n, k) for n in NAMES for k in PREFERENCE_ALGORITHMS[n].defaults])
def test_every_setting_that_is_declared_changes_loss_and_gradient(name: str, key: str) -> None:
    """I16."""
    plain, plain_metrics = gradient_of(learner_of(llama()), resolve_preference(name))
    changed, metrics = gradient_of(learner_of(llama()), resolve_preference(name, **{key: OTHER_VALUES[key]}))
    assert abs(metrics["loss"] - plain_metrics["loss"]) > 1e-4
    assert max(float((changed[n] - plain[n]).abs().max()) for n in plain) > 1e-5


@pytest.mark.parametrize("name", ["dpo", "simpo", "kto"])
def test_the_temperature_divides_the_logits_of_policy_and_reference(name: str) -> None:
    """I34: a head half as large at temperature 1 is the whole head at temperature 2."""

    def loss(temperature: float, scale: float) -> float:
        model = llama()
        with torch.no_grad():
            model.lm_head.weight.mul_(scale)
        learner = PreferenceLearner(model, optimizer=UNCLIPPED, temperature=temperature)
        with torch.no_grad():
            model.lm_head.weight[::2].mul_(1.3)
        return updated(learner, resolve_preference(name))["loss"]

    assert loss(2.0, 1.0) == pytest.approx(loss(1.0, 0.5), abs=1e-5)
    assert abs(loss(2.0, 1.0) - loss(1.0, 1.0)) > 1e-4


def test_what_stands_outside_the_completions_is_never_a_label() -> None:
    """I6, I32: the head is applied once for each token of a completion."""
    learner, heads = learner_of(llama()), []
    data = PairData(PAIRS, tokenizer())
    batch = data.batch(NUMBERS, learner, with_reference=True)
    learner.model.lm_head.register_forward_hook(lambda _module, _inputs, output: heads.append(output.shape[0]))
    learner.update_pairs(batch, resolve_preference("dpo"))
    assert sum(heads) == int(batch.rows.loss_mask.sum())


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_a_saved_state_is_continued_bit_for_bit(name: str) -> None:
    """I37: weights, optimizer, schedule and reference."""
    algorithm = resolve_preference(name)
    learner = learner_of(llama())
    updated(learner, algorithm)
    saved = io.BytesIO()
    torch.save(learner.state_dict(), saved)
    expected = updated(learner, algorithm)
    saved.seek(0)
    other = learner_of(llama(seed=5))
    other.load_state_dict(torch.load(saved, weights_only=True))
    assert updated(other, algorithm) == expected
    assert equal(copied(other.model), copied(learner.model))


def test_a_step_that_is_not_finite_is_refused() -> None:
    learner = learner_of(llama())
    before = copied(learner.model)
    batch = PairData(PAIRS, tokenizer()).batch(NUMBERS, learner, with_reference=True)
    broken = PairBatch(batch.rows, torch.full_like(batch.ref_sums, math.nan))
    with pytest.raises(TrainingError, match="not a finite number"):
        learner.update_pairs(broken, resolve_preference("dpo"))
    assert equal(copied(learner.model), before)
