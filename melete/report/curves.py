"""Which curves a report shows, and the words under each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from melete.report.charts import Chart, Series, smoothed
from melete.report.files import Row, RunFiles


class Curve(NamedTuple):
    """A chart over the steps of a stage: the metrics it draws, by name, and the words for people."""

    title: str
    metrics: Sequence[tuple[str, str]]
    caption: str
    share: bool = False


STORY_CURVES = (
    Curve(
        "Reward",
        (("reward", "reward"), ("reward/accuracy", "accuracy"), ("reward/format", "format")),
        "What the model was paid for, and the parts it is made of, averaged over a step's attempts.",
    ),
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
)
DETAIL_CURVES = (
    Curve("Distance from the reference", (("kl", "kl"),), "KL divergence per token from the model it started as."),
    Curve("Loss", (("loss", "loss"),), "What the optimizer lowers. In reinforcement learning it need not fall."),
    Curve("Gradient norm", (("grad_norm", "grad_norm"),), "Before clipping."),
    Curve("Clipped tokens", (("clip_fraction", "clip_fraction"),), "Share of tokens whose ratio was cut.", share=True),
    Curve("Truncated", (("truncated_share", "truncated_share"),), "Attempts cut at the length limit.", share=True),
    Curve("Learning rate", (("lr", "lr"),), "Set by the schedule."),
    Curve("Sampler and learner", (("sampler_mismatch", "sampler_mismatch"),), "How far their log-probs differ."),
)


def stage_charts(files: RunFiles, stage: str) -> tuple[list[Chart], list[Chart]]:
    """The charts that tell the story of a stage, and those for a closer look; only what was logged is drawn."""
    rows = files.steps(stage)
    story = [chart for curve in STORY_CURVES if (chart := _curve_chart(curve, rows))]
    details = [chart for curve in DETAIL_CURVES if (chart := _curve_chart(curve, rows))]
    held_out = _pass_chart(files.evaluation_rows(stage))
    return ([held_out] if held_out else []) + story, details


def majority_chart(evaluations: Sequence[Row]) -> Chart | None:
    """maj@k against k for the first, the middle and the last evaluation."""
    voted = [e for e in evaluations if len(e.get("majority", {})) > 1]
    chosen = [voted[i] for i in sorted({0, len(voted) // 2, len(voted) - 1})] if voted else []
    series = []
    for colour, evaluation in enumerate(chosen, start=1):
        table = sorted((int(k), values) for k, values in evaluation["majority"].items())
        series.append(
            Series(
                name=str(evaluation["label"]),
                points=[(k, values[0]) for k, values in table],
                band=[(k, values[1], values[2]) for k, values in table],
                dots=True,
                colour=colour,
            )
        )
    if not series:
        return None
    ks = sorted({x for one in series for x, _ in one.points})
    caption = "Share of held-out problems whose most frequent answer among k attempts is right (maj@k)."
    return Chart("Majority vote", caption, series, x_label="attempts that vote (k)", share=True, log2=True, x_ticks=ks)


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
