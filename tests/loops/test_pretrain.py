"""Pre-training: batches without loss of tokens, a schedule, and workers that share the work and stay equal."""

from __future__ import annotations

import copy
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from melete.corpus.mix import PHASES, documents, sample_texts
from melete.loops.pretrain import (
    POOL_SIZE,
    PretrainSettings,
    _mean_over_workers,
    encode_documents,
    lr_factor,
    pretrain_with_workers,
    token_batches,
)
from melete.models.moe import RouterBalancer
from melete.models.tiny import tiny_model, train_tokenizer

TOKENIZER = train_tokenizer(sample_texts(0, 150), 600)
BEGIN, END, PAD = (TOKENIZER.get_vocab()[token] for token in ("<|bos|>", "<|end|>", "<|pad|>"))
TINY = PretrainSettings(num_tokens=12_000, tokens_per_batch=1024, lr=5e-3)


def first_pool(settings: PretrainSettings, rank: int, progress: float = 0.0) -> list[list[int]]:
    """The rows, without padding, of all batches that one pool of documents gives."""
    rows: list[list[int]] = []
    for batch in token_batches(TOKENIZER, settings, rank, lambda: progress):
        rows += [[t for t in row.tolist() if t != PAD] for row in batch]
        if len(rows) >= POOL_SIZE:
            return rows
    raise AssertionError("the stream of batches never ends")


def test_every_document_of_a_pool_is_trained_on_once() -> None:
    wanted = encode_documents(TOKENIZER, list(islice(documents(0, PHASES[0]), POOL_SIZE)))
    assert Counter(map(tuple, first_pool(TINY, 0))) == Counter(map(tuple, wanted))


def test_a_document_has_one_beginning_and_one_end_and_reads_as_the_chat_template_writes_it() -> None:
    """I31: exactly one BOS, and the end-of-turn token is learnt."""
    drawn = list(islice(documents(0, PHASES[-1]), 300))
    for document, row in zip(drawn, encode_documents(TOKENIZER, drawn), strict=True):
        assert row.count(BEGIN) == row.count(END) == 1
        assert row[0] == BEGIN and row[-1] == END
        if document.prompt:
            turns = [
                {"role": "user", "content": document.prompt},
                {"role": "assistant", "content": document.completion},
            ]
            assert row == TOKENIZER.apply_chat_template(turns, tokenize=True, return_dict=False)


def test_a_batch_holds_no_more_than_its_tokens_and_pads_on_the_right() -> None:
    for batch in islice(token_batches(TOKENIZER, TINY, 0, lambda: 0.5), 60):
        assert batch.numel() <= TINY.tokens_per_batch
        real = batch.ne(PAD)
        assert bool((real[:, :-1] >= real[:, 1:]).all()) and bool(real[:, -1].any())


def test_workers_get_equal_shares_of_different_documents() -> None:
    two = PretrainSettings(num_tokens=12_000, tokens_per_batch=1024, num_workers=2)
    shares = [first_pool(two, rank) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1]) == POOL_SIZE
    sizes = [sum(map(len, rows)) for rows in shares]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)
    problems = [{tuple(row) for row in rows if len(row) > 25} for rows in shares]
    assert len(problems[0] & problems[1]) < len(problems[0]) / 4
    assert all(batch.numel() <= 512 for batch in islice(token_batches(TOKENIZER, two, 1, lambda: 0.0), 40))


def test_each_phase_is_drawn_in_its_time() -> None:
    for progress, phase in ((0.1, PHASES[0]), (0.5, PHASES[1]), (0.9, PHASES[2]), (1.0, PHASES[2])):
        wanted = {tuple(row) for row in encode_documents(TOKENIZER, list(islice(documents(0, phase), POOL_SIZE)))}
        assert {tuple(row) for row in first_pool(TINY, 0, progress)} == wanted


def test_the_rate_rises_stays_and_falls_to_a_hundredth() -> None:
    settings = PretrainSettings(warmup_share=0.1, decay_share=0.4)
    points = [0.0, 0.05, 0.1, 0.3, 0.6, 0.8, 0.9, 1.0, 1.01]
    wanted = [0.01, 0.51, 1.0, 1.0, 1.0, 0.5, 0.25, 0.01, 0.01]
    assert [lr_factor(point, settings) for point in points] == pytest.approx(wanted)


def trained(settings: PretrainSettings) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = tiny_model(TOKENIZER, hidden_size=32, num_layers=2)
    rows: list[dict[str, float]] = []
    pretrain_with_workers(model, TOKENIZER, settings, lambda _step, metrics: rows.append(metrics))
    for row in rows:
        assert row.pop("tokens_per_second") > 0
    return rows, copy.deepcopy(model.state_dict())


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_loss_falls_and_the_same_seed_gives_the_same_weights(num_workers: int) -> None:
    settings = PretrainSettings(num_tokens=12_000, tokens_per_batch=1024, lr=5e-3, num_workers=num_workers)
    rows, weights = trained(settings)
    losses = [row["loss"] for row in rows]
    assert sum(losses[-3:]) / 3 < sum(losses[:3]) / 3 - 1
    assert all(0 < row["progress"] < 1 for row in rows[1:])
    assert 0.4 < len(rows) * settings.tokens_per_batch / settings.num_tokens < 2.5
    bias = weights["model.layers.1.mlp.gate.e_score_correction_bias"]
    assert bool((bias != 0).any()), "the router's biases move"
    if num_workers == 1:
        again, same = trained(settings)
        assert again == rows and all(torch.equal(weights[name], same[name]) for name in weights)


def _one_step(rank: int, num_workers: int, meeting_point: str, rows: list[list[list[int]]], gradients: Any) -> None:
    """A worker with rows of its own: what `pretrain` does between its forward pass and its step."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=num_workers)
    torch.manual_seed(0)
    model = tiny_model(TOKENIZER, hidden_size=32, num_layers=2)
    balancer = RouterBalancer(model, 0.0)
    model.train()
    loss_sum, num_targets = torch.zeros(()), 0
    for row in rows[rank]:
        logits = model(input_ids=torch.tensor([row])).logits[0, :-1]
        loss_sum = loss_sum + torch.nn.functional.cross_entropy(logits, torch.tensor(row[1:]), reduction="sum")
        num_targets += len(row) - 1
    loss_sum.backward()
    loss, count = _mean_over_workers(model, balancer, loss_sum.detach(), torch.tensor(num_targets))
    if rank == 0:
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        torch.save({"loss": loss, "count": count, "gradients": found}, gradients)
    distributed.destroy_process_group()


def test_two_workers_with_unequal_rows_make_the_gradient_of_one_worker_with_all(tmp_path: Path) -> None:
    """I2: the mean is over the tokens of both, not over two means."""
    drawn = [row for row in first_pool(TINY, 0) if 5 < len(row) < 40][:6]
    shares = {1: [drawn], 2: [drawn[:1], drawn[1:]]}
    context = torch.multiprocessing.get_context("fork")
    for num_workers, rows in shares.items():
        meeting_point, file = f"file://{tmp_path}/meet-{num_workers}", tmp_path / f"{num_workers}.pt"
        arguments = (num_workers, meeting_point, rows, file)
        workers = [context.Process(target=_one_step, args=(rank, *arguments)) for rank in range(num_workers)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
            assert worker.exitcode == 0
    one, two = (torch.load(tmp_path / f"{number}.pt") for number in (1, 2))
    assert two["count"] == one["count"] == sum(len(row) - 1 for row in drawn)
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert two["gradients"].keys() == one["gradients"].keys()
    for name, gradient in one["gradients"].items():
        torch.testing.assert_close(two["gradients"][name], gradient, rtol=1e-3, atol=1e-6)
