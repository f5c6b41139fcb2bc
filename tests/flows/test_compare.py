"""Everything that a comparison lists is in its table, in Prefect's artifact and in the report's section."""

from __future__ import annotations

import io

from foretune.flows.commands.console import print_comparison
from foretune.flows.commands.terminal import Terminal
from foretune.flows.compare import comparison_markdown
from foretune.tasks.report.comparison import comparison_section
from tests.report.test_comparison import COMPARED

SAID = {
    "a sample that flipped": ("helps", "harms"),
    "rows that came": ("added", "7"),
    "a concept's score": ("0.1", "0.2"),
    "a tensor's effective learning rate": ("q_proj",),
    "a rule's count": ("too_short",),
    "a loss": ("heldout loss evaluated", "3.25"),
    "the horizon": ("horizon", "12"),
    "a signal": ("appeared", "dead_layer"),
}


def missing(text: str) -> list[str]:
    return [name for name, words in SAID.items() if not all(word in text for word in words)]


def test_the_terminals_table_says_it_all():
    out = io.StringIO()
    print_comparison(Terminal(file=out, width=200), COMPARED)
    assert missing(out.getvalue().replace("1.000e-01", "0.1").replace("2.000e-01", "0.2")) == []


def test_prefects_artifact_says_it_all_and_escapes_labels():
    text = comparison_markdown(COMPARED)
    assert missing(text.replace("\\", "")) == []
    assert "<script>" not in text
    assert "\n|---" not in text.replace("| --- |", "")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)


def test_the_reports_section_says_it_all():
    assert missing(comparison_section(COMPARED)) == []
