"""A run directory with made-up but realistic numbers, for looking at a report without training anything."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

HOSTILE = (
    "<think>3+5=8\n<script>alert('thought')</script></think><answer>8<img src=x onerror=alert(1)></answer>"
    "```\n# heading"
)


def write_run(path: Path, *, num_steps: int = 120, finished: bool = True, control: bool = True) -> Path:
    """The files of a run whose pass@1 goes from 0.38 to 0.86."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "recipe.json").write_text(json.dumps(_recipe(num_steps)))
    rows = [_step(step, num_steps) for step in range(num_steps)]
    marks = ((0, "base", 0.38), (num_steps // 2, "midway", 0.71), (num_steps, "final", 0.86))
    evaluations = [_evaluation(label, step, mean, i / 2) for i, (step, label, mean) in enumerate(marks)]
    for step in range(0, num_steps, 10):
        rows.append(
            {"stage": "rl", "step": step, "kind": "quick_evaluation", "pass@1": 0.38 + 0.48 * _rise(step, num_steps)}
        )
    rows += [
        {"stage": "rl", "kind": "evaluation"} | {k: v for k, v in e.items() if not isinstance(v, dict)}
        for e in evaluations
    ]
    _write_rows(path / "metrics.jsonl", sorted(rows, key=lambda row: (row["step"], "kind" in row)))
    _write_rows(path / "rollouts.jsonl", _group(num_steps // 2))
    if finished:
        summary = _summary(evaluations, num_steps)
        if control:
            flat = [_evaluation(label, step, 0.38, 0.0) for step, label, _ in (marks[0], marks[2])]
            summary["control"] = {"name": "random rewards", "evaluations": flat}
        (path / "summary.json").write_text(json.dumps(summary))
    return path


def _rise(step: int, num_steps: int) -> float:
    return max(1 / (1 + math.exp(-8 * (step / num_steps - 0.4))) - 0.04, 0.0)


def _step(step: int, num_steps: int) -> dict[str, Any]:
    source, rise = random.Random(step), _rise(step, num_steps)
    accuracy = min(max(0.38 + 0.5 * rise + source.gauss(0, 0.05), 0), 1)
    form = min(0.9 + 0.1 * rise + source.gauss(0, 0.01), 1.0)
    return {
        "stage": "rl",
        "step": step,
        "reward": accuracy + 0.2 * form,
        "reward/accuracy": accuracy,
        "reward/format": form,
        "share_thinking": min(0.24 + 0.76 * rise + abs(source.gauss(0, 0.03)), 1),
        "length_mean": 21 + 34 * rise + source.gauss(0, 2),
        "truncated_share": 0.01,
        "dead_groups": 0.3 + 0.2 * rise + source.gauss(0, 0.06),
        "all_correct_groups": max(0.5 * rise, 0),
        "entropy": 0.7 - 0.45 * rise + source.gauss(0, 0.02),
        "kl": 0.02 * rise,
        "grad_norm": 1 + source.random(),
        "clip_fraction": 0.004 * source.random(),
        "loss": source.gauss(0, 0.01),
        "lr": 2e-4,
        "reflection_per_1k": max(3 + 2 * rise + source.gauss(0, 0.5), 0),
        "grader_failures": 0,
        "sampler_mismatch": 1e-6,
    }


def _evaluation(label: str, step: int, mean: float, share: float) -> dict[str, Any]:
    def interval(centre: float) -> list[float]:
        return [centre, max(centre - 0.03, 0), min(centre + 0.03, 1)]

    gain = (1 - mean) * 0.75
    passes = {str(k): interval(mean + gain * (1 - 1 / k)) for k in (1, 2, 4, 8, 16)}
    votes = {str(k): interval(mean + 0.7 * gain * (1 - 1 / k) ** 2) for k in (1, 2, 4, 8, 16)}
    flat = {}
    for name, table in (("pass", passes), ("maj", votes)):
        for k, (centre, low, high) in table.items():
            flat |= {f"{name}@{k}": centre, f"{name}@{k}/low": low, f"{name}@{k}/high": high}
    return {
        "label": label,
        "step": step,
        **flat,
        "pass": passes,
        "majority": votes,
        "num_problems": 200,
        "num_samples": 16,
        "share_thinking": 0.24 + 0.75 * share,
        "accuracy_with_thought": 0.74 + 0.14 * share,
        "accuracy_without_thought": 0.26 if share < 1 else None,
        "format_share": 0.93 + 0.06 * share,
        "length_mean": 21.4 + 34 * share,
        "length_p95": 48.0 + 30 * share,
        "truncated_share": 0.012,
        "reflection_per_1k": 3.1 - 1.2 * share,
        "reflection_share": 0.05,
        "reflection_long_per_1k": 0.0,
        "reflection_words": {"wait": 2.0 - share, "check": 1.1 - 0.2 * share},
        "grader_failures": 0,
        "num_tokens": 70_000,
    }


def _group(step: int) -> list[dict[str, Any]]:
    texts = [("<think>\n9+4=13\n13-7=6\n</think>\n<answer>6</answer>", 1.2), ("<answer>8</answer>", 0.2)] * 4
    return [
        {
            "stage": "rl",
            "step": step,
            "problem_id": "p/1",
            "prompt": "9+4-7=?",
            "gold": "6",
            "sibling": i,
            "text": text,
            "reward": reward,
            "reward_parts": {},
            "finish_reason": "stop",
            "num_tokens": 20,
        }
        for i, (text, reward) in enumerate(texts)
    ]


def _recipe(num_steps: int) -> dict[str, Any]:
    stage = {
        "name": "rl",
        "kind": "rl",
        "model": "tiny",
        "task": {"name": "arithmetic_chain", "min_terms": 5},
        "algorithm": "grpo",
        "num_steps": num_steps,
        "prompts_per_step": 16,
        "group_size": 8,
        "rewards": {"accuracy": 1.0, "format": 0.2},
        "lr": 2e-4,
    }
    return {"name": "r1-zero-tiny", "description": "Reasoning from rewards alone.", "seed": 0, "stage": [stage]}


def _summary(evaluations: list[dict[str, Any]], num_steps: int) -> dict[str, Any]:
    def side(text: str, right: bool, num_correct: int) -> dict[str, Any]:
        parts = {"accuracy": float(right), "format": 1.0}
        return {
            "text": text,
            "reward": right + 0.2,
            "reward_parts": parts,
            "finish_reason": "stop",
            "num_tokens": 40,
            "num_correct": num_correct,
            "num_samples": 16,
        }

    steps = "17+5=22 22-9=13 13+14=27 27-3=25 Wait,_27-3=24 24+6=30 Check: 30-6=24 24+3=27 27-14=13 13+9=22 22-5=17"
    long = f"<think>\n{steps.replace(' ', chr(10)).replace('_', ' ')}\nYes, 17.\n</think>\n<answer>30</answer>"
    return {
        "run": "r1-zero-tiny",
        "command": "melete run r1-zero-tiny --set seed=0",
        "seed": 0,
        "started": "2026-01-05 09:30",
        "learnt": "pass@1 rose from 0.38 to 0.86; the model now thinks in 99 % of attempts (24 % before).",
        "seconds": 251.3,
        "versions": {"melete": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.7"},
        "hardware": {"processor": "x86_64, 2 cores", "memory": "8 GiB", "device": "cpu"},
        "stages": [{"name": "rl", "kind": "rl", "seconds": 240.0, "model": "models/rl", "evaluations": evaluations}],
        "transcripts": [
            {
                "kind": "learnt",
                "problem_id": "p/1",
                "prompt": "17+5-9+14-3+6=?",
                "gold": "30",
                "before": side("<answer>26</answer>", False, 4),
                "after": side(long, True, 15),
            },
            {
                "kind": "still wrong",
                "problem_id": "p/2",
                "prompt": "Work out 8-5+11.",
                "gold": "14",
                "before": side("<answer>13</answer>", False, 2),
                "after": side("<think>\n8-5=3\n3+11=13\n</think>\n<answer>13</answer>", False, 7),
            },
            {
                "kind": "lost",
                "problem_id": "p/3",
                "prompt": "<script>alert('prompt')</script>",
                "gold": "8",
                "before": side("", False, 0),
                "after": side(HOSTILE, True, 1),
            },
        ],
    }


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    from melete.report import build_report

    build_report(write_run(Path(sys.argv[1])))
