"""The claims, and whether this run supports them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from melete.report.exam import exam_of
from melete.report.files import Row, RunFiles

VERDICTS: Mapping[str, str] = {
    "holds": "good", "does not hold": "bad", "not sure": "warn", "not measured": "none",
}  # fmt: skip


def content(files: RunFiles) -> dict[str, Any] | None:
    """The claims of a run with an exam."""
    if exam_of(files) is None:
        return None
    from melete.claims import claims_of_run

    found = claims_of_run({**files.summary, "stages": files.entries})
    return {"claims": ordered(found), "counts": counts(found)} if found else None


def ordered(claims: Sequence[Row]) -> list[dict[str, Any]]:
    """Those that were measured first, each with the style of its verdict."""
    found = [{**claim, "style": VERDICTS.get(claim["verdict"], "none")} for claim in claims]
    return sorted(found, key=lambda claim: claim["verdict"] == "not measured")


def counts(claims: Sequence[Row]) -> list[tuple[int, str, str]]:
    """How many claims have each verdict."""
    numbers = {verdict: sum(claim["verdict"] == verdict for claim in claims) for verdict in VERDICTS}
    return [(number_of, verdict, VERDICTS[verdict]) for verdict, number_of in numbers.items() if number_of]
