"""How the seconds of a GRPO step grow with its tokens and with the size of its groups: two plots.

    make cost    # about ten minutes; writes benchmarks/cost_of_a_step.svg and prints the figures

A random Llama of 2.4 million parameters. Left: prompts of 150 tokens, 8 completions each of about 100 tokens of at most
256, with more and more prompts. Right: a single prompt of 480 tokens with completions of 32, more and more of them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.against_trl.melete_step import Steps
from benchmarks.against_trl.workloads import RANDOM_LLAMA, WORKLOADS, Spec, Workload, prepare

PLOT = Path(__file__).with_name("cost_of_a_step.svg")
LONG = 20.0  # seconds, beside which what is only done once counts for little
Point = tuple[float, float]


def seconds_and_tokens(workload: Workload, directory: Path, threads: int) -> tuple[float, int]:
    """Of the faster of two steps after a first one, or of the first where it is a long one."""
    place = prepare(RANDOM_LLAMA, workload, directory)
    steps = Steps(Spec(str(place), workload, threads))
    rows = [steps.run(0)]
    if rows[0]["step_seconds"] < LONG:
        rows = [steps.run(number) for number in (1, 2)]
    best = min(rows, key=lambda row: row["step_seconds"] / row["completion_tokens"])
    return best["step_seconds"], best["completion_tokens"]


def by_tokens(directory: Path, threads: int, most: int) -> list[Point]:
    """(completion tokens, seconds) for about 2 k, 6 k, 20 k, 60 k and 200 k tokens."""
    found = []
    for wanted in (2_000, 6_000, 20_000, 60_000, 200_000):
        if wanted <= most:
            num_prompts = max(1, round(wanted / 8 / WORKLOADS["B"].mean_tokens))
            seconds, tokens = seconds_and_tokens(replace(WORKLOADS["B"], num_prompts=num_prompts), directory, threads)
            found.append((float(tokens), seconds))
            print(f"{tokens:>7,} tokens: {seconds:7.2f} s, {tokens / seconds:6,.0f} tokens/s", flush=True)
    return found


def by_group_size(directory: Path, threads: int) -> list[Point]:
    """(siblings, seconds) behind one prompt of 480 tokens."""
    found = []
    for size in (1, 2, 4, 8, 16, 32, 64):
        workload = Workload("G", 1, size, prompt_tokens=480, max_new_tokens=32, mean_tokens=32, equal_lengths=True)
        seconds, _ = seconds_and_tokens(workload, directory, threads)
        found.append((float(size), seconds))
        print(f"{size:>3} siblings: {seconds:7.3f} s, {seconds / size:6.3f} s each", flush=True)
    return found


def draw(tokens: Sequence[Point], siblings: Sequence[Point], path: Path) -> None:
    """Both plots with logarithmic axes, each beside the line of proportional cost."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "melete"
    from matplotlib import pyplot

    _, sides = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    labels = ("completion tokens of a step", "siblings behind a prompt of 480 tokens")
    for side, points, label in zip(sides, (tokens, siblings), labels, strict=True):
        x, y = zip(*points, strict=True)
        side.loglog(x, [y[0] * each / x[0] for each in x], "--", color="0.7", label="proportional")
        side.loglog(x, y, "o-", color="#2a6f97", label="measured")
        side.set(xlabel=label, ylabel="seconds of a step")
        side.legend(frameon=False)
    pyplot.savefig(path, metadata={"Date": None})


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--most", type=int, default=200_000, help="tokens of the largest step")
    parser.add_argument("--no-plot", action="store_true")
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)
    with tempfile.TemporaryDirectory() as directory:
        siblings = by_group_size(Path(directory), chosen.threads)
        tokens = by_tokens(Path(directory), chosen.threads, chosen.most)
    print(json.dumps({"tokens": tokens, "siblings": siblings}))
    if not chosen.no_plot:
        draw(tokens, siblings, PLOT)


if __name__ == "__main__":
    main()
