"""Work in lanes: parts of a small model's work side by side, with the result of one after the other."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest
import torch
from tiny_models import deepseek, llama, requests, tokenizer
from torch import nn

from melete.algorithms import resolve
from melete.batch import demonstrations
from melete.learning import scoring, updater
from melete.learning.local import LocalLearner
from melete.learning.optimizer import OptimizerSettings
from melete.machine.forks import Fork, Tell, Work
from melete.machine.threads import in_lanes, num_lanes
from melete.models.moe import RouterBalancer
from melete.sampling import copies, native
from melete.sampling.native import NativeSampler
from melete.types import Completion, SamplingSettings


def test_results_come_in_order_and_so_many_at_once() -> None:
    at_once, most, lock = 0, 0, threading.Lock()

    def slow(item: int) -> int:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.02 * (5 - item % 5))
        with lock:
            at_once -= 1
        return item

    assert list(in_lanes(slow, range(12), 3)) == list(range(12))
    assert 1 < most <= 3


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_so_many_items_are_asked_for_before_a_thread_is_free(ahead: int) -> None:
    asked, go_on = list[int](), threading.Event()

    def items() -> Iterator[int]:
        for number in range(8):
            asked.append(number)
            if len(asked) == 2 + ahead:
                threading.Timer(0.1, go_on.set).start()
            yield number

    def wait(item: int) -> tuple[int, int]:
        go_on.wait(10)
        return item, len(asked)

    found = list(in_lanes(wait, items(), 2, ahead=ahead))
    assert [item for item, _ in found] == list(range(8))
    assert found[0][1] == 2 + ahead


@pytest.mark.parametrize("num", [1, 3])
def test_the_first_error_ends_it(num: int) -> None:
    done: list[int] = []

    def failing(item: int) -> None:
        if item == 2:
            raise ValueError("the third")
        done.append(item)

    with pytest.raises(ValueError, match="the third"):
        list(in_lanes(failing, range(100), num))
    assert len(done) < 10


def test_large_models_and_other_devices_have_one_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("melete.machine.threads.usable_cores", lambda: 8)
    assert [num_lanes(1, "cpu", {}), num_lanes(2, "cpu", {}), num_lanes(1, "cuda", {})] == [4, 1, 1]
    assert num_lanes(1, "cpu", {"OMP_NUM_THREADS": "1"}) == 1


def lanes(monkeypatch: pytest.MonkeyPatch, num: int) -> None:
    for module in (native, scoring, updater):
        monkeypatch.setattr(module, "num_lanes", lambda *_: num)
    monkeypatch.setattr(native, "PARAMETERS_OF_THREADS", 0)
    monkeypatch.setattr(native, "ROWS_OF_LANE", 2)


def learnt(model: nn.Module) -> tuple[dict[str, float], torch.Tensor, list[torch.Tensor]]:
    rows = [([1, *range(5, 7 + row % 5)], [False, *[True] * (2 + row % 5)]) for row in range(24)]
    batch = demonstrations(rows, 0)
    learner = LocalLearner(
        model,  # type: ignore[arg-type]
        optimizer=OptimizerSettings(lr=1e-3),
        max_tokens_per_microbatch=16,
        after_step=RouterBalancer(model).step,
    )
    metrics = [learner.update(batch, resolve("sft")) for _ in range(2)][-1]
    return metrics, learner.logprobs(batch), [weight.detach().clone() for weight in model.state_dict().values()]


@pytest.mark.parametrize("kind", [llama, deepseek])
def test_what_is_learnt_in_lanes_is_the_same_to_the_last_bit(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    lanes(monkeypatch, 1)
    alone = learnt(kind())
    lanes(monkeypatch, 3)
    beside = learnt(kind())
    assert alone[0] == beside[0] and torch.equal(alone[1], beside[1])
    assert all(torch.equal(*both) for both in zip(alone[2], beside[2], strict=True))


def written(kind: type, num: int, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Completion], list[tuple[int, int]]]:
    """Completions written in so many lanes, and the places of those that were told, in their order."""
    lanes(monkeypatch, num)
    sampler, told = NativeSampler(kind(), tokenizer()), list[tuple[int, int]]()
    found = sampler.sample(
        requests(), SamplingSettings(12), on_completion=lambda number, sibling, _: told.append((number, sibling))
    )
    if num > 1:
        wave = next(sampler._waves(requests()))
        assert len(sampler._lanes(wave)) == num and list(chain(*(lane.parts for lane in sampler._lanes(wave)))) == wave
    assert sampler.num_decoded_tokens == sum(len(one.tokens) for one in chain(*found))
    return list(chain(*found)), told


@pytest.mark.parametrize("how", ["forks", "threads"])
@pytest.mark.parametrize("kind", [llama, deepseek])
def test_what_is_written_in_lanes_is_the_same(kind: type, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, told_alone = written(kind, 1, monkeypatch)
    monkeypatch.setattr(native, "can_fork", lambda: how == "forks")
    beside, told = written(kind, 3, monkeypatch)
    for one, other in zip(alone, beside, strict=True):
        assert one.tokens == other.tokens and one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    assert sorted(told_alone) == sorted(told)


def test_copies_write_with_the_weights_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made once; weights that change are seen by them, and so are other end tokens."""
    lanes(monkeypatch, 3)
    sampler, alone = NativeSampler(llama(), tokenizer()), NativeSampler(llama(), tokenizer())
    monkeypatch.setattr(alone._copies, "ready", lambda *_: [])
    forks: list[list[Fork]] = []
    for change in (0.0, 0.3, 0.0, -0.5):
        for one in (sampler, alone):
            with torch.no_grad():
                for weight in one.model.parameters():
                    weight.mul_(1 + change)
            one.policy_version += 1
        assert sampler.sample(requests(), SamplingSettings(12)) == alone.sample(requests(), SamplingSettings(12))
        forks.append(list(sampler._copies.forks))
    assert len(forks[0]) == 2 and all(again == forks[0] for again in forks)
    for one in (sampler, alone):
        one.end_tokens = torch.arange(0, 300, 3)
    assert sampler.sample(requests(), SamplingSettings(12)) == alone.sample(requests(), SamplingSettings(12))
    assert not set(sampler._copies.forks) & set(forks[0]) and all(fork._status is not None for fork in forks[0])
    sampler.close()
    assert sampler.sample(requests(), SamplingSettings(12)) == alone.sample(requests(), SamplingSettings(12))


def test_copies_end_with_their_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    lanes(monkeypatch, 3)
    sampler = NativeSampler(llama(), tokenizer())
    sampler.sample(requests(), SamplingSettings(12))
    forks = list(sampler._copies.forks)
    assert len(forks) == 2 and all(fork._status is None for fork in forks)
    del sampler
    gc.collect()
    assert all(fork._status is not None for fork in forks)


class Fails(Fork):
    """A copy that ends after its first row."""

    def __init__(self, work: Work) -> None:
        def begun(job: Any, tell: Tell) -> None:
            def once(value: Any) -> None:
                tell(value)
                os._exit(1)

            work(job, once)

        super().__init__(begun)


def none_to_be_had(*_: object) -> Fork:
    raise OSError("no process")


@pytest.mark.parametrize("fork", [Fails, none_to_be_had])
def test_a_lane_whose_copy_fails_is_written_here_with_the_same_result(
    fork: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, told_whole = written(llama, 3, monkeypatch)
    monkeypatch.setattr(copies, "Fork", fork)
    again, told = written(llama, 3, monkeypatch)
    assert again == whole
    assert sorted(told) == sorted(told_whole)


def test_an_error_in_one_lane_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    lanes(monkeypatch, 3)
    made: list[Fork] = []

    def remembered(_work: Work) -> Fork:
        made.append(Fork(lambda _job, _tell: time.sleep(60)))
        return made[-1]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(copies, "Fork", remembered)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        NativeSampler(llama(), tokenizer()).sample(requests(), SamplingSettings(12), on_completion=stop)
    assert len(made) == 2 and not any(fork.join() for fork in made) and time.monotonic() - begun < 20
