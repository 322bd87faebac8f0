"""The learner of distillation: a student nears its teacher, however rows are split, and the teacher stays as it is."""

from __future__ import annotations

import io
import math
from typing import get_args

import pytest
import torch
from tiny_models import MODELS, assert_close_gradients, copied, equal, llama, tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from melete.batch import TokenRows
from melete.functional import distill
from melete.learning.distill import DistillLearner, Divergence
from melete.learning.optimizer import OptimizerSettings

UNCLIPPED = OptimizerSettings(lr=1e-3, max_grad_norm=1e9)
DIVERGENCES: tuple[Divergence, ...] = get_args(Divergence)
TEACHER_SEED = 7


def packed(*lengths: int, prompt: int = 2) -> TokenRows:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(6, len(tokenizer()), (length,), generator=generator).tolist() for length in lengths]
    return TokenRows.pack([(row, [False] * prompt + [True] * (len(row) - prompt)) for row in rows], 0)


ROWS = packed(7, 5, 12, 3, 9)


def learner_of(
    divergence: Divergence, kind: str = "llama", *, optimizer: OptimizerSettings = UNCLIPPED, **settings: object
) -> DistillLearner:
    student, teacher = MODELS[kind](), MODELS[kind](TEACHER_SEED)
    return DistillLearner(student, teacher, optimizer=optimizer, divergence=divergence, **settings)


def gradient_of(learner: DistillLearner, rows: TokenRows = ROWS) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The gradient that the optimizer used, by name, and what was logged."""
    seen: dict[str, Tensor] = {}

    def keep(*_: object) -> None:
        seen.update({n: p.grad.clone() for n, p in learner.model.named_parameters() if p.grad is not None})

    learner.updater.optimizer.register_step_pre_hook(keep)
    metrics = learner.update(rows)
    return seen, metrics


def predictions(model: PreTrainedModel, rows: TokenRows) -> Tensor:
    """Logits of every completion token [N, V], read off the whole logits."""
    logits = model(input_ids=rows.tokens, attention_mask=rows.attention_mask.long()).logits
    return logits[:, :-1][rows.loss_mask[:, 1:]]


def written_out(divergence: Divergence, student: PreTrainedModel, teacher: PreTrainedModel) -> Tensor:
    """The mean over all completion tokens, in one piece."""
    logits = predictions(student, ROWS)
    if divergence == "sequence":
        return F.cross_entropy(logits, ROWS.tokens[:, 1:][ROWS.loss_mask[:, 1:]])
    wanted = predictions(teacher, ROWS).detach()
    kinds = {"forward_kl": distill.forward_kl, "reverse_kl": distill.reverse_kl, "jsd": distill.generalized_jsd}
    return kinds[divergence](logits, wanted).mean()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_loss_and_gradient_do_not_depend_on_the_split(kind: str, divergence: Divergence) -> None:
    """I1: one micro-batch, a few, or one row each, against the loss over the whole logits."""
    student = MODELS[kind]()
    expected = written_out(divergence, student, MODELS[kind](TEACHER_SEED))
    expected.backward()
    gradient = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    assert max(float(g.abs().max()) for g in gradient.values()) > 1e-4
    for max_tokens in (1, 20, 10_000):
        seen, metrics = gradient_of(learner_of(divergence, kind, max_tokens_per_microbatch=max_tokens))
        assert metrics["loss"] == pytest.approx(float(expected.detach()), rel=1e-5, abs=1e-5)
        assert metrics["num_tokens"] == float(ROWS.loss_mask.sum())
        assert_close_gradients(seen, gradient)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_divergence_falls_and_the_teacher_is_unchanged(divergence: Divergence) -> None:
    learner = learner_of(divergence, optimizer=OptimizerSettings(lr=3e-3))
    before = copied(learner.teacher)
    losses = [learner.update(ROWS)["loss"] for _ in range(20)]
    assert losses[-1] < 0.6 * losses[0]
    assert equal(copied(learner.teacher), before)
    assert all(p.grad is None and not p.requires_grad for p in learner.teacher.parameters())


@pytest.mark.parametrize("divergence", [d for d in DIVERGENCES if d != "sequence"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(divergence: Divergence) -> None:
    learner = DistillLearner(llama(), llama(), optimizer=UNCLIPPED, divergence=divergence)
    metrics = learner.update(ROWS)
    assert metrics["loss"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["grad_norm"] == pytest.approx(0.0, abs=1e-4)


def test_copying_a_sequence_never_asks_the_teacher() -> None:
    learner = learner_of("sequence")
    learner.teacher.register_forward_hook(lambda *_: pytest.fail("the teacher was asked"))
    learner.teacher.base_model.register_forward_hook(lambda *_: pytest.fail("the teacher was asked"))
    assert learner.update(ROWS)["loss"] > 0


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_rate_of_zero_keeps_every_parameter(divergence: Divergence) -> None:
    """I39."""
    learner = learner_of(divergence, optimizer=OptimizerSettings(lr=0.0, weight_decay=0.1))
    before = copied(learner.model)
    assert learner.update(ROWS) == learner.update(ROWS)
    assert equal(copied(learner.model), before)


@pytest.mark.parametrize(
    ("divergence", "setting", "value"),
    [("forward_kl", "temperature", 2.0), ("reverse_kl", "temperature", 2.0), ("jsd", "temperature", 2.0),
     ("jsd", "jsd_beta", 0.1)],
)  # fmt: skip
def test_every_setting_changes_loss_and_gradient(divergence: Divergence, setting: str, value: float) -> None:
    """I16."""
    plain, plain_metrics = gradient_of(learner_of(divergence))
    changed, metrics = gradient_of(learner_of(divergence, **{setting: value}))
    assert abs(metrics["loss"] - plain_metrics["loss"]) > 1e-4
    assert max(float((changed[n] - plain[n]).abs().max()) for n in plain) > 1e-5


def test_the_divergences_are_different() -> None:
    losses = [learner_of(divergence).update(ROWS)["loss"] for divergence in DIVERGENCES]
    assert len({round(loss, 4) for loss in losses}) == len(DIVERGENCES)
    assert losses[DIVERGENCES.index("jsd")] <= math.log(2)


def test_the_tokens_of_a_prompt_are_never_learnt() -> None:
    """I32: the heads are applied once for each completion token."""
    learner, heads = learner_of("forward_kl"), []
    for model in (learner.model, learner.teacher):
        model.lm_head.register_forward_hook(lambda _module, _inputs, output: heads.append(output.shape[0]))
    learner.update(ROWS)
    assert sum(heads) == 2 * int(ROWS.loss_mask.sum())


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_rows_without_completion_change_no_weight(divergence: Divergence) -> None:
    """I5."""
    learner = learner_of(divergence)
    before = copied(learner.model)
    nothing = TokenRows(ROWS.tokens, ROWS.attention_mask, torch.zeros_like(ROWS.loss_mask))
    assert learner.update(nothing)["loss"] == 0.0
    assert equal(copied(learner.model), before)


def test_a_saved_state_is_continued_bit_for_bit() -> None:
    """I37."""
    learner = learner_of("jsd")
    learner.update(ROWS)
    saved = io.BytesIO()
    torch.save(learner.state_dict(), saved)
    expected = learner.update(ROWS)
    saved.seek(0)
    other = DistillLearner(llama(5), llama(TEACHER_SEED), optimizer=UNCLIPPED, divergence="jsd")
    other.load_state_dict(torch.load(saved, weights_only=True))
    assert other.update(ROWS) == expected
    assert equal(copied(other.model), copied(learner.model))
