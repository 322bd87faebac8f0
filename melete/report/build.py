"""The report of a run: a pure function of its files. Same files, same bytes.

melete report runs/r1-zero-tiny        # writes report.html and report.md there
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from melete.report import (
    again,
    answers,
    checkpoints,
    comparison,
    cost,
    curves,
    findings,
    kept,
    measured,
    opening,
    path,
    reflecting,
    replication,
    story,
    students,
    transcripts,
    verdicts,
    voting,
)
from melete.report.charts import Chart, draw, number
from melete.report.files import RunFiles, read_run
from melete.report.ranges import draw_ranges
from melete.runs.atomic import write_atomically

_TEMPLATES = Path(__file__).parent / "templates"
_CONTENTS_FROM = 9
"""Sections from which on a table of contents helps."""


class Section(NamedTuple):
    """A part of the report: its name is that of its two templates, and it is left out where `content` gives nothing."""

    name: str
    title: str
    content: Callable[[RunFiles], dict[str, Any] | None]


SECTIONS = (
    Section("replication", "The claims, over several seeds", replication.content),
    Section("path", "The path", path.content),
    Section("story", "What happened", story.content),
    Section("comparison", "The algorithms side by side", comparison.content),
    Section("checkpoints", "The checkpoints", checkpoints.content),
    Section("answers", "One question, answered by every checkpoint", answers.content),
    Section("transcripts", "The same problems, before and after", transcripts.content),
    Section("group", "How one step teaches", transcripts.group),
    Section("curves", "Curves", curves.content),
    Section("voting", "Asking several times and voting", voting.content),
    Section("reflecting", "Does it reflect?", reflecting.content),
    Section("measured", "All checkpoints", measured.content),
    Section("control", "The control", measured.control),
    Section("kept", "What was kept, and who judged", kept.content),
    Section("students", "The students", students.content),
    Section("cost", "What it cost", cost.content),
    Section("verdicts", "The claims", verdicts.content),
    Section("findings", "Health", findings.content),
    Section("again", "Do it again", again.content),
    Section("glossary", "Words", again.glossary),
)


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
    sections = []
    for section in SECTIONS:
        found = section.content(files)
        if found is not None:
            sections.append({"name": section.name, "title": found.get("title", section.title), "it": found})
    return {
        "opening": opening.content(files),
        "sections": sections,
        "with_contents": len(sections) >= _CONTENTS_FROM and any(s["name"] == "checkpoints" for s in sections),
    }


def _environment(*, html: bool) -> jinja2.Environment:
    environment = ImmutableSandboxedEnvironment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": number, "legend": _legend}
    environment.filters |= {"fence": _fence, "inline": _inline, "sentence": _sentence}
    environment.globals |= {"draw": draw, "draw_ranges": draw_ranges}
    return environment


def _legend(chart: Chart) -> list[tuple[int, str]]:
    """Names of the lines; a single line needs none."""
    return [(series.colour, series.name) for series in chart.series] if len(chart.series) > 1 else []


def _sentence(text: str) -> str:
    """With a full stop at the end."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _fence(text: str) -> str:
    """Text as a Markdown code block that it cannot close: its fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in "".join(c if c == "`" else " " for c in text).split()), default=0)
    fence = "`" * max(longest + 1, 3)
    return f"{fence}text\n{text}\n{fence}"


def _inline(text: object) -> str:
    """Text inside a Markdown line or table cell: nothing in it is markup."""
    escaped = "".join(f"\\{c}" if c in r"\`*_[]|#~" else c for c in " ".join(str(text).split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
