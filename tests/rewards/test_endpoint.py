"""The chat model behind HTTP: a real server on 127.0.0.1 does what servers do on bad days."""

from __future__ import annotations

import gzip
import json
import logging
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from rewards.fault_server import (
    Act,
    Asked,
    FaultServer,
    completion,
    cut_off,
    drip,
    endless,
    error,
    hang_up,
    ok,
    send,
    slow,
)

from melete.errors import RecipeError
from melete.rewards.endpoint import Endpoint, EndpointSettings
from melete.rewards.errors import GradingError
from melete.rewards.reply_cache import ReplyCache
from melete.types import Message

KEY = "sk-very-secret-0123456789"
QUICK: dict[str, Any] = {"first_wait": 0.01, "longest_wait": 0.5, "timeout": 5.0, "num_tries": 3}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def endpoint(url: str, **settings: Any) -> Endpoint:
    return Endpoint(EndpointSettings(url, "judge", key_variable="JUDGE_KEY", **{**QUICK, **settings}))


def user(text: str) -> list[Message]:
    return [Message("user", text)]


def ask(model: Endpoint, *texts: str, call: int = 0) -> list[str | GradingError]:
    return model.replies([(user(text), call) for text in texts])


def first_then(*acts: Act):
    """The acts in turn; the last one again and again."""
    return lambda asked: acts[min(asked.number, len(acts) - 1)]


def reason(found: str | GradingError) -> str:
    assert isinstance(found, GradingError), found
    return str(found)


def test_a_request_is_what_openai_compatible_servers_expect() -> None:
    with FaultServer(lambda asked: ok("fine")) as server, endpoint(server.url, extra={"seed": 7}) as model:
        assert model.reply([Message("system", "s"), Message("user", "u")]) == "fine"
    (asked,) = server.asked
    assert asked.path == "/v1/chat/completions"
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.body == {
        "model": "judge",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        "temperature": 0.0,
        "max_tokens": 2048,
        "seed": 7,
    }


def test_without_a_key_variable_no_key_is_sent() -> None:
    with FaultServer(lambda asked: ok("fine")) as server, Endpoint(EndpointSettings(server.url, "m")) as model:
        assert model.reply(user("u")) == "fine"
    assert "authorization" not in server.asked[0].headers


def test_replies_come_in_the_order_of_the_questions() -> None:
    def behave(asked: Asked) -> Act:
        return slow(0.05 if asked.text == "0" else 0.0, ok(f"to {asked.text}"))

    with FaultServer(behave) as server, endpoint(server.url) as model:
        assert ask(model, *map(str, range(20))) == [f"to {n}" for n in range(20)]
        assert ask(model) == []


@pytest.mark.parametrize(
    "fault",
    [error(500), error(503), error(429), error(408), send(200, b"{not json"), cut_off, hang_up],
    ids=["500", "503", "429", "408", "malformed", "cut off", "hung up"],
)
def test_a_passing_fault_is_tried_again(fault: Act) -> None:
    with FaultServer(first_then(fault, fault, ok("at last"))) as server, endpoint(server.url) as model:
        assert ask(model, "q") == ["at last"]
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (error(500), "HTTP 500"),
        (error(429), "HTTP 429"),
        (send(200, b"{not json"), "not JSON"),
        (cut_off, "RemoteProtocolError"),
        (hang_up, "RemoteProtocolError"),
    ],
    ids=["500", "429", "malformed", "cut off", "hung up"],
)
def test_a_lasting_fault_is_a_failure_with_its_reason(fault: Act, says: str) -> None:
    with FaultServer(lambda asked: fault) as server, endpoint(server.url) as model:
        (found,) = ask(model, "q")
    assert says in reason(found) and "tried 3 times" in reason(found)
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (error(400), "HTTP 400"),
        (error(401), "HTTP 401"),
        (error(404), "HTTP 404"),
        (error(422), "HTTP 422"),
        (send(200, b"{}"), "no chat completion"),
        (send(200, b"[]"), "no chat completion"),
        (send(200, b"null"), "no chat completion"),
        (send(200, b'{"choices": []}'), "no chat completion"),
        (send(200, b'{"choices": [{"message": "hi"}]}'), "no chat completion"),
        (send(200, b'{"error": {"message": "overloaded"}}'), "overloaded"),
        (ok(None), "no text"),
        (ok(["parts"]), "no text"),
        (ok("half a rep", finish="length"), "'length'"),
        (ok("", finish="content_filter"), "'content_filter'"),
    ],
)
def test_what_another_try_cannot_mend_is_not_tried_again(fault: Act, says: str) -> None:
    with FaultServer(lambda asked: fault) as server, endpoint(server.url) as model:
        (found,) = ask(model, "q")
    assert says in reason(found)
    assert len(server.asked) == 1


def test_one_bad_conversation_fails_alone() -> None:
    with (
        FaultServer(lambda asked: error(400) if asked.text == "bad" else ok("fine")) as server,
        endpoint(server.url) as model,
    ):
        found = ask(model, "a", "bad", "b", "half a pair \ud800")
    assert [isinstance(one, GradingError) for one in found] == [False, True, False, False]


def test_a_slow_server_is_not_waited_for_longer_than_the_timeout() -> None:
    with FaultServer(lambda asked: slow(20, ok("late"))) as server, endpoint(server.url, timeout=0.2) as model:
        began = time.monotonic()
        (found,) = ask(model, "q")
    assert time.monotonic() - began < 15
    assert "no reply within 0.2 s" in reason(found) and len(server.asked) == 3


def test_a_server_that_sends_byte_by_byte_is_not_waited_for_either() -> None:
    with FaultServer(lambda asked: drip(0.05)) as server, endpoint(server.url, timeout=0.3, num_tries=1) as model:
        began = time.monotonic()
        (found,) = ask(model, "q")
    assert time.monotonic() - began < 20  # the whole response takes 50
    assert "no reply within 0.3 s" in reason(found)


def test_retry_after_is_honoured_by_all_conversations() -> None:
    times: list[float] = []

    def behave(asked: Asked) -> Act:
        times.append(time.monotonic())
        return error(429, headers={"Retry-After": "1"}) if asked.number == 0 else ok("fine")

    with FaultServer(behave) as server, endpoint(server.url, concurrency=1, longest_wait=3.0) as model:
        assert ask(model, "a", "b") == ["fine", "fine"]
    assert times[1] - times[0] >= 0.95
    assert len(times) == 3


@pytest.mark.parametrize("value", ["3600", "Fri, 31 Dec 2999 23:59:59 GMT", "999999999999"])
def test_an_endpoint_that_asks_for_too_much_patience_is_given_up(value: str) -> None:
    with (
        FaultServer(lambda asked: error(429, headers={"Retry-After": value})) as server,
        endpoint(server.url) as model,
    ):
        began = time.monotonic()
        (found,) = ask(model, "q")
    assert time.monotonic() - began < 60 and len(server.asked) == 1
    assert "patience" in reason(found)


@pytest.mark.parametrize("value", ["soon", "-5", "", "١", "NaN"])
def test_a_retry_after_that_cannot_be_read_is_ignored(value: str) -> None:
    # latin-1 is what headers are sent in, so the Arabic digit is sent as bytes
    headers = {"Retry-After": value.encode().decode("latin-1")}
    with (
        FaultServer(first_then(error(503, headers=headers), ok("fine"))) as server,
        endpoint(server.url) as model,
    ):
        assert ask(model, "q") == ["fine"]


def test_connection_refused() -> None:
    with socket.socket() as taken:  # bound, so that nobody else listens there, but not listening
        taken.bind(("127.0.0.1", 0))
        with endpoint(f"http://127.0.0.1:{taken.getsockname()[1]}/v1") as model:
            (found,) = ask(model, "q")
    assert "ConnectError" in reason(found)


def test_a_huge_body_is_not_read_to_its_end() -> None:
    with FaultServer(lambda asked: endless) as server, endpoint(server.url, max_bytes=300_000) as model:
        began = time.monotonic()
        (found,) = ask(model, "q")
    assert "longer than 300000 bytes" in reason(found)
    assert time.monotonic() - began < 60 and len(server.asked) == 1


def test_a_compressed_body_is_never_unpacked() -> None:
    bomb = gzip.compress(json.dumps(completion("x" * 10_000_000)).encode())
    with (
        FaultServer(lambda asked: send(200, bomb, {"Content-Encoding": "gzip"})) as server,
        endpoint(server.url) as model,
    ):
        (found,) = ask(model, "q")
    assert "not JSON" in reason(found)
    assert server.asked[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int) -> None:
    with FaultServer(lambda asked: ok("stolen")) as thief:
        where = {"Location": f"{thief.url}/chat/completions"}
        with (
            FaultServer(lambda asked: error(status, headers=where)) as server,
            endpoint(server.url) as model,
        ):
            (found,) = ask(model, "q")
    assert "redirects are not followed" in reason(found)
    assert thief.asked == [] and len(server.asked) == 1


def test_a_thousand_items_never_exceed_the_bound_even_from_several_threads() -> None:
    with FaultServer(lambda asked: slow(0.002, ok(asked.text))) as server, endpoint(server.url, concurrency=6) as model:
        texts = [[f"{part}/{n}" for n in range(250)] for part in range(4)]
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(lambda part: ask(model, *part), texts))
    assert found == texts
    assert len(server.asked) == 1000
    assert 2 <= server.most_at_once <= 6


def test_a_server_that_dies_midway_leaves_reasons_and_nothing_hangs() -> None:
    def behave(asked: Asked) -> Act:
        if asked.number == 40:
            threading.Thread(target=server.kill).start()  # of its own: it waits until no request is in hand
        return slow(0.01, ok("fine"))

    with FaultServer(behave) as server, endpoint(server.url, concurrency=4) as model:
        began = time.monotonic()
        found = ask(model, *map(str, range(1000)))
    assert time.monotonic() - began < 30
    failed = [one for one in found if isinstance(one, GradingError)]
    assert 0 < len(failed) < 1000
    assert all(str(one) for one in failed)
    assert any("not asked, because the endpoint does not answer" in str(one) for one in failed)


def test_an_endpoint_that_comes_back_is_asked_again_after_a_rest() -> None:
    def behave(asked: Asked) -> Act:
        return error(500) if asked.text.startswith("early") else ok("fine")

    with FaultServer(behave) as server, endpoint(server.url, concurrency=4, rest=0.5) as model:
        found = [ask(model, f"early {n}")[0] for n in range(50)]  # one by one, as when rollouts come one by one
        assert all(isinstance(one, GradingError) for one in found)
        assert len(server.asked) == 4 * 3
        assert "not asked" in reason(ask(model, "at once")[0])
        time.sleep(0.6)
        assert ask(model, "later", "and more") == ["fine", "fine"]


def test_closing_ends_the_thread_and_asking_again_starts_a_new_one() -> None:
    before = set(threading.enumerate())  # a test before this one may still be ending its own

    def started() -> set[threading.Thread]:
        return {thread for thread in set(threading.enumerate()) - before if thread.name == "endpoint"}

    with FaultServer(lambda asked: ok("fine")) as server:
        model = endpoint(server.url)
        assert ask(model, "a") == ["fine"]
        assert len(started()) == 1
        model.close()
        model.close()
        assert not started()
        assert ask(model, "b") == ["fine"]
        model.close()


def test_a_forked_process_may_go_on_asking() -> None:
    with FaultServer(lambda asked: ok(asked.text)) as server, endpoint(server.url) as model:
        assert ask(model, "parent") == ["parent"]
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = 0 if ask(model, "child") == ["child"] else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert ask(model, "parent again") == ["parent again"]


def test_what_is_cached_is_not_asked_again(tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "replies.sqlite"
    with FaultServer(lambda asked: ok(f"reply {asked.number}")) as server:
        with endpoint(server.url, cache=cache) as model:
            first = ask(model, "a", "b", "a")
            assert first[0] == first[2] and len(server.asked) == 2
        with endpoint(server.url, cache=cache) as model:
            assert ask(model, "b", "a") == [first[1], first[0]]
            assert len(server.asked) == 2
            ask(model, "a", call=1)  # the same question, asked once more on purpose
            assert len(server.asked) == 3
        with endpoint(server.url, cache=cache, temperature=1.0) as model:
            ask(model, "a")
            assert len(server.asked) == 4


def test_failures_are_not_cached(tmp_path: Path) -> None:
    faults = first_then(error(400), ok("cut", finish="length"), ok("fine"))
    with FaultServer(faults) as server, endpoint(server.url, cache=tmp_path / "c") as model:
        assert [isinstance(ask(model, "q")[0], GradingError) for _ in range(2)] == [True, True]
        assert ask(model, "q") == ["fine"] == ask(model, "q")
    assert len(server.asked) == 3


@pytest.mark.parametrize("damage", [b"this is no database" * 100, b"", None], ids=["text", "empty", "pages"])
def test_a_corrupted_cache_is_set_aside_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes | None
) -> None:
    path = tmp_path / "replies"
    cache = ReplyCache(path)
    for n in range(500):
        cache.put(f"{n:064}", "reply " * 20)
    cache.close()
    whole = path.read_bytes()
    path.write_bytes(damage if damage is not None else whole[:4096] + os.urandom(len(whole) - 4096))
    assert cache.get("0" * 64) is None
    cache.put("new", "reply")
    assert cache.get("new") == "reply"
    is_damaged = damage != b""  # an empty file is an empty cache
    assert len([p for p in tmp_path.glob("replies.corrupt-*") if not p.name.endswith(("-wal", "-shm"))]) == is_damaged
    assert ("is corrupt: it was renamed" in caplog.text) == is_damaged


def test_a_cache_that_breaks_in_use_is_set_aside_by_one_of_those_who_use_it(tmp_path: Path) -> None:
    path = tmp_path / "replies"
    caches = [ReplyCache(path) for _ in range(4)]
    for n in range(2000):
        caches[n % 4].put(f"{n:064}", "reply " * 20)
    for cache in caches:
        cache.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + os.urandom(len(whole) - 100))
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda cache: cache.put("new", "reply"), caches))
    assert [cache.get("new") for cache in caches] == ["reply"] * 4
    assert len([p for p in tmp_path.glob("replies.corrupt-*") if not p.name.endswith(("-wal", "-shm"))]) == 1


def test_a_cache_that_cannot_be_written_fails_no_question(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with FaultServer(lambda asked: ok("fine")) as server, endpoint(server.url, cache=in_the_way / "c") as model:
        assert ask(model, "q") == ["fine"]
    assert "is not used" in caplog.text


WRITER = """
import sys
from pathlib import Path
from melete.rewards.reply_cache import ReplyCache
cache = ReplyCache(Path(sys.argv[1]))
for n in range(int(sys.argv[3])):
    cache.put(f"{sys.argv[2]}/{n}", f"reply {n}")
    print(n, flush=True)
"""


def test_several_processes_share_a_cache_and_a_killed_one_does_it_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "replies"

    def writer(name: str, count: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WRITER, str(path), name, str(count)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    others = [writer(name, 150) for name in ("a", "b")]
    victim = writer("victim", 10**9)
    assert victim.stdout is not None
    written = [int(victim.stdout.readline()) for _ in range(200)][-1]
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert all(len(other.communicate(timeout=60)[0].split()) == 150 and other.returncode == 0 for other in others)
    cache = ReplyCache(path)
    for name, count in (("a", 150), ("b", 150), ("victim", written + 1)):
        assert all(cache.get(f"{name}/{n}") == f"reply {n}" for n in range(count))
    cache.close()
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert list(tmp_path.glob("*.corrupt-*")) == []


def test_the_key_is_nowhere_to_be_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    def behave(asked: Asked) -> Act:
        given = asked.headers["authorization"]
        escaped = "".join(f"\\u{ord(letter):04x}" for letter in given)
        acts = {
            "error": error(401, f"wrong key: {given}"),
            "retried": error(500, given),
            "junk": send(200, given.encode()),
            "schema": send(200, json.dumps({"said": given}).encode()),
            "finish": ok("", finish=given),
            "reply": ok(f"your key is {given}"),
            "escaped": send(200, json.dumps(completion("@")).replace("@", escaped).encode()),
        }
        return acts[asked.text]

    cache = tmp_path / "replies"
    with FaultServer(behave) as server, endpoint(server.url, cache=cache) as model:
        kinds = ("error", "retried", "junk", "schema", "finish", "reply", "escaped")
        found = ask(model, *kinds)
        seen = [repr(model), repr(model.settings), repr(vars(model)), caplog.text, *map(repr, found), *map(str, found)]
        assert len(server.asked) >= len(kinds)
    assert all(KEY not in text for text in seen)
    assert sum("[key]" in str(one) for one in found) == len(kinds)
    files = list(tmp_path.iterdir())
    assert files and all(KEY.encode() not in file.read_bytes() for file in files)


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "naïve"])
def test_a_key_that_is_none_is_refused_without_being_shown(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("JUDGE_KEY", key)
    with pytest.raises(RecipeError, match="JUDGE_KEY") as caught:
        endpoint("http://127.0.0.1:1/v1")
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["", "host/v1", "ftp://host/v1", "http://user:secret@host/v1", "http://host/v1?key=secret", "http:///v1"]
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(RecipeError) as caught:
        EndpointSettings(url, "m")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [{"concurrency": 0}, {"num_tries": 0}, {"timeout": 0.0}, {"first_wait": 2.0, "longest_wait": 1.0}, {"rest": -1.0}],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        EndpointSettings("http://host/v1", "m", **settings)
