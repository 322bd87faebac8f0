"""Rows of steps as the tables of results.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

SIDES = {"melete": "Melete", "trl": "TRL", "trl_batching": "TRL, continuous batching"}
Row = Mapping[str, Any]


@dataclass
class Case:
    """A model and a workload, with the counted steps of each side."""

    model: str
    workload: str
    num_prompts: int
    group_size: int
    threads: int
    commit: str
    steps: dict[str, dict[int, Row]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.model} | {self.workload} | {self.num_prompts} x {self.group_size} | {self.threads}"

    def ratio(self, value: Callable[[Row], float], over: str, under: str = "melete") -> float | None:
        """The median over rounds of how many times the value of `over` is that of `under`; None without a round."""
        tops, bottoms = self.steps.get(over, {}), self.steps.get(under, {})
        found = [value(tops[number]) / value(bottoms[number]) for number in sorted(tops.keys() & bottoms.keys())]
        return median(found) if found else None

    def middle(self, side: str, value: Callable[[Row], float]) -> float:
        return median(value(row) for row in self.steps[side].values())

    def peak(self, side: str) -> float:
        """The most memory of all steps, in MiB."""
        return max(row["peak_mb"] for row in self.steps[side].values())


def of(name: str) -> Callable[[Row], float]:
    return lambda row: row[name]


def per_token(row: Row) -> float:
    return row["step_seconds"] / row["completion_tokens"]


def cases_of(rows: Iterable[Row]) -> list[Case]:
    """The cases in the order of their first rows; the steps that came first on each side are left out."""
    found: dict[tuple[Any, ...], Case] = {}
    for row in rows:
        key = tuple(row[name] for name in ("model", "workload", "num_prompts", "group_size", "threads_given"))
        case = found.setdefault(key, Case(*key, commit=row["commit"]))
        if "failed" in row:
            case.failed[row["side"]] = row["failed"]
        elif row.get("is_warm"):
            case.steps.setdefault(row["side"], {})[row["step"]] = row
    return [case for case in found.values() if case.steps.get("melete")]


def rendered(rows: Sequence[Row], facts: Mapping[str, str]) -> str:
    """The page: facts of the machine, ratios, seconds, lengths."""
    cases = cases_of(rows)
    parts = [
        "\n".join(f"- {name}: {value}" for name, value in facts.items()),
        "## How many times as long TRL takes\n\n" + _ratios(cases),
        "## Seconds, medians of steps\n\n" + _seconds(cases),
        "## Lengths of completions\n\n" + _lengths(cases),
    ]
    return "\n\n".join(parts) + "\n"


def _ratios(cases: Sequence[Case]) -> str:
    head = [
        *(
            "model",
            "workload",
            "rows",
            "threads",
            "rounds",
            "step",
            "step, per token",
            "step, CPU time",
            "rollout",
            "update",
        ),
        *("Melete's peak memory, share of TRL's", "Melete's step / floor", "step, continuous batching", "commit"),
    ]
    lines = []
    for case in cases:
        memory = case.peak("melete") / case.peak("trl") if "trl" in case.steps else None
        above = case.ratio(of("step_seconds"), "melete", "floor")
        batching = case.ratio(of("step_seconds"), "trl_batching")
        lines.append(
            [
                *(case.title.split(" | ")),
                str(len(case.steps["melete"])),
                _times(case.ratio(of("step_seconds"), "trl")),
                _times(case.ratio(per_token, "trl")),
                _times(case.ratio(of("cpu_seconds"), "trl")),
                _times(case.ratio(of("rollout_seconds"), "trl")),
                _times(case.ratio(of("update_seconds"), "trl")),
                "" if memory is None else f"{memory:.0%}",
                _times(above),
                _times(batching) or case.failed.get("trl_batching", ""),
                case.commit,
            ]
        )
    return _table(head, lines)


def _seconds(cases: Sequence[Case]) -> str:
    head = [
        *("model", "workload", "rows", "threads", "", "rollout s", "update s", "step s", "CPU s", "completion tokens"),
        *("tokens/s", "peak MiB", "MiB when loaded"),
    ]
    lines = []
    for case in cases:
        for side in (*SIDES, "floor"):
            if side not in case.steps:
                continue
            times = [f"{case.middle(side, of(f'{part}_seconds')):.2f}" for part in ("rollout", "update", "step", "cpu")]
            named = [*case.title.split(" | "), SIDES.get(side, "floor"), *times]
            if side == "floor":
                operations = case.middle(side, of("operations"))
                lines.append([*named, f"{operations / 1e9:,.0f} GFLOP", "", "", ""])
                continue
            tokens = case.middle(side, of("completion_tokens"))
            speed = case.middle(side, lambda row: 1 / per_token(row))
            peak = case.peak(side)
            held = next(iter(case.steps[side].values())).get("loaded_mb", 0.0)
            lines.append([*named, f"{tokens:,.0f}", f"{speed:,.0f}", f"{peak:,.0f}", f"{held:,.0f}"])
        lines += [[*case.title.split(" | "), SIDES.get(side, side), why] for side, why in case.failed.items()]
    return _table(head, lines)


def _lengths(cases: Sequence[Case]) -> str:
    head = ["model", "workload", "rows", "threads", "", "mean", "least", "a quarter", "half", "three quarters", "most"]
    lines = []
    for case in cases:
        for side in SIDES:
            rows = case.steps.get(side, {}).values()
            if not rows:
                continue
            mean = fmean(length for row in rows for length in row["lengths"])
            columns = zip(*(row["length_quantiles"] for row in rows), strict=True)
            quantiles = [f"{fmean(column):.0f}" for column in columns]
            lines.append([*case.title.split(" | "), SIDES[side], f"{mean:.0f}", *quantiles])
    return _table(head, lines)


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    padded = [[*line, *[""] * (len(head) - len(line))] for line in lines]
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in (head, rule, *padded))
