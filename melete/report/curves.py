"""The curves of every stage that trained, and the words under each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from melete.report.charts import Chart, Series, number, smoothed
from melete.report.files import Row, RunFiles

_NUM_MARKDOWN_POINTS = 6
_MANY_STAGES = 3
_NUM_COLOURS = 7


class Curve(NamedTuple):
    """A chart over the steps of a stage: the metrics it draws, by name, and the words for people."""

    title: str
    metrics: Sequence[tuple[str, str]]
    caption: str
    share: bool = False


REWARD = Curve(
    "Reward",
    (("reward", "reward"),),
    "What the model was paid for, and the parts it is made of, averaged over a step's attempts.",
)
STORY_CURVES = (
    Curve(
        "Thinking before answering",
        (("share_thinking", "share_thinking"),),
        "Share of attempts that begin with a thought.",
        share=True,
    ),
    Curve("Length", (("length_mean", "length_mean"),), "Mean number of tokens in an attempt."),
    Curve(
        "Words of reflection",
        (("reflection_per_1k", "reflection_per_1k"),),
        "“Wait”, “check”, “wrong” and seven more, per 1,000 tokens. More words are not more thought by themselves.",
    ),
    Curve(
        "Entropy",
        (("entropy", "entropy"),),
        "How undecided the model is about its next token. Near zero it always writes the same, and stops exploring.",
    ),
    Curve(
        "Groups that teach nothing",
        (("dead_groups", "dead_groups"), ("all_correct_groups", "all_correct_groups")),
        "Groups whose attempts all earned the same; in some of them all are right, so the problem has become too easy.",
        share=True,
    ),
    Curve("Distance from the start", (("kl", "kl"),), "KL divergence per token from the model it started as."),
)
DETAIL_CURVES = (
    Curve("Size of a step", (("approx_kl", "approx_kl"),), "KL divergence per token, before and after it."),
    Curve("Loss", (("loss", "loss"),), "What the optimizer lowers. In reinforcement learning it need not fall."),
    Curve("Gradient norm", (("grad_norm", "grad_norm"),), "Before clipping."),
    Curve("Clipped tokens", (("clip_fraction", "clip_fraction"),), "Share of tokens whose ratio was cut.", share=True),
    Curve("Truncated", (("truncated_share", "truncated_share"),), "Attempts cut at the length limit.", share=True),
    Curve("Learning rate", (("lr", "lr"),), "Set by the schedule."),
    Curve("Sampler and learner", (("sampler_mismatch", "sampler_mismatch"),), "How far their log-probs differ."),
)


def content(files: RunFiles) -> dict[str, Any] | None:
    """Each stage that logged something, with its curves; of many, those of reinforcement learning come first."""
    stages = [stage for name in files.stages() if (stage := _stage(files, name))["charts"] or stage["details"]]
    if not stages:
        return None
    many = len(stages) >= _MANY_STAGES
    told = [stage for stage in stages if (stage["is_practice"] if many else stage["charts"])]
    return {"stages": told, "rest": [stage for stage in stages if stage not in told], "many": many}


def _stage(files: RunFiles, name: str) -> dict[str, Any]:
    rows = files.steps(name)
    reward = REWARD._replace(metrics=[("reward", "reward"), *_parts(rows)])
    curves = [reward, *STORY_CURVES]
    charts = [chart for curve in curves if (chart := _curve_chart(curve, rows))]
    held_out = _pass_chart(files.evaluation_rows(name))
    return {
        "name": name,
        "label": files.label(name),
        "charts": ([held_out] if held_out else []) + charts,
        "details": [chart for curve in DETAIL_CURVES if (chart := _curve_chart(curve, rows))],
        "points": _points(rows, curves),
        "is_practice": held_out is not None or any("reward" in row for row in rows),
    }


def _parts(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """The parts of the reward, accuracy and format first; a single part is the reward itself."""
    names = {key.removeprefix("reward/") for row in rows for key in row if key.startswith("reward/")}
    if len(names) < 2:
        return []
    first = [name for name in ("accuracy", "format") if name in names]
    return [(f"reward/{name}", name) for name in [*first, *sorted(names - {*first})]][: _NUM_COLOURS - 1]


def _points(rows: Sequence[Row], curves: Sequence[Curve]) -> dict[str, Any]:
    """A few rows for the Markdown report, which has no curves."""
    if not rows:
        return {"steps": [], "rows": []}
    last = len(rows) - 1
    indices = sorted({round(i * last / (_NUM_MARKDOWN_POINTS - 1)) for i in range(_NUM_MARKDOWN_POINTS)})
    shown = [rows[i] for i in indices]
    keys = [(key, curve.share) for curve in curves for key, _ in curve.metrics]
    cells = [
        (key, [number(row[key], share) if row.get(key) is not None else "–" for row in shown])
        for key, share in keys
        if any(row.get(key) is not None for row in shown)
    ]
    return {"steps": [row["step"] for row in shown], "rows": cells}


def _pass_chart(rows: Sequence[Row]) -> Chart | None:
    known = [row for row in rows if row.get("pass@1") is not None]
    full = [row for row in known if "label" in row]
    shown = full if len(full) > 1 or len(known) == len(full) else known
    if not shown:
        return None
    quick = [(float(row["step"]), row["pass@1"]) for row in known] if len(known) > len(shown) else []
    series = Series(
        name="pass@1",
        points=[(float(row["step"]), row["pass@1"]) for row in shown],
        band=[(float(row["step"]), row["pass@1/low"], row["pass@1/high"]) for row in shown if "pass@1/low" in row],
        faint=quick,
        dots=True,
    )
    caption = "Share of attempts at held-out problems that are right; the band is the 95 % interval."
    caption += " The pale line is from small evaluations in between." if quick else ""
    return Chart("Right on held-out problems", caption, [series], share=True)


def _curve_chart(curve: Curve, rows: Sequence[Row]) -> Chart | None:
    series = []
    for colour, (key, name) in enumerate(curve.metrics, start=1):
        points = [(float(row["step"]), float(row[key])) for row in rows if row.get(key) is not None]
        if len(points) > 1:
            noisy = len(points) > 12
            series.append(
                Series(name, smoothed(points) if noisy else points, faint=points if noisy else (), colour=colour)
            )
    return Chart(curve.title, curve.caption, series, share=curve.share) if series else None
