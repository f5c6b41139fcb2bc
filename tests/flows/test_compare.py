"""Everything that a comparison lists is in its table, in Prefect's artifact and in the report's section."""

from __future__ import annotations

import io

from foretune.flows.commands.comparison import print_comparison
from foretune.flows.commands.lineage import SAE
from foretune.flows.commands.terminal import Terminal
from foretune.flows.compare import comparison_markdown, concepts_apart, differing_settings
from foretune.tasks.report.comparison import comparison_section
from tests.report.test_comparison import COMPARED

SAID = {
    "a sample that flipped": ("helps", "harms"),
    "rows that came": ("added", "7"),
    "a concept's measured change, with its error": ("1.5", "0.1", "0.2", "0.025", "2.83"),
    "a setting that differs": ("training.learning_rate", "0.0002", "0.0004"),
    "an input that differs": ("train rows", "aaaaaaaaaaaa", "bbbbbbbbbbbb"),
    "a tensor's effective learning rate": ("q_proj",),
    "a rule's count": ("too_short",),
    "a loss": ("held-out loss evaluated", "3.25"),
    "the horizon": ("horizon", "12"),
    "a signal": ("appeared", "dead_layer"),
}


def missing(text: str) -> list[str]:
    return [name for name, words in SAID.items() if not all(word in text for word in words)]


def test_the_terminals_table_says_it_all():
    out = io.StringIO()
    print_comparison(Terminal(file=out, width=200), COMPARED)
    assert missing(out.getvalue()) == []


def test_prefects_artifact_says_it_all_and_escapes_labels():
    text = comparison_markdown(COMPARED)
    assert missing(text.replace("\\", "")) == []
    assert "<script>" not in text
    assert "\n|---" not in text.replace("| --- |", "")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)


def test_the_reports_section_says_it_all():
    assert missing(comparison_section(COMPARED)) == []


def test_every_setting_that_differs_has_its_dotted_name_and_both_values():
    before = {"training": {"learning_rate": 1e-4, "epochs": 3}, "sae": {"path": "a"}, "name": "x"}
    after = {"training": {"learning_rate": 2e-4, "epochs": 3}, "sae": None, "name": "x"}
    assert differing_settings(before, before) == []
    assert differing_settings(before, after) == [
        {"setting": "training.learning_rate", "a": 1e-4, "b": 2e-4},
        {"setting": "sae", "a": {"path": "a"}, "b": None},
    ]


def test_concepts_of_different_saes_are_not_compared():
    with_sae, without = ({"run_id": name, "artifacts": {"sae_diff": {}} if name == "a" else {}} for name in "ab")
    one, other = {SAE: "1" * 64}, {SAE: "2" * 64}
    assert concepts_apart([with_sae, with_sae], [one, one]) is None
    assert concepts_apart([without, without], [{}, {}]) is None
    assert concepts_apart([with_sae, without], [one, {}]) == "run b has no SAE"
    said = concepts_apart([with_sae, with_sae], [one, other]) or ""
    assert "111111111111" in said and "222222222222" in said
