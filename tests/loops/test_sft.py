"""Supervised fine-tuning, whole, on a tiny random model."""

from __future__ import annotations

import pytest
from tiny_models import llama, tokenizer

from melete.algorithms import resolve
from melete.batch import MaskedRow
from melete.datasets.encode import single_row
from melete.learning.local import LocalLearner
from melete.learning.optimizer import OptimizerSettings
from melete.loops.passes import batch_numbers
from melete.loops.sft import train
from melete.text.chat import pad_token
from melete.types import Demonstration, Message

ANSWERS = ("one", "two and three", "what is one and two", "three", "12", "one and one")
ROWS = [
    single_row(tokenizer(), Demonstration(f"d/{n}", (Message("user", f"what is {n}"),), answer))
    for n, answer in enumerate(ANSWERS)
]


def trained(
    learner: LocalLearner, start: int, stop: int, rows: list[MaskedRow] = ROWS, rows_per_step: int = 4
) -> list[dict[str, float]]:
    logged: list[dict[str, float]] = []

    def on_step(step: int, metrics, timings) -> None:
        assert step == start + len(logged) and timings["update_seconds"] > 0
        logged.append(dict(metrics))

    train(
        start=start,
        stop=stop,
        rows=rows,
        rows_per_step=rows_per_step,
        pad_token_id=pad_token(tokenizer()),
        learner=learner,
        algorithm=resolve("sft"),
        seed="0",
        on_step=on_step,
    )
    return logged


def learner_of(**settings: object) -> LocalLearner:
    return LocalLearner(llama(), optimizer=OptimizerSettings(lr=3e-3), **settings)


def test_demonstrations_are_learnt() -> None:
    losses = [metrics["loss"] for metrics in trained(learner_of(), 0, 20)]
    assert sum(losses[-2:]) < 0.3 * sum(losses[:2])


def test_every_pass_sees_every_row_once_and_the_last_batch_may_be_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, seen = learner_of(), []
    plain = learner.update
    monkeypatch.setattr(learner, "update", lambda batch, row: (seen.append(batch), plain(batch, row))[1])
    trained(learner, 0, 4)
    assert [batch.num_rows for batch in seen] == [4, 2, 4, 2]
    for step, batch in enumerate(seen):
        found = [row[mask].tolist() for row, mask in zip(batch.tokens, batch.attention_mask, strict=True)]
        assert found == [ROWS[number][0] for number in batch_numbers(step, len(ROWS), 4, "0")]


def test_the_loss_is_the_mean_over_completion_tokens() -> None:
    """I7: of the whole step, prompts and padding apart, however it is split."""
    whole = trained(learner_of(), 0, 1, rows_per_step=6)[0]["loss"]
    split = trained(learner_of(max_tokens_per_microbatch=1), 0, 1, rows_per_step=6)[0]["loss"]
    sums = counts = 0.0
    for row in ROWS:
        count = float(sum(row[1]))
        sums += count * trained(learner_of(), 0, 1, rows=[row])[0]["loss"]
        counts += count
    assert whole == pytest.approx(sums / counts, rel=1e-4)
    assert split == pytest.approx(whole, rel=1e-4)


def test_a_run_in_two_parts_is_the_run_in_one() -> None:
    """I37."""
    whole, parts = learner_of(), learner_of()
    assert trained(whole, 0, 5) == [*trained(parts, 0, 3), *trained(parts, 3, 5)]
    assert all(weight.equal(whole.weights()[name]) for name, weight in parts.weights().items())
