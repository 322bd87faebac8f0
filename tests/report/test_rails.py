"""The rails of the path: each leads from an artefact to its readers, and no two share a lane."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from hypothesis import given, settings
from hypothesis import strategies as st

from melete.report.rails import Node, draw_row, lay, width


@st.composite
def pipelines(draw: st.DrawFn) -> list[Node]:
    """Stages that read any of the earlier ones."""
    nodes: list[Node] = []
    for i in range(draw(st.integers(1, 12))):
        earlier = [node.name for node in nodes if node.makes != "nothing"]
        reads = draw(st.lists(st.sampled_from(earlier), unique=True, max_size=4)) if earlier else []
        makes = draw(st.sampled_from(["model", "data", "reward model", "nothing"]))
        nodes.append(Node(f"s{i}", makes, reads, reads[0] if reads else ""))
    return nodes


@given(pipelines())
@settings(max_examples=50, deadline=None)
def test_a_rail_keeps_its_lane_from_its_stage_to_its_last_reader(nodes: list[Node]) -> None:
    rows = lay(nodes)
    lane = {row.node.name: row.lane for row in rows}
    for i, row in enumerate(rows):
        assert [rail.lane for rail in row.into] == sorted(lane[name] for name in row.node.reads)
        waiting = {n.name for n in nodes[:i] if any(n.name in later.reads for later in nodes[i + 1 :])}
        assert sorted(rail.lane for rail in row.through) == sorted(lane[name] for name in waiting)
        assert len({rail.lane for rail in row.through} | {row.lane}) == len(row.through) + 1
        assert row.goes_on == any(row.node.name in later.reads for later in nodes[i + 1 :])


@given(pipelines())
@settings(max_examples=30, deadline=None)
def test_a_row_is_a_drawing_within_its_width(nodes: list[Node]) -> None:
    rows = lay(nodes)
    total = width(rows)
    for row in rows:
        picture = ET.fromstring(str(draw_row(row, total)))
        places = [float(one.attrib[key]) for one in picture for key in ("x1", "x2", "cx") if key in one.attrib]
        assert all(0 < place < total for place in places)


def test_a_model_trained_on_keeps_the_lane_of_the_one_it_began_as() -> None:
    nodes = [Node("tiny", "model", []), Node("zero", "model", ["tiny"], "tiny"), Node("dev", "model", ["zero"], "zero")]
    assert [row.lane for row in lay(nodes)] == [0, 0, 0]


def test_a_base_that_is_needed_again_keeps_its_own_lane() -> None:
    nodes = [Node("tiny", "model", []), Node("zero", "model", ["tiny"], "tiny"), Node("dev", "model", ["tiny"], "tiny")]
    assert [row.lane for row in lay(nodes)] == [0, 1, 0]
