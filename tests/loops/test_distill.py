"""Distillation, whole, on tiny random models: who writes, what is kept, and that the student nears its teacher."""

from __future__ import annotations

import pytest
from tiny_models import ending_often, llama, tokenizer

from melete.learning.distill import DistillLearner, Divergence
from melete.learning.optimizer import OptimizerSettings
from melete.loops.distill import Accept, Writers, train, written
from melete.loops.rl_rollouts import SampleSettings, sample_rollouts
from melete.sampling.native import NativeSampler
from melete.types import Message, Problem, Rollout, SamplingSettings

SETTINGS = SampleSettings(1, SamplingSettings(8), (0, "distill"))
STUDENT, TEACHER = 100, 200  # versions of the weights, to tell the writers apart


def problems(step: int, count: int = 6) -> list[Problem]:
    return [Problem(f"q/{step}/{n}", "q", (Message("user", "what is one" * (1 + n % 3)),), "1") for n in range(count)]


def writers_of(share: float, accept: Accept | None = None) -> Writers:
    student = NativeSampler(ending_often(llama()), tokenizer(), version=STUDENT)
    return Writers(student, NativeSampler(ending_often(llama(7)), tokenizer(), version=TEACHER), share, accept)


def by_student(rollouts: list[Rollout]) -> set[str]:
    return {r.problem.problem_id for r in rollouts if r.completion.policy_version == STUDENT}


@pytest.mark.parametrize(("share", "writer"), [(1.0, STUDENT), (0.0, TEACHER)])
def test_a_share_of_one_is_the_students_and_of_zero_the_teachers(share: float, writer: int) -> None:
    writers, asked = writers_of(share), problems(0)
    found = written(asked, SETTINGS, writers, tokenizer(), 0)
    sampler = writers.student if writer == STUDENT else writers.teacher
    assert found == [r for group in sample_rollouts(sampler, tokenizer(), asked, SETTINGS, 0) for r in group]
    assert {r.completion.policy_version for r in found} == {writer}


def test_who_writes_is_decided_by_seed_step_and_place() -> None:
    asked = problems(0, 24)

    def students(step: int, settings: SampleSettings = SETTINGS, share: float = 0.5) -> set[str]:
        found = written(asked, settings, writers_of(share), tokenizer(), step)
        assert len(found) == len(asked)  # every prompt has one completion
        return by_student(found)

    first = students(0)
    assert 4 <= len(first) <= 20
    assert students(0) == first
    assert students(1) != first
    assert students(0, SampleSettings(1, SamplingSettings(8), (1, "distill"))) != first
    assert first < students(0, share=0.8) or first == students(0, share=0.8)


def test_what_is_not_accepted_is_kept_from_the_student_alone() -> None:
    asked = problems(0, 12)
    everything = written(asked, SETTINGS, writers_of(0.5), tokenizer(), 0)
    found = written(asked, SETTINGS, writers_of(0.5, lambda _rollout: False), tokenizer(), 0)
    assert found == [r for r in everything if r.completion.policy_version == STUDENT]
    ended = written(asked, SETTINGS, writers_of(0.0, lambda r: r.completion.finish_reason == "stop"), tokenizer(), 0)
    assert 0 < len(ended) < 12 and {r.completion.finish_reason for r in ended} == {"stop"}


def trained(
    share: float, divergence: Divergence, *, num_steps: int = 20, accept: Accept | None = None, group_size: int = 1
) -> tuple[list[dict[str, float]], NativeSampler]:
    student, teacher = llama(), llama(7)
    sampler = NativeSampler(student, tokenizer())
    learner = DistillLearner(student, teacher, optimizer=OptimizerSettings(lr=3e-3), divergence=divergence)
    logged: list[dict[str, float]] = []

    def on_step(step: int, metrics, timings) -> None:
        assert step == len(logged) and set(timings) == {"sample_seconds", "update_seconds"}
        logged.append(dict(metrics))

    train(
        start=0,
        stop=num_steps,
        problems=problems,
        settings=SampleSettings(group_size, SamplingSettings(8), (0, "distill")),
        writers=Writers(sampler, NativeSampler(teacher, tokenizer()), share, accept),
        learner=learner,
        tokenizer=tokenizer(),
        on_step=on_step,
    )
    return logged, sampler


@pytest.mark.parametrize(
    ("share", "divergence"),
    [(0.0, "sequence"), (0.0, "forward_kl"), (1.0, "reverse_kl"), (0.5, "jsd")],
    ids=["sequence", "logits", "on_policy", "gkd"],
)
def test_the_student_nears_its_teacher_on_text_that_is_new_at_every_step(share: float, divergence: Divergence) -> None:
    num_steps = 30 if divergence == "sequence" else 20
    logged, sampler = trained(share, divergence, num_steps=num_steps)
    losses = [metrics["loss"] for metrics in logged]
    fall = (sum(losses[:5]) - sum(losses[-5:])) / 5
    # the likelihood of sampled tokens has the teacher's entropy as its floor, the divergences have 0
    assert fall > (0.25 if divergence == "sequence" else 0.1 * losses[0])
    assert sampler.policy_version == num_steps  # the student writes with its newest weights


def test_a_step_of_which_nothing_is_kept_teaches_nothing() -> None:
    logged, sampler = trained(0.0, "sequence", num_steps=2, accept=lambda _rollout: False)
    assert logged == [{"num_rows": 0.0}] * 2
    assert all(weight.equal(llama().state_dict()[name]) for name, weight in sampler.model.state_dict().items())


def test_there_is_one_completion_for_each_prompt() -> None:
    logged, _ = trained(1.0, "reverse_kl", num_steps=1, group_size=4)
    assert logged[0]["num_rows"] == 6.0
