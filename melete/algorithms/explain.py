"""The tables in words: `melete algorithms`, `melete explain` and docs/algorithms.md are all made here."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from melete.algorithms import metrics, notes
from melete.algorithms.entries import (
    DISTILLATION,
    KL_ESTIMATOR,
    NEEDS,
    POLICY,
    PREFERENCE,
    REWARD_MODEL,
    Entry,
    overview,
    policy_entry,
)
from melete.algorithms.preference import PREFERENCE_ALGORITHMS, PreferenceAlgorithm, PreferenceSettings
from melete.algorithms.row import Algorithm
from melete.algorithms.settings import AlgorithmSettings
from melete.algorithms.table import ALGORITHMS
from melete.errors import RecipeError
from melete.suggest import did_you_mean

PACKAGE = Path(__file__).parents[1]
WIDTH = 100
_NEEDS_IN_WORDS: Mapping[str, str] = {
    "old": "the learner's log-probs at the start of the update",
    "ref": "the log-probs of a reference model",
    "teacher": "the log-probs of a teacher with the same tokenizer",
    "values": "the values of a critic",
    "step rewards": "a reward for each step",
    "step ends": "the last token of each step",
}


def explanation(name: str) -> str:
    """Formula, note, settings, needs, paper, code and metrics of the entry `name`, for the terminal.

    Raises `RecipeError` naming the nearest when there is none.
    """
    known = {entry.name: entry for entry in overview()}
    if name not in known:
        raise RecipeError(f"no algorithm, loss or estimator {name}", remedy=did_you_mean(name, known))
    entry = known[name]
    parts = [
        f"{entry.name} ({entry.family})",
        _indented(entry.formula.split(";  ")),
        _wrapped(entry.note.replace("`", "")),
    ]
    if entry.family == KL_ESTIMATOR:
        value, in_loss, in_reward = (text.replace("**", "") for text in notes.KL_GRADIENTS[name])
        gradients = [f"value: {value}", f"gradient in the loss: {in_loss}", f"gradient in the reward: {in_reward}"]
        parts.append(_indented(gradients))
    if entry.settings:
        rows = [(s.name, shown(s.value), f"{s.meaning} ({s.source})") for s in entry.settings]
        parts.append("settings\n" + _columns(rows))
    parts.append("needs\n" + _indented([_need_in_words(entry, need) for need in entry.needs] or ["nothing else"]))
    if entry.paper:
        parts.append("paper\n" + _indented([entry.paper]))
    parts.append("code\n" + _columns([(role, f.__name__, place(f)) for role, f in entry.functions.items()]))
    if entry.metrics:
        parts.append(
            "metrics\n" + _columns([(metric, metrics.METRICS[metric].replace("`", "")) for metric in entry.metrics])
        )
    return "\n\n".join(parts)


def _need_in_words(entry: Entry, need: str) -> str:
    words = _NEEDS_IN_WORDS.get(need, need)
    row = ALGORITHMS.get(entry.name)
    is_optional = row is not None and need in {NEEDS[stream] for stream in row.optional}
    return f"{words}, unless the update is the only one of its rollouts" if is_optional else words


def place(function: Callable[..., Any]) -> str:
    """File and line of a function, from the directory that holds the package."""
    plain = inspect.unwrap(function)  # a checker of types may have wrapped it
    path = Path(inspect.getsourcefile(plain) or "").resolve().relative_to(PACKAGE.parent)
    return f"{path.as_posix()}:{inspect.getsourcelines(plain)[1]}"


def shown(value: Any) -> str:
    """A value as a recipe would have it; `none` where there is none."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def listing() -> str:
    """A table per family: name, one line, needs."""
    blocks: list[str] = []
    for family, entries in _families().items():
        rows = [(entry.name, entry.line, ", ".join(entry.needs)) for entry in entries]
        blocks.append("\n".join([family, *((start + last).rstrip() for start, last in _aligned(rows))]))
    legend = "old, ref, teacher: log-probs of the learner before the update, of the reference, of a teacher"
    return "\n\n".join([*blocks, f"{legend}\nmelete explain NAME tells more of one"])


def _families() -> dict[str, list[Entry]]:
    families: dict[str, list[Entry]] = {}
    for entry in overview():
        families.setdefault(entry.family, []).append(entry)
    return families


def _indented(lines: Iterable[str]) -> str:
    return "\n".join(_wrapped(line, first="  ", rest="    ") for line in lines)


def _aligned(rows: list[tuple[str, ...]]) -> list[tuple[str, str]]:
    """All columns but the last as one, of equal width, and the last."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return [
        ("  " + "".join(f"{cell:<{width}}  " for cell, width in zip(row[:-1], widths, strict=True)), row[-1])
        for row in rows
    ]


def _columns(rows: list[tuple[str, ...]]) -> str:
    """Aligned columns, the last one wrapped under itself."""
    return "\n".join(
        _wrapped(text, max(WIDTH, len(start) + 40), first=start, rest=" " * len(start))
        for start, text in _aligned(rows)
    )


def _wrapped(text: str, width: int = WIDTH, *, first: str = "", rest: str = "") -> str:
    return textwrap.fill(text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


def page() -> str:
    """docs/algorithms.md."""
    families = _families()
    sections = [
        ("The table", [_policy_table(), notes.HOW_TO_READ]),
        ("Settings", [notes.SETTINGS, _documented_settings(AlgorithmSettings, ALGORITHMS.values())]),
        ("Advantages", [notes.CREDIT]),
        ("Aggregation", [notes.AGGREGATION]),
        ("KL estimators", [notes.KL, _kl_table(), notes.KL_REMARKS]),
        ("The rows", [notes.NOTATION, *map(_described, families[POLICY])]),
        ("A loss of your own", [notes.OWN_LOSS]),
        (
            "Preferences",
            [
                notes.PREFERENCES,
                _plain_table(families[PREFERENCE]),
                _documented_settings(PreferenceSettings, PREFERENCE_ALGORITHMS.values()),
                *map(_described, families[PREFERENCE]),
            ],
        ),
        ("Reward models", [notes.REWARD_MODELS, *map(_described, families[REWARD_MODEL])]),
        ("Distillation", [notes.DISTILLATION, *map(_described, families[DISTILLATION])]),
        ("Metrics", [notes.METRICS_INTRODUCTION, *_metric_tables()]),
    ]
    parts = [notes.INTRODUCTION]
    for title, body in sections:
        parts += [f"## {title}", *body]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _policy_table() -> str:
    rows: list[list[str]] = []
    for row in ALGORITHMS.values():
        estimator, where = row.kl
        anchor = "none" if where is None else f"{estimator} in the {where}, {shown(row.kl_coef)}"
        needs = ", ".join(policy_entry(row).needs) or "nothing"
        rows.append([f"`{name}`" for name in (row.name, row.credit.__name__, row.loss.__name__, row.aggregation)])
        rows[-1] += [anchor, needs]
    return _table(["name", "credit", "loss of a token", "aggregation", "KL", "needs"], rows)


def _plain_table(entries: Iterable[Entry]) -> str:
    rows = [[f"`{entry.name}`", entry.line, ", ".join(entry.needs)] for entry in entries]
    return _table(["name", "what it is", "needs"], rows)


def _documented_settings(owner: Any, rows: Iterable[Algorithm | PreferenceAlgorithm]) -> str:
    known, lines = list(rows), list[list[str]]()
    for entry in fields(owner):
        if entry.name == "name":
            continue
        others: dict[str, list[str]] = {}
        for row in known:
            if row.defaults.get(entry.name, entry.default) != entry.default:
                others.setdefault(shown(row.defaults[entry.name]), []).append(f"`{row.name}`")
        differing = "; ".join(f"{value}: {', '.join(names)}" for value, names in others.items())
        meaning, source = entry.metadata["meaning"], entry.metadata["source"]
        lines.append([f"`{entry.name}`", shown(entry.default), differing, meaning, source])
    return _table(["setting", "default", "rows", "meaning", "source"], lines)


def _kl_table() -> str:
    values = {"k1": "−log u", "k2": "(log u)² / 2", "k3": "u − 1 − log u"}
    values |= {"k3_straight_through": "sg(k3) + k2 − sg(k2)", "exact": "Σ_v π(v) log(π(v) / ref(v))"}
    rows = [[f"`{name}`", values[name], *cells] for name, cells in notes.KL_GRADIENTS.items()]
    return _table(["name", "value", "as an estimate of KL(π ‖ ref)", "in the loss", "in the reward"], rows)


def _described(entry: Entry) -> str:
    """Name, formula, note and paper of one entry."""
    formula = "\n".join(entry.formula.split(";  "))
    paper = re.sub(r"\((\d{4}\.\d{5})\)", r"([\1](https://arxiv.org/abs/\1))", entry.paper)
    body = f"```text\n{formula}\n```\n{_wrapped(entry.note, 120)}"
    chosen = ", ".join(f"`{s.name}` {shown(s.value)}" for s in entry.settings)
    if entry.family in (REWARD_MODEL, DISTILLATION) and chosen:
        body += f"\n\nSettings: {chosen}."
    return f"### {entry.name}\n{body}\n\nSource: {paper}."


def _metric_tables() -> list[str]:
    families = {
        "Rollouts": metrics.ROLLOUTS,
        "Updates": {**metrics.OPTIMIZER, **metrics.UPDATES},
        "Tokens": metrics.TOKENS,
        "Critic": metrics.CRITIC,
        "Preferences": metrics.PREFERENCES,
        "Reward models": metrics.REWARD_MODELS,
        "Imitation and pre-training": metrics.IMITATION,
        "Evaluations": metrics.EVALUATIONS,
    }
    tables: list[str] = []
    for title, entries in families.items():
        rows = [[f"`{name}`", *metrics.halves(text)] for name, text in entries.items()]
        tables.append(f"### {title}\n{_table(['metric', 'what it is', 'in a healthy run'], rows)}")
    return tables


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [f"| {' | '.join(line)} |" for line in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])
