"""The report of a run: a pure function of its files. Same files, same bytes.

melete report runs/r1-zero-tiny        # writes report.html and report.md there
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2

from melete.evaluation.transcripts import RULE
from melete.report import story
from melete.report.charts import Chart, draw, number
from melete.report.comparison import comparisons
from melete.report.curves import STORY_CURVES, majority_chart, stage_charts
from melete.report.files import Row, RunFiles, read_run
from melete.report.transcripts import one_group, segments
from melete.runs.atomic import write_atomically

_TEMPLATES = Path(__file__).parent / "templates"
_NUM_MARKDOWN_POINTS = 6


def build_report(run_dir: str | Path) -> None:
    """Writes `report.html` (self-contained, no scripts) and `report.md` from the other files of the run.

    Raises `RunError` when the directory holds no run or a file cannot be read or written.
    """
    run_dir = Path(run_dir)
    content = report_content(read_run(run_dir))
    write_atomically(run_dir / "report.html", _environment(html=True).get_template("report.html.j2").render(content))
    write_atomically(run_dir / "report.md", _environment(html=False).get_template("report.md.j2").render(content))


def report_content(files: RunFiles) -> dict[str, Any]:
    """Everything that the templates place, and nothing that is not in the files."""
    summary, evaluations = files.summary, files.evaluations()
    base, final = (evaluations[0], evaluations[-1]) if evaluations else ({}, {})
    control = summary.get("control") or {}
    return {
        "name": summary.get("run") or files.recipe.get("name", "run"),
        "description": files.recipe.get("description", ""),
        "finished": bool(summary),
        "summary": summary,
        "cards": story.cards(evaluations),
        "trained": [text for stage in files.stages() if (text := story.what_was_trained(files, stage))],
        "could": story.what_the_base_could_do(base) if base.get("pass@1") is not None else [],
        "changed": story.what_changed(base, final) if len(evaluations) > 1 else [],
        "transcripts": [_transcript(entry) for entry in summary.get("transcripts", [])],
        "transcript_rule": RULE,
        "group": one_group(files.rollouts),
        "stages": [_stage(files, name) for name in files.stages()],
        "comparisons": comparisons(files),
        "majority": majority_chart(evaluations),
        "majority_rows": _majority_rows(evaluations),
        "reflection": story.reflection_verdict(base, final) if len(evaluations) > 1 else "",
        "reflection_words": _reflection_words(base, final),
        "evaluations": evaluations,
        "table": story.table(evaluations),
        "control": story.control_verdict(control),
        "control_evaluations": control.get("evaluations", []),
        "control_table": story.table(control.get("evaluations", [])),
        "recipe": json.dumps(files.recipe, indent=2, sort_keys=True, ensure_ascii=False),
    }


def _stage(files: RunFiles, name: str) -> dict[str, Any]:
    charts, details = stage_charts(files, name)
    entry = next((s for s in files.summary.get("stages", []) if s["name"] == name), {})
    return {"name": name, "charts": charts, "details": details, "points": _points(files.steps(name)), **_timing(entry)}


def _timing(entry: Row) -> dict[str, Any]:
    return {"seconds": entry.get("seconds"), "kind": entry.get("kind", "")}


def _points(rows: list[Row]) -> dict[str, Any]:
    """A few rows for the Markdown report, which has no curves."""
    if not rows:
        return {"steps": [], "rows": []}
    last = len(rows) - 1
    indices = sorted({round(i * last / (_NUM_MARKDOWN_POINTS - 1)) for i in range(_NUM_MARKDOWN_POINTS)})
    shown = [rows[i] for i in indices]
    keys = [(key, curve.share) for curve in STORY_CURVES for key, _ in curve.metrics]
    cells = [
        (key, [number(row[key], share) if row.get(key) is not None else "–" for row in shown])
        for key, share in keys
        if any(row.get(key) is not None for row in shown)
    ]
    return {"steps": [row["step"] for row in shown], "rows": cells}


def _transcript(entry: Row) -> dict[str, Any]:
    sides = {side: {**entry[side], "segments": segments(entry[side]["text"])} for side in ("before", "after")}
    return {**entry, **sides}


def _majority_rows(evaluations: list[Row]) -> dict[str, Any]:
    voted = [e for e in evaluations if e.get("majority")]
    ks = sorted({int(k) for e in voted for k in e["majority"]})
    rows = [
        (e["label"], [number(e["majority"][str(k)][0], share=True) if str(k) in e["majority"] else "–" for k in ks])
        for e in voted
    ]
    return {"ks": ks, "rows": rows}


def _reflection_words(base: Row, final: Row) -> list[tuple[str, str, str]]:
    before, after = base.get("reflection_words", {}), final.get("reflection_words", {})
    words = sorted({*before, *after}, key=lambda word: (-max(before.get(word, 0), after.get(word, 0)), word))
    return [(word, number(before.get(word, 0.0)), number(after.get(word, 0.0))) for word in words]


def _environment(*, html: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": number, "legend": _legend}
    environment.filters |= {"fence": _fence, "inline": _inline}
    environment.globals["draw"] = draw
    return environment


def _legend(chart: Chart) -> list[tuple[int, str]]:
    """Names of the lines; a single line needs none."""
    return [(series.colour, series.name) for series in chart.series] if len(chart.series) > 1 else []


def _fence(text: str) -> str:
    """Text as a Markdown code block that it cannot close: its fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in "".join(c if c == "`" else " " for c in text).split()), default=0)
    fence = "`" * max(longest + 1, 3)
    return f"{fence}text\n{text}\n{fence}"


def _inline(text: object) -> str:
    """Text inside a Markdown line or table cell: nothing in it is markup."""
    escaped = "".join(f"\\{c}" if c in r"\`*_[]|#~" else c for c in " ".join(str(text).split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
