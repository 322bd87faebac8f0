"""OpenAI's interface, with OpenAI's own client against a server that listens."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import openai
import pytest
import torch
from browser import served
from tiny_models import llama, tokenizer

from melete.models.load import load_model, load_tokenizer
from melete.serving.engine import Engine
from melete.serving.site import chat_app
from melete.text.chat import prompt_tokens
from melete.types import Message

ASK: list[Any] = [{"role": "user", "content": "What is 2+2?"}]


@pytest.fixture(scope="module")
def engines() -> dict[str, Engine]:
    model = llama()
    model.config.max_position_embeddings = 256
    model.generation_config.eos_token_id = None
    words = tokenizer()
    tiny, tiny_words = load_model("tiny"), load_tokenizer("tiny")
    random = Engine(model, words, name="random", max_rows=8, max_waiting=4)
    random.end_tokens = frozenset()
    return {
        "random": random,
        "tiny": Engine(tiny, tiny_words, name="tiny", max_rows=8, max_waiting=32),
    }


@pytest.fixture(scope="module")
def url(engines: dict[str, Engine]) -> Iterator[str]:
    with served(chat_app(engines)) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_the_models_are_listed(client: openai.OpenAI):
    assert [model.id for model in client.models.list()] == ["random", "tiny"]
    assert client.models.retrieve("tiny").owned_by == "melete"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_chat_is_answered_and_its_tokens_are_counted(client: openai.OpenAI, engines: dict[str, Engine]):
    reply = client.chat.completions.create(model="random", messages=ASK, max_tokens=8, temperature=0)
    assert reply.usage is not None and reply.usage.completion_tokens == 8
    asked = prompt_tokens(engines["random"].tokenizer, [Message("user", "What is 2+2?")])
    assert reply.usage.prompt_tokens == len(asked) and reply.usage.total_tokens == len(asked) + 8
    assert reply.choices[0].finish_reason == "length" and reply.choices[0].message.role == "assistant"


@pytest.mark.parametrize("model", ["tiny", "random"])
def test_a_stream_says_what_the_whole_says(client: openai.OpenAI, model: str):
    settings: Any = {"model": model, "messages": ASK, "max_tokens": 40, "seed": 5, "n": 2, "logprobs": True}
    whole = client.chat.completions.create(**settings)
    told, finish, scores = {0: "", 1: ""}, {}, {0: 0.0, 1: 0.0}
    usages = []
    for chunk in client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}):
        usages.append(chunk.usage)
        for choice in chunk.choices:
            delta: Any = choice.delta
            told[choice.index] += getattr(delta, "reasoning_content", None) or ""
            told[choice.index] += delta.content or ""
            finish[choice.index] = choice.finish_reason or finish.get(choice.index)
            if choice.logprobs and choice.logprobs.content:
                scores[choice.index] += sum(score.logprob for score in choice.logprobs.content)
    assert usages[:-1] == [None] * (len(usages) - 1) and usages[-1] == whole.usage
    for choice in whole.choices:
        message: Any = choice.message
        assert told[choice.index] == (getattr(message, "reasoning_content", None) or "") + message.content
        assert finish[choice.index] == choice.finish_reason
        assert choice.logprobs is not None and choice.logprobs.content is not None
        expected = sum(score.logprob for score in choice.logprobs.content)
        assert scores[choice.index] == pytest.approx(expected, abs=1e-3)


def test_log_probs_are_the_models(client: openai.OpenAI, engines: dict[str, Engine]):
    model, words = engines["random"].model, engines["random"].tokenizer
    prompt = words.encode("one and two")
    reply = client.completions.create(model="random", prompt=prompt, max_tokens=6, logprobs=3, echo=True, seed=1)
    scores = reply.choices[0].logprobs
    assert scores is not None and scores.token_logprobs and scores.tokens and scores.text_offset and scores.top_logprobs
    assert reply.choices[0].text.startswith("one and two")
    assert scores.token_logprobs[0] is None and len(scores.tokens) == len(prompt) + 6
    chat = client.chat.completions.create(model="random", messages=ASK, max_tokens=6, logprobs=True, top_logprobs=2)
    assert chat.choices[0].logprobs and chat.choices[0].logprobs.content
    for score in chat.choices[0].logprobs.content:
        assert len(score.top_logprobs) == 2 and score.top_logprobs[0].logprob >= score.top_logprobs[1].logprob
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    expected = [float(logits[place, token]) for place, token in enumerate(prompt[1:])]
    assert scores.token_logprobs[1 : len(prompt)] == pytest.approx(expected, abs=1e-4)


def test_a_prompt_is_scored_without_writing(client: openai.OpenAI):
    reply = client.completions.create(model="tiny", prompt="2+2=4", max_tokens=0, logprobs=1, echo=True)
    assert reply.choices[0].text == "2+2=4" and reply.usage and reply.usage.completion_tokens == 0
    assert reply.choices[0].logprobs and len(reply.choices[0].logprobs.tokens or []) == reply.usage.prompt_tokens


def test_the_same_seed_gives_the_same_text_and_another_another(client: openai.OpenAI):
    def text(seed: int) -> list[str]:
        made = client.completions.create(model="random", prompt="one", max_tokens=20, seed=seed, n=2)
        return [choice.text for choice in made.choices]

    first = text(3)
    assert text(3) == first and first[0] != first[1] and text(4) != first


def test_several_prompts_are_answered_in_order(client: openai.OpenAI):
    together = client.completions.create(model="tiny", prompt=["2+2=", "3+3="], max_tokens=5, n=2, temperature=0)
    assert [choice.index for choice in together.choices] == [0, 1, 2, 3]
    for number, prompt in enumerate(("2+2=", "3+3=")):
        alone = client.completions.create(model="tiny", prompt=prompt, max_tokens=5, temperature=0)
        assert {together.choices[2 * number + n].text for n in (0, 1)} == {alone.choices[0].text}


def test_nothing_of_a_stop_string_is_sent(client: openai.OpenAI):
    settings: Any = {"model": "random", "prompt": "one", "max_tokens": 40, "seed": 2}
    text = client.completions.create(**settings).choices[0].text
    stop = text[8:12]
    pieces = [chunk.choices[0] for chunk in client.completions.create(**settings, stop=[stop, "\0no"], stream=True)]
    assert "".join(piece.text for piece in pieces) == text[: text.index(stop)]
    assert pieces[-1].finish_reason == "stop"


def test_simultaneous_requests_get_what_each_gets_alone(client: openai.OpenAI):
    def text(number: int) -> str:
        made = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": f"{number}+1"}], max_tokens=16, seed=number
        )
        return made.choices[0].message.content or ""

    alone = [text(number) for number in range(12)]
    found = [""] * 12
    threads = [
        threading.Thread(target=lambda n=number: found.__setitem__(n, text(n)))  # type: ignore[misc]
        for number in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


def written(engine: Engine, tokens: list[int]) -> Any:
    """Makes an engine write these tokens, whatever it is asked."""

    def scripted(logits: torch.Tensor, *_: object) -> torch.Tensor:
        step = engine._rows[0].num_tokens
        forced = torch.full_like(logits, -30.0)
        forced[:, tokens[min(step, len(tokens) - 1)]] = 30.0
        return forced

    original = engine._draw
    return lambda logits, places: original(scripted(logits), places)


@pytest.mark.parametrize("stream", [False, True])
def test_a_thought_is_apart_from_the_answer(
    client: openai.OpenAI, engines: dict[str, Engine], monkeypatch: pytest.MonkeyPatch, stream: bool
):
    engine = engines["tiny"]
    words = engine.tokenizer
    text = "<think>\n2+2 is 4\n</think>\n\n<answer>4</answer>"
    tokens = [*words.encode(text, add_special_tokens=False), int(words.eos_token_id)]  # type: ignore[arg-type]
    monkeypatch.setattr(engine, "_draw", written(engine, tokens))
    made: Any = client.chat.completions.create(model="tiny", messages=ASK, stream=stream)
    messages = [chunk.choices[0].delta for chunk in made] if stream else [made.choices[0].message]
    assert "".join(getattr(m, "reasoning_content", None) or "" for m in messages) == "2+2 is 4"
    assert "".join(m.content or "" for m in messages) == "<answer>4</answer>"


def test_a_thought_that_the_template_opens(
    client: openai.OpenAI, engines: dict[str, Engine], monkeypatch: pytest.MonkeyPatch
):
    engine = engines["random"]
    template = engine.tokenizer.chat_template
    monkeypatch.setattr(engine.tokenizer, "chat_template", f"{template}{{{{ '<think>' }}}}")
    made: Any = client.chat.completions.create(model="random", messages=ASK, max_tokens=10, seed=1)
    assert made.choices[0].message.reasoning_content and made.choices[0].message.content == ""


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"stop": [""]}, "stop"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages.0"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"temprature": 1}, "temprature"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_a_wrong_field_is_named(url: str, change: dict[str, Any], field: str):
    answer = httpx.post(f"{url}/v1/chat/completions", json={"model": "tiny", "messages": ASK, **change})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith(field) and field in answer.json()["error"]["message"]
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_fields_that_ask_for_nothing_are_taken(url: str):
    harmless = {
        "user": "me",
        "presence_penalty": 0,
        "logit_bias": None,
        "tools": [],
        "response_format": {"type": "text"},
    }
    body = {"model": "tiny", "messages": ASK, "max_tokens": 1, **harmless}
    assert httpx.post(f"{url}/v1/chat/completions", json=body).status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"model":', b'{"messages": "x"}', b"\xff\xfe"])
def test_what_is_no_request_is_refused(url: str, body: bytes):
    for path in ("chat/completions", "completions"):
        answer = httpx.post(f"{url}/v1/{path}", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_half_a_character_is_refused(url: str):
    for path, name in (("chat/completions", "messages"), ("completions", "prompt")):
        asked = '[{"role": "user", "content": "\\ud800"}]' if name == "messages" else '"\\ud800"'
        body = f'{{"model": "tiny", "{name}": {asked}}}'
        answer = httpx.post(f"{url}/v1/{path}", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, answer.text


def test_an_unknown_model_is_not_found(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'") as caught:
        client.chat.completions.create(model="gpt", messages=ASK)
    assert caught.value.code == "model_not_found"


def test_a_prompt_that_is_too_long_is_refused_with_the_numbers(client: openai.OpenAI):
    long: Any = [{"role": "user", "content": "one and two " * 300}]
    with pytest.raises(openai.BadRequestError, match=r"the prompt has \d+ tokens, and random takes 256") as caught:
        client.chat.completions.create(model="random", messages=long)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="takes 256"):
        client.completions.create(model="random", prompt=[5] * 257, max_tokens=0, echo=True)
    with pytest.raises(openai.BadRequestError, match="does not have"):
        client.completions.create(model="random", prompt=[10**6])


def test_a_full_queue_says_when_to_come_again(url: str, engines: dict[str, Engine]):
    body = {"model": "random", "prompt": "one", "max_tokens": 200, "n": 8, "stream": True}
    with httpx.Client(timeout=30) as client:
        streams = []
        for _ in range(12):
            request = client.build_request("POST", f"{url}/v1/completions", json=body)
            streams.append(client.send(request, stream=True))
        refused = [stream for stream in streams if stream.status_code == 503]
        assert refused and all(int(stream.headers["retry-after"]) > 0 for stream in refused)
        for stream in streams:
            stream.close()
    wait_until_idle(engines["random"])


def wait_until_idle(engine: Engine) -> None:
    end = time.monotonic() + 10
    while engine.num_rows or engine.num_waiting:
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_is_no_longer_written_for(url: str, engines: dict[str, Engine], stream: bool):
    engine = engines["random"]
    wait_until_idle(engine)
    before = engine.num_written
    body = json.dumps({"model": "random", "prompt": "one", "max_tokens": 250, "n": 8, "stream": stream}).encode()
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), 10) as line:
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
        line.sendall(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        while engine.num_rows == 0:
            time.sleep(0.001)
    wait_until_idle(engine)
    assert engine.num_written - before < 8 * 220


def test_request_after_request_leaves_nothing_behind(url: str, engines: dict[str, Engine]):
    with httpx.Client() as client:
        for number in range(40):
            body = {"model": "tiny", "prompt": f"{number}+1=", "max_tokens": 2, "n": 1 + number % 3}
            assert client.post(f"{url}/v1/completions", json=body).status_code == 200
    engine = engines["tiny"]
    wait_until_idle(engine)
    assert all(layer.key_slots.numel() == 0 for layer in engine._store.layers)  # type: ignore[union-attr]
    assert not engine._rows and engine._reading is None and not engine._waiting


def test_without_the_token_nothing_is_answered(engines: dict[str, Engine]):
    token = "correct-horse-battery"
    engine = Engine(llama(), tokenizer(), name="m")
    with served(chat_app({"m": engine}, token=token)) as address:
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0).models.list()
        made = openai.OpenAI(base_url=f"{address}/v1", api_key=token, max_retries=0)
        assert made.chat.completions.create(model="m", messages=ASK, max_tokens=2).choices


def test_a_body_that_is_too_large_is_refused(url: str):
    body = {"model": "tiny", "prompt": "x" * (5 * 2**20)}
    answer = httpx.post(f"{url}/v1/completions", json=body)
    assert answer.status_code == 413 and "bytes" in answer.json()["error"]["message"]


def test_the_votes_of_answers_are_counted(url: str):
    texts = [r"\boxed{7}", "it is 7", "8", "no idea"]
    counted = httpx.post(f"{url}/votes", json={"texts": texts}).json()["votes"]
    assert [(vote["answer"], vote["share"]) for vote in counted] == [("7", 0.5), ("8", 0.25), ("", 0.25)]
    assert list(itertools.chain(*(vote["members"] for vote in counted))) == [0, 1, 2, 3]
    assert httpx.post(f"{url}/votes", json={"texts": []}).status_code == 400


def test_a_server_that_ends_ends_its_engines():
    engine = Engine(llama(), tokenizer(), name="m")
    with served(chat_app({"m": engine})):
        assert engine._thread.is_alive()
    assert not engine._thread.is_alive()
