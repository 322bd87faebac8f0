"""The drawing of a pipeline: one row for each stage, and rails that lead from what it reads to what it makes.

A rail begins at the row of an artefact and ends at the last stage that reads it. Rows may have any height, since what
stands beside them wraps on a narrow screen; the lines below the dot are stretched by the browser.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

PITCH, DOT, TURN = 16, 20, 7  # px between rails, from the top of a row to its dot, and the radius of a bend


@dataclass(frozen=True, slots=True)
class Node:
    """A stage, or a model that none made: `makes` is "model", "reward model", "data" or "nothing"."""

    name: str
    makes: str
    reads: Sequence[str]
    continues: str = ""
    """The model that is trained on, of those that it reads."""


@dataclass(frozen=True, slots=True)
class Rail:
    """A piece of a line in a row, in the colour of what it carries."""

    lane: int
    makes: str


@dataclass(frozen=True, slots=True)
class RailRow:
    """`through` passes by, `into` ends in the dot, `goes_on` when something below reads it."""

    node: Node
    lane: int
    through: Sequence[Rail]
    into: Sequence[Rail]
    goes_on: bool


def lay(nodes: Sequence[Node]) -> list[RailRow]:
    """A lane for each artefact from its row to its last reader, which takes the lane over where it can.

    >>> nodes = [Node("tiny", "model", []), Node("rows", "data", []), Node("sft", "model", ["tiny", "rows"], "tiny")]
    >>> rows = lay(nodes)
    >>> [(row.node.name, row.lane, [rail.lane for rail in row.into]) for row in rows]
    [('tiny', 0, []), ('rows', 1, []), ('sft', 0, [0, 1])]
    """
    last_reader = {name: i for i, node in enumerate(nodes) for name in node.reads}
    lanes: list[Node | None] = []
    rows = []
    for i, node in enumerate(nodes):
        read = [(lane, held) for lane, held in enumerate(lanes) if held and held.name in node.reads]
        into = [Rail(lane, held.makes) for lane, held in read]
        ending = {held.name: lane for lane, held in read if last_reader[held.name] == i}
        for lane in ending.values():
            lanes[lane] = None
        lane = _lane(node, ending, lanes)
        through = [Rail(at, held.makes) for at, held in enumerate(lanes) if held]
        goes_on = node.name in last_reader
        if goes_on:
            lanes += [None] * (lane + 1 - len(lanes))
            lanes[lane] = node
        rows.append(RailRow(node, lane, through, into, goes_on))
    return rows


def _lane(node: Node, ending: Mapping[str, int], lanes: Sequence[Node | None]) -> int:
    """That of the model that it goes on from, if nobody else needs it; else of what is used up; else a free one."""
    if node.continues in ending:
        return ending[node.continues]
    if ending:
        return min(ending.values())
    return next((lane for lane, held in enumerate(lanes) if held is None), len(lanes))


def width(rows: Sequence[RailRow]) -> int:
    """How wide the rails are, in px."""
    used = [row.lane for row in rows] + [rail.lane for row in rows for rail in row.through]
    return (max(used, default=0) + 1) * PITCH


def draw_row(row: RailRow, total_width: int) -> Markup:
    """The rails of one row, as high as the row is."""
    parts = [_vertical(rail, "0", "100%") for rail in row.through]
    if row.goes_on:
        parts.append(_vertical(Rail(row.lane, row.node.makes), str(DOT), "100%"))
    parts += [_turn(rail, row.lane) for rail in row.into]
    parts.append(_dot(row))
    return Markup(f'<svg class="rails" width="{total_width}" aria-hidden="true">{"".join(parts)}</svg>')


def _x(lane: int) -> int:
    return lane * PITCH + PITCH // 2


def _style(makes: str) -> str:
    return makes.replace(" ", "-")


def _vertical(rail: Rail, top: str, end: str) -> str:
    x = _x(rail.lane)
    return f'<line class="rail {_style(rail.makes)}" x1="{x}" x2="{x}" y1="{top}" y2="{end}"/>'


def _turn(rail: Rail, lane: int) -> str:
    """From the top of the row down its lane, and round to the dot."""
    x, end = _x(rail.lane), _x(lane)
    if x == end:
        return f'<line class="rail {_style(rail.makes)}" x1="{x}" x2="{x}" y1="0" y2="{DOT}"/>'
    side = TURN if end > x else -TURN
    path = f"M{x} 0V{DOT - TURN}Q{x} {DOT} {x + side} {DOT}H{end}"
    return f'<path class="rail {_style(rail.makes)}" d="{path}"/>'


def _dot(row: RailRow) -> str:
    """Round for a model, square for data, a diamond for a reward model, a ring for what leaves nothing."""
    x, style = _x(row.lane), f"stop {_style(row.node.makes)}"
    if row.node.makes == "data":
        return f'<rect class="{style}" x="{x - 5}" y="{DOT - 5}" width="10" height="10" rx="1.5"/>'
    if row.node.makes == "reward model":
        return f'<path class="{style}" d="M{x} {DOT - 7}l7 7l-7 7l-7 -7z"/>'
    return f'<circle class="{style}" cx="{x}" cy="{DOT}" r="6"/>'
