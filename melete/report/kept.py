"""What rejection sampling kept and why the rest was dropped; mixtures; how good judges and reward models are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from melete.report.charts import number
from melete.report.files import Row, RunFiles
from melete.report.measures import percent
from melete.report.transcripts import segments
from melete.report.words import count

REASONS: Mapping[str, str] = {
    "cut at the limit": "cut off at the length limit",
    "control tokens": "tokens in it that are not text",
    "not graded": "could not be graded",
    "no verdict": "no verdict from the judge",
    "long paragraph": "too long a paragraph",
    "code block": "code in the thought",
    "tidying broke it": "no longer right when tidied",
    "exact duplicate": "kept already, word for word",
    "near duplicate": "nearly the same as one that is kept",
    "enough of this prompt": "enough answers to this question",
    "enough rows": "enough examples without it",
}


def content(files: RunFiles) -> dict[str, Any] | None:
    """Stages that sift, mix, or learn to judge."""
    sifted = [_sifted(files, entry) for entry in files.entries if entry.get("dropped") is not None]
    mixed = [_mixed(files, entry) for entry in files.entries if entry.get("kind") == "mix" and entry.get("parts")]
    measured = [_measured(files, entry) for entry in files.entries if entry.get("held_out")]
    if not sifted and not mixed and not measured:
        return None
    return {"sifted": sifted, "mixed": mixed, "measured": measured}


def _sifted(files: RunFiles, entry: Row) -> dict[str, Any]:
    sampled = entry.get("num_sampled") or 0
    order = [*entry.get("filters", ()), *entry["dropped"]]  # JSON objects are in the order of the alphabet
    reasons = [(reason, num) for reason in dict.fromkeys(order) if (num := entry["dropped"].get(reason))]
    kept = entry.get("num_rows", 0)
    rows = [("kept", kept, "kept"), *((REASONS.get(reason, reason), num, "lost") for reason, num in reasons)]
    return {
        "name": files.label(entry["name"]),
        "by": files.label(files.settings(entry["name"]).get("model", "")),
        "says": f"{count(kept, 'answer')} of {number(sampled)} kept ({percent(entry.get('share_kept'))}).",
        "rows": [_bar(*row, num_sampled=sampled) for row in rows],
        "judge": _judge(files, entry),
        "examples": [_example(one) for one in entry.get("examples") or ()],
    }


def _bar(words: str, num: int, style: str, *, num_sampled: int) -> dict[str, Any]:
    share = num / num_sampled if num_sampled else 0.0
    return {"words": words, "num": number(num), "share": percent(share), "width": round(100 * share, 2), "style": style}


def _example(one: Row) -> dict[str, Any]:
    reason = one.get("reason") or ""
    return {
        "prompt": one["prompt"],
        "text": one["text"],
        "segments": segments(one["text"]),
        "kept": bool(one.get("kept")),
        "verdict": "kept" if one.get("kept") else f"dropped: {REASONS.get(reason, reason)}",
        "told": one.get("told") or "",
        "before": one.get("before") or "",
    }


def _judge(files: RunFiles, entry: Row) -> str:
    """How often a judge and a known answer say the same, and where they part."""
    found = entry.get("judge_agreement")
    if not found:
        return ""
    judge = files.label((files.settings(entry["name"]).get("judge") or {}).get("model", "The judge"))
    said = f"The judge ({judge}) decided here. Compared with a known answer it was right in"
    said += f" {percent(found['agreement'])} of {count(found['num'], 'case')}"
    if "only_judge_right" in found:
        said += f": it let {number(found['only_judge_right'])} wrong answers pass and turned"
        said += f" {number(found['only_rule_right'])} right ones away"
    return said + "."


def _mixed(files: RunFiles, entry: Row) -> dict[str, Any]:
    total = entry.get("num_rows", 0)
    rows = [_bar(files.label(part["name"]), part["num_rows"], "data", num_sampled=total) for part in entry["parts"]]
    return {"name": files.label(entry["name"]), "rows": rows, "num_rows": number(total)}


def _measured(files: RunFiles, entry: Row) -> dict[str, str]:
    found, settings = entry["held_out"], files.settings(entry["name"])
    right = found.get("pair_accuracy", found.get("label_accuracy"))
    return {
        "name": files.label(entry["name"]),
        "data": files.label(settings.get("data", "")),
        "what": "pairs" if "pair_accuracy" in found else "answers",
        "right": percent(right),
        "num": number(found["num_rows"]) if found.get("num_rows") is not None else "–",
        "calibration": number(found["calibration_error"]) if found.get("calibration_error") is not None else "–",
        "length": number(found["length_correlation"]) if found.get("length_correlation") is not None else "–",
    }
