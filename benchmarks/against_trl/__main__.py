"""How long one step of GRPO takes Melete and TRL on the same model, prompts and settings, in turns on this machine.

python -m benchmarks.against_trl [--quick] [--workloads A,B,C] [--models llama-2.4m,tiny,smollm2-135m] [--write]

A: prompts of 10 tokens, completions of about 45 that end by themselves, at most 64. B: prompts of 150, completions of
about 100, strongly spread, at most 256. C: as B with 100 tokens each. fp32, temperature 1, one update, AdamW, no KL.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.against_trl.sides import ROOT, rounds
from benchmarks.against_trl.table import rendered
from benchmarks.against_trl.workloads import MODELS, RANDOM_LLAMA, WORKLOADS, Spec, Workload, prepare, workload_for
from melete.errors import ModelError

RESULTS = ROOT / "benchmarks" / "results.md"
HEAD = """# One step of GRPO, Melete and TRL

`make bench` writes this page. Both sides load the same directory, see the same prompts token for token, sample with
temperature 1 and no cuts, and make one update with AdamW, in fp32 and without KL, each in a process of its own. They
take turns; the first step of each is not counted, and a ratio is the median over rounds. TRL runs without bf16 and
without gradient checkpointing, and writes all completions in one batch; its threads spin while they wait, which is
faster for it where nothing else runs. A rollout is writing and grading. The floor is the same matrix products by
themselves, by the library that suits the model: every linear layer, each different prompt once, and nothing else.
CPU time is that of all threads; where a step takes longer than CPU time / threads, something else was running.

A: prompts of 10 tokens, completions of about 45 that end by themselves, at most 64. B: prompts of 150, completions of
about 100, strongly spread, at most 256. C: as B with 100 tokens each. `smollm2-135m` has two prompts, of at most 128.

"""


def arguments_of(said: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against_trl", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--workloads", default="A,B,C", help="some of A,B,C")
    parser.add_argument("--models", default=",".join(MODELS), help="names of models, or their directories")
    parser.add_argument("--group-sizes", default="", help="such as 8,16; else 16 on A and 8 on B and C")
    parser.add_argument("--pairs", type=int, default=3, help="rounds that are counted; one less with a large model")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="of each side")
    parser.add_argument("--trl-microbatches", type=int, default=1, help="parts of TRL's update")
    parser.add_argument("--no-batching", action="store_true", help="leave TRL's continuous batching out")
    parser.add_argument("--quick", action="store_true", help=f"A with {RANDOM_LLAMA}, two rounds")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results.md")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "against_trl", help="where models and rows are kept"
    )
    arguments = parser.parse_args(said)
    if arguments.quick:
        arguments.workloads, arguments.models, arguments.pairs = "A", RANDOM_LLAMA, 2
        arguments.no_batching = True
    if unknown := sorted(set(arguments.workloads.split(",")) - set(WORKLOADS)):
        parser.error(f"no workload {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    return arguments


def cases(arguments: argparse.Namespace) -> Iterator[tuple[str, Workload]]:
    """What is to be measured, small models first."""
    sizes = [int(size) for size in arguments.group_sizes.split(",") if size] or [0]
    for model in arguments.models.split(","):
        for name in arguments.workloads.split(","):
            for size in sizes:
                yield model, workload_for(name, model, size)


def measured(model: str, workload: Workload, arguments: argparse.Namespace, commit: str) -> Iterator[dict[str, Any]]:
    """The rows of one case. Raises `ModelError` for a model that is not there."""
    place = prepare(model, workload, arguments.work)
    spec = Spec(str(place.resolve()), workload, arguments.threads)
    tuned = Spec(spec.place, workload, arguments.threads, microbatches=arguments.trl_microbatches)
    specs = {"melete": spec, "trl": tuned}
    if not arguments.no_batching:
        specs["trl_batching"] = Spec(spec.place, workload, arguments.threads, continuous_batching=True)
    named = {
        "model": Path(model).name,
        "workload": workload.name,
        "num_prompts": workload.num_prompts,
        "group_size": workload.group_size,
        "threads_given": arguments.threads,
        "commit": commit,
    }
    hashes: dict[int, str] = {}
    loaded: dict[str, float] = {}
    pairs = arguments.pairs if model != "smollm2-135m" else max(1, arguments.pairs - 1)
    for row in rounds(specs | {"floor": spec}, pairs, arguments.work):
        side, number = row["side"], row["step"]
        loaded.setdefault(side, row.get("loaded_mb", 0.0))
        seen = row.get("prompts_hash")
        if seen is not None and hashes.setdefault(number, seen) != seen:
            raise SystemExit(f"{side} saw other prompts in step {number} than the side before it")
        _say(side, row)
        yield {**named, **row, "loaded_mb": loaded[side]}


def _say(side: str, row: dict[str, Any]) -> None:
    if "failed" in row:
        print(f"  {side}: {row['failed']}", flush=True)
    elif row["step"] >= 0:
        times = " ".join(f"{part} {row[f'{part}_seconds']:.2f} s" for part in ("rollout", "update", "step"))
        tokens = f", {row['completion_tokens']:,} tokens, peak {row['peak_mb']:,.0f} MiB" if "peak_mb" in row else ""
        print(f"  {side}: {times}{tokens}{'' if row['is_warm'] else ' (not counted)'}", flush=True)


def commit_of() -> str:
    """The commit that is checked out, with a + where files differ from it."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}{'+' if changed.strip() else ''}"


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def facts() -> dict[str, str]:
    """What the figures depend on beside the code."""
    names = ("torch", "transformers", "trl", "accelerate", "numpy")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "machine": f"{processor()}, {os.cpu_count()} cores, {memory:.0f} GiB",
        "versions": f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in names),
    }


def main(said: Sequence[str]) -> None:
    arguments = arguments_of(said)
    arguments.work.mkdir(parents=True, exist_ok=True)
    kept = arguments.work / "steps.jsonl"  # one run's rows take the place of older ones of the same case
    commit = commit_of()
    for model, workload in cases(arguments):
        print(f"{model}, {workload.name}, {workload.num_prompts} x {workload.group_size}", flush=True)
        try:
            rows = list(measured(model, workload, arguments, commit))
        except ModelError as error:
            print(f"  left out: {error}")
            continue
        older = [row for row in read(kept) if case_key(row) != case_key(rows[0])]
        kept.write_text("".join(json.dumps(row) + "\n" for row in [*older, *rows]))
    page = HEAD + rendered(read(kept), facts())
    if arguments.write:
        RESULTS.write_text(page)
    print("\n" + page)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def case_key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("model", "workload", "num_prompts", "group_size", "threads_given"))


if __name__ == "__main__":
    main(sys.argv[1:])
