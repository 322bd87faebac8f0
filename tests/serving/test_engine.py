"""The engine: a row is what it would be alone, however rows come and go, and nothing is left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import pytest
import torch
from tiny_models import PROMPTS, deepseek, ending_often, llama, tokenizer
from transformers import PreTrainedModel

from melete.sampling.native import NativeSampler
from melete.serving.engine import DoesNotFit, Engine, Job, Piece, QueueFull
from melete.text.stream import TextStream
from melete.types import SampleRequest, SamplingSettings


class Heard:
    """Collects what an engine delivers for one job."""

    def __init__(
        self, prompt: Sequence[int], keys: Sequence[int] = (1,), max_tokens: int = 12, **settings: object
    ) -> None:
        self.pieces: list[Piece] = []
        self.over = threading.Event()
        self.job = Job(tuple(prompt), tuple(keys), self._hear, max_tokens, **settings)  # type: ignore[arg-type]

    def _hear(self, piece: Piece) -> None:
        self.pieces.append(piece)
        if len([p for p in self.pieces if p.finish]) == len(self.job.keys):
            self.over.set()

    def wait(self) -> "Heard":
        assert self.over.wait(30)
        return self

    def text(self, index: int = 0) -> str:
        return "".join(piece.text for piece in self.pieces if piece.index == index)

    def last(self, index: int = 0) -> Piece:
        return next(piece for piece in self.pieces if piece.index == index and piece.finish)

    def tokens(self, index: int = 0) -> list[int]:
        return [score.token for piece in self.pieces if piece.index == index for score in piece.scores]


def answered(engine: Engine, *asked: Heard) -> list[Heard]:
    engine.submit(*(heard.job for heard in asked))
    return [heard.wait() for heard in asked]


@pytest.fixture(params=[llama, deepseek])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return ending_often(request.param(), 20)


@pytest.fixture
def engine(model: PreTrainedModel) -> Iterator[Engine]:
    made = Engine(model, tokenizer(), max_rows=6, max_waiting=50)
    yield made
    made.close()


def asked_in_many_ways() -> list[Heard]:
    made = []
    for number, prompt in enumerate(PROMPTS * 3):
        temperature, top_p = ((0.0, 1.0), (1.0, 1.0), (0.7, 0.8))[number % 3]
        made.append(
            Heard(prompt, (number, 100 + number), 5 + number, temperature=temperature, top_p=top_p, top_logprobs=0)
        )
    return made


def test_a_row_is_what_it_would_be_alone(engine: Engine):
    alone = [answered(engine, heard)[0] for heard in asked_in_many_ways()]
    together = answered(engine, *asked_in_many_ways())
    for one, other in zip(alone, together, strict=True):
        for index in (0, 1):
            assert one.tokens(index) == other.tokens(index) and one.text(index) == other.text(index)
            assert one.last(index).finish == other.last(index).finish
            scores = [[s.logprob for p in h.pieces if p.index == index for s in p.scores] for h in (one, other)]
            assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_the_engine_writes_what_the_sampler_writes(engine: Engine):
    for temperature, top_p in ((0.0, 1.0), (1.0, 0.9)):
        settings = SamplingSettings(12, temperature=temperature, top_p=top_p)
        sampler = NativeSampler(engine.model, tokenizer())
        written = sampler.sample([SampleRequest(prompt, (7, 8)) for prompt in PROMPTS], settings)
        heard = answered(
            engine, *(Heard(p, (7, 8), temperature=temperature, top_p=top_p, top_logprobs=0) for p in PROMPTS)
        )
        for completions, one in zip(written, heard, strict=True):
            for index, completion in enumerate(completions):
                ended = completion.finish_reason == "stop"
                assert one.tokens(index) == list(completion.tokens[:-1] if ended else completion.tokens)
                assert one.last(index).finish == completion.finish_reason
                assert one.last(index).num_tokens == len(completion.tokens)


def test_scores_are_the_models_own_log_probs_at_temperature_1(engine: Engine):
    heard = Heard(PROMPTS[1], temperature=0.5, top_logprobs=3, prompt_scores=True)
    answered(engine, heard)
    tokens = [*PROMPTS[1], *heard.tokens()]
    with torch.inference_mode():
        logprobs = engine.model(torch.tensor([tokens])).logits[0].float().log_softmax(-1)
    scores = [score for piece in heard.pieces for score in piece.scores]
    assert scores[0].logprob is None and [score.token for score in scores] == tokens
    for place, score in enumerate(scores[1:]):
        assert score.logprob == pytest.approx(float(logprobs[place, score.token]), abs=1e-4)
        assert [value for _, value in score.top] == pytest.approx(logprobs[place].topk(3).values.tolist(), abs=1e-4)


def test_a_long_prompt_is_read_in_chunks_with_the_same_result(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    prompt = [1, *(40 + n % 90 for n in range(100))]
    whole = answered(engine, Heard(prompt, temperature=0, top_logprobs=0, prompt_scores=True))[0]
    monkeypatch.setattr("melete.serving.engine.CHUNK", 7)
    parts = answered(engine, Heard(prompt, temperature=0, top_logprobs=0, prompt_scores=True))[0]
    assert whole.tokens() == parts.tokens()
    for one, other in zip(whole.pieces[0].scores, parts.pieces[0].scores, strict=True):
        assert one.token == other.token and one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_a_prompt_can_be_scored_without_an_answer(engine: Engine):
    heard = answered(engine, Heard(PROMPTS[1], max_tokens=0, prompt_scores=True))[0]
    assert len(heard.pieces[0].scores) == len(PROMPTS[1]) and heard.last().num_tokens == 0


def test_rows_that_are_cancelled_are_let_go_and_others_go_on(engine: Engine):
    engine.end_tokens = frozenset()
    gone = [Heard(PROMPTS[n % 4], (n, n), 200) for n in range(6)]
    stays = Heard(PROMPTS[0], (5,), 60, top_logprobs=0)
    engine.submit(*(heard.job for heard in gone[:2]), stays.job, *(heard.job for heard in gone[2:]))
    time.sleep(0.05)
    for heard in gone:
        heard.job.cancel()
    stays.wait()
    assert len(stays.tokens()) == 60
    alone = answered(engine, Heard(PROMPTS[0], (5,), 60, top_logprobs=0))[0]
    assert stays.tokens() == alone.tokens()
    assert not any(heard.over.is_set() for heard in gone)
    assert (engine.num_rows, engine.num_waiting) == (0, 0)


def test_the_queue_is_bounded(engine: Engine):
    engine.end_tokens, engine.max_waiting = frozenset(), 3
    taken = []

    def fill() -> None:
        while True:
            one = Heard(PROMPTS[0], range(6), 100)
            engine.submit(one.job)
            taken.append(one)

    with pytest.raises(QueueFull, match="no more than 3 may"):
        fill()
    assert 3 <= len(taken) <= 5
    for one in taken:
        one.job.cancel()


def test_memory_is_given_back_when_nobody_is_served(engine: Engine):
    answered(engine, *(Heard(prompt, (1, 2)) for prompt in PROMPTS * 3))
    time.sleep(0.05)
    assert all(layer.key_slots.numel() == 0 for layer in engine._store.layers)  # pyright: ignore
    assert engine.num_rows == 0 and engine._reading is None


def test_what_never_fits_is_refused_with_the_numbers(engine: Engine):
    with pytest.raises(DoesNotFit, match=rf"{engine.context + 1} tokens.*takes {engine.context}"):
        engine.submit(Heard([40] * (engine.context + 1)).job)
    with pytest.raises(DoesNotFit, match="7 answers are wanted, and 6"):
        engine.submit(Heard([40], range(7)).job)
    with pytest.raises(DoesNotFit, match="empty"):
        engine.submit(Heard([]).job)
    with pytest.raises(DoesNotFit, match="does not have"):
        engine.submit(Heard([10**6]).job)


def test_an_answer_ends_where_the_context_does(engine: Engine):
    engine.end_tokens = frozenset()
    room = 5
    heard = answered(engine, Heard([40] * (engine.context - room), max_tokens=100))[0]
    assert heard.last().finish == "length" and heard.last().num_tokens == room


def test_a_failing_model_fails_its_requests_and_serves_the_next(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(engine._store, "step", lambda _: 1 / 0)
        heard = answered(engine, Heard(PROMPTS[0], temperature=0))[0]
    assert heard.last().finish == "error" and "ZeroDivisionError" in heard.last().error
    assert answered(engine, Heard(PROMPTS[0], temperature=0))[0].last().finish in ("stop", "length")


def test_numbers_that_are_not_finite_fail_their_row_alone():
    model = ending_often(llama(), 0)
    with torch.no_grad():
        model.get_input_embeddings().weight[45] = float("nan")  # pyright: ignore
    engine = Engine(model, tokenizer())
    engine.end_tokens = frozenset()
    bad, good = answered(engine, Heard((1, 45), max_tokens=3), Heard((1, 40), max_tokens=1, temperature=0))
    assert bad.last().finish == "error" and "finite" in bad.last().error
    assert good.last().finish == "length"
    engine.close()


def test_layers_with_a_window_are_served_row_by_row():
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer()), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=4, initializer_range=0.2,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    engine = Engine(model, tokenizer())
    heard = answered(engine, *(Heard(prompt, (3, 4), 10, top_logprobs=0) for prompt in PROMPTS))
    written = NativeSampler(model, tokenizer()).sample(
        [SampleRequest(prompt, (3, 4)) for prompt in PROMPTS], SamplingSettings(10)
    )
    for completions, one in zip(written, heard, strict=True):
        for index, completion in enumerate(completions):
            kept = [t for t in completion.tokens if t != tokenizer().eos_token_id]
            assert one.tokens(index) == kept
    engine.close()


def test_a_stop_string_is_cut_with_its_scores_across_tokens(engine: Engine):
    engine.end_tokens = frozenset()
    whole = answered(engine, Heard(PROMPTS[1], (9,), 30, top_logprobs=0))[0]
    text = whole.text()
    stop = text[10:14]
    cut = answered(engine, Heard(PROMPTS[1], (9,), 30, stop=(stop,), top_logprobs=0))[0]
    assert cut.text() == text[: text.index(stop)] and cut.last().finish == "stop"
    assert cut.tokens() == whole.tokens()[: len(cut.tokens())]
    stream = TextStream(tokenizer())
    before = "".join(stream.add(token) for token in cut.tokens())
    assert len(before.rstrip("�")) >= len(cut.text()) or text.startswith(before)
