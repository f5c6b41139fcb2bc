"""Traced prompts on the page: every large node has its mark, and foreign text is text."""

from __future__ import annotations

import dataclasses
import re

from foretune.tasks.report.build import build_report
from foretune.tasks.report.circuits import DRAWN, LARGEST, grid_of
from foretune.tasks.report.concept_causes import concept_causes_block
from tests.report.conftest import example_circuits


def test_a_mark_per_node_its_area_its_share_in_the_row_of_its_layer(view) -> None:
    traced, refused = view.circuits
    grid = traced.grid
    assert grid is not None and refused.grid is None and len(grid.marks) == 25
    largest = max(grid.marks, key=lambda mark: abs(mark.share))
    assert largest.radius == LARGEST and largest.name == "embedding -1 -1"
    at = {mark.name: mark for mark in grid.marks}
    assert at["head 5 0"].y < at["head 0 0"].y < at["embedding -1 -1"].y <= grid.height - LARGEST
    assert at["head 3 1"].y == at["mlp 3 -1"].y and at["head 3 1"].x < at["mlp 3 -1"].x <= grid.width - LARGEST
    assert sum(mark.chosen for mark in grid.marks) == 2
    many = [
        {"kind": "head", "layer": n // 64, "head": n % 64, "name": str(n), "share": 1e-3, "chosen": False, "score": 0}
        for n in range(4096)
    ]
    assert len(grid_of(many).marks) == DRAWN


def test_the_page_says_what_was_patched_and_nothing_where_nothing_was_traced(view) -> None:
    page = build_report(view)
    section = page[page.index("What carries the change?") :]
    figure = section[: section.index("</figure>")]
    assert "really put into the base, bring 75 % of the change; as many random ones 6 %, at most 10 %" in figure
    assert "No part goes along with the change." in figure and "make 100 % of it" in figure
    assert len(re.findall("<circle", figure)) == 25 and 'role="img" aria-label="6 layers of 3 heads' in figure
    assert "the log-probability changes by 1e-06" in section
    assert "<script>alert" not in figure
    bare = build_report(dataclasses.replace(view, circuits=()))
    assert "What carries the change?" not in bare and "foretune circuit <!--run:id--> --prompt" in bare
    assert example_circuits()[0].nodes[0]["name"] == "embedding -1 -1"


def test_a_concept_that_carries_nothing_is_said_to_carry_nothing(view) -> None:
    page = build_report(view)
    section = page[page.index("Do they carry the change?") :]
    table = section[: section.index("</table>")]
    assert "1 of 2 concepts that moved most carries any of it." in table
    assert table.index("lowers the loss") < table.index("carries nothing") and "21 %" in table and "#1" in table
    assert "<script>alert" not in table
    beside = section[len(table) : section.index("Not tried, as each is answered in words: tool calls.")]
    assert beside.count("1 of 2 carries any of it") == 2 and "What the predicted model answers" in beside
    assert beside.index("goes with it, 21 % of the change") < beside.index("carries nothing")
    assert "<script>alert" not in beside
    told = concept_causes_block(view.concept_causes)
    assert [each["measure"] for each in told["measures"]] == ["loss", "over_refusal", "answers"]
    assert [row["verdict"] for row in told["measures"][1]["concepts"]] == ["carries", "nothing"]
    none = dataclasses.replace(view.concept_causes, rows=(), figures={"carrying": 0})
    assert none.line == "No concept moved beyond its noise: none was taken back."
