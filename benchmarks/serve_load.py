"""Many clients that stream from `melete serve` at once: errors, tokens per second, waiting, and memory over time.

    python benchmarks/serve_load.py --model tiny --clients 64 --minutes 5

Starts a server of its own. Some clients hang up in the middle, as people do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx2 as httpx


@dataclass
class Tally:
    """What all clients together have seen."""

    outcomes: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    first_token_seconds: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)


async def ask_on(client: httpx.AsyncClient, model: str, number: int, end: float, most: int, tally: Tally) -> None:
    """One client: question after question until the time is over."""
    draw = random.Random(number)
    while time.monotonic() < end:
        question = f"What is {draw.randint(1, 99)} + {draw.randint(1, 99)}?"
        body = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": draw.randint(most // 4, most),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        hangs_up = draw.random() < 0.05
        begin = time.monotonic()
        try:
            async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
                if reply.status_code == 200:
                    outcome = await listen(reply, tally, begin, hangs_up=hangs_up)
                else:
                    outcome = f"status {reply.status_code}"
                    await asyncio.sleep(float(reply.headers.get("retry-after", 1)))
        except httpx.HTTPError as error:
            outcome = type(error).__name__
        tally.outcomes[outcome] += 1


async def listen(reply: httpx.Response, tally: Tally, begin: float, *, hangs_up: bool) -> str:
    """Reads a stream to its end, or to its first words; tells how it went."""
    is_first = True
    async for line in reply.aiter_lines():
        if not line.startswith("data: "):
            continue
        if line == "data: [DONE]":
            return "answered"
        chunk = json.loads(line[6:])
        if "error" in chunk:
            return "error in the stream"
        if is_first and chunk["choices"]:
            tally.first_token_seconds.append(time.monotonic() - begin)
            is_first = False
        if chunk.get("usage"):
            tally.tokens += chunk["usage"]["completion_tokens"]
        if hangs_up:
            return "hung up on"
    return "cut off"


def resident_mib(pid: int) -> float:
    """Memory of a process, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


async def watch_memory(pid: int, end: float, tally: Tally) -> None:
    """Notes the server's memory ten times."""
    wait = max(1.0, (end - time.monotonic()) / 10)
    while time.monotonic() < end:
        tally.memory.append(resident_mib(pid))
        await asyncio.sleep(wait)


async def measure(url: str, pid: int, options: argparse.Namespace) -> Tally:
    """Lets the clients loose."""
    tally = Tally()
    end = time.monotonic() + 60 * options.minutes
    limits = httpx.Limits(max_connections=options.clients)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        name = (await client.get("/v1/models")).json()["data"][0]["id"]
        clients = (ask_on(client, name, number, end, options.tokens, tally) for number in range(options.clients))
        await asyncio.gather(watch_memory(pid, end, tally), *clients)
        await asyncio.sleep(1)
        state = (await client.get("/health")).json()["models"][name]
        tally.outcomes["rows left behind"] += state["rows"] + state["waiting"]
    tally.memory.append(resident_mib(pid))
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="longest answer")
    options = parser.parse_args()
    command = [sys.executable, "-m", "melete.cli", "serve", options.model, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        url = next(word for line in server.stdout if "serving at" in line for word in line.split() if "http" in word)
        begin = time.monotonic()
        tally = asyncio.run(measure(url, server.pid, options))
        seconds = time.monotonic() - begin
    finally:
        server.terminate()
        status = server.wait(30)
    first = sorted(tally.first_token_seconds) or [float("nan")]
    print(f"{options.clients} clients, {seconds:.0f} s on {options.model}: {dict(tally.outcomes)}")
    print(
        f"{tally.tokens / seconds:.0f} tokens/s; first words after {statistics.median(first):.2f} s (median), ", end=""
    )
    print(f"{first[int(0.95 * (len(first) - 1))]:.2f} s (95 of 100)")
    print("memory of the server, MiB:", " ".join(f"{mib:.0f}" for mib in tally.memory), f"; it ended with {status}")
    wanted = {"answered", "hung up on"}
    return int(status != 0 or any(count for name, count in tally.outcomes.items() if name not in wanted))


if __name__ == "__main__":
    sys.exit(main())
