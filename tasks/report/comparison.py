"""Two runs side by side as a section of the later run's report."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from foretune.tasks.report.concepts import NOISE, WITHIN_NOISE
from foretune.tasks.report.numbers import signed
from foretune.tasks.report.standalone import page_environment

SHOWN_ROWS = 20
LOSS = "nats per token"
NUMBERS = {
    "heldout_loss_base": ("held-out loss, base weights", LOSS),
    "heldout_loss_predicted": ("held-out loss predicted", LOSS),
    "heldout_loss_evaluated": ("held-out loss evaluated", LOSS),
    "train_loss_base": ("training loss, base weights", LOSS),
    "sharpness": ("sharpness", "nats per token per squared unit of weight"),
    "noise_scale_tokens": ("noise scale", "tokens"),
    "flagged_rows": ("rows with a flag", "rows"),
    "samples_that_harm": ("rows that harm", "rows"),
    "samples_that_help": ("rows that help", "rows"),
    "horizon": ("horizon", "steps"),
}
"""What the numbers of a comparison are called, and their units."""

_LINK = '<li><a href="#comparison">Comparison</a></li>\n'
_SECTION = re.compile(r'<section class="pass" id="comparison".*?</section>\n?', re.DOTALL)


def comparison_section(compared: dict[str, Any]) -> str:
    """The section as HTML, all foreign text escaped; `compared` is what `flows.compare.compare_runs` returns."""
    template = page_environment().get_template("comparison.html.jinja")
    told = {"lines": comparison_lines(compared), "flips": flips_line(compared), "tables": comparison_tables(compared)}
    return template.render(compared=compared, **told)


def with_comparison(report: str, section: str) -> str:
    """The report with `section` as its last one, in place of an earlier comparison."""
    bare = _SECTION.sub("", report.replace(_LINK, ""), count=1)
    body, end, rest = bare.rpartition("</main>")
    head, close, tail = f"{body}{section}{end}{rest}".partition("</ol>\n</nav>")
    return f"{head}{_LINK}{close}{tail}"


@dataclass(frozen=True)
class ComparisonTable:
    """One table of a comparison, the same on every page and in the terminal."""

    caption: str
    titles: list[str]
    rows: list[tuple[Any, ...]]


def comparison_lines(compared: dict[str, Any]) -> list[str]:
    """What is said before any table: whether anything differs at all, signals, and what cannot be compared."""
    lines = ["The two runs are identical: every artefact has the same key."] if compared["identical"] else []
    for word in ("appeared", "vanished"):
        if compared["signals"][word]:
            lines.append(f"Signals that {word}: {', '.join(compared['signals'][word])}.")
    if compared["concepts_apart"]:
        lines.append(f"Concepts cannot be compared: {compared['concepts_apart']}.")
    if compared["losses_apart"]:
        lines.append(f"Losses before and after are not of the same tokens: {compared['losses_apart']}.")
    if compared["influence_apart"]:
        lines.append(f"Influence cannot be compared: {compared['influence_apart']}.")
    for word, told in (("added", "after"), ("removed", "before")):
        if found := compared["tensors"][word]:
            more = f" and {len(found) - 3:,} more" if len(found) > 3 else ""
            lines.append(f"Tensors that only the run {told} adapts: {', '.join(found[:3])}{more}.")
    return lines


def flips_line(compared: dict[str, Any]) -> str:
    """How many rows changed sides; nothing is claimed where their scores are not one quantity."""
    flipped = compared["samples"]["flipped"]
    told = "not compared" if compared["influence_apart"] else len(flipped)
    return f"Rows flipped between helping and harming: {told}."


def comparison_tables(compared: dict[str, Any]) -> list[ComparisonTable]:
    """Every table that has rows; `compared` is what `flows.compare.compare_runs` returns. Identical runs have none."""
    if compared["identical"]:
        return []
    horizon = {"horizon": compared["horizon"]} if {*compared["horizon"].values()} != {None} else {}
    numbers = {**compared["numbers"], **horizon}
    samples = compared["samples"]
    flipped = ("row_a", "row_b", "verdict_a", "verdict_b", "score_a", "score_b")
    layers = ("module", "eta_eff_a", "eta_eff_b", "norm_a", "norm_b")
    tables = [
        ComparisonTable(
            "Numbers",
            ["", "before", "after", "change", "unit"],
            [(NUMBERS[name][0], p["a"], p["b"], change(p), NUMBERS[name][1]) for name, p in numbers.items()],
        ),
        ComparisonTable(
            "Settings that differ",
            ["setting", "before", "after"],
            [(each["setting"], _value(each["a"]), _value(each["b"])) for each in compared["request"]],
        ),
        ComparisonTable(
            "Inputs that differ",
            ["input", "digest before", "digest after"],
            [(each["input"], (each["a"] or "none")[:12], (each["b"] or "none")[:12]) for each in compared["inputs"]],
        ),
        ComparisonTable(
            "Rows that came and went",
            ["", "rows"],
            [(word, first_rows(samples[word])) for word in ("added", "removed") if samples[word]],
        ),
        ComparisonTable(
            "Flipped samples",
            ["row before", "row after", "before", "after", "score before", "score after"],
            [tuple(row[key] for key in flipped) for row in samples["flipped"][:SHOWN_ROWS]],
        ),
        ComparisonTable(
            "Quality rules whose count changed",
            ["rule", "before", "after"],
            [(rule, pair["a"], pair["b"]) for rule, pair in compared["quality"].items()],
        ),
        ComparisonTable(
            "Concepts whose measured change of activation differs most, on held-out text",
            ["feature", "base", "change before", "error", "change after", "error", "z of the difference", "", "label"],
            [_concept(row) for row in compared["features"]],
        ),
        ComparisonTable(
            "Effective learning rate per tensor",
            ["tensor", "before", "after", "delta before", "delta after"],
            [tuple(row[key] for key in layers) for row in compared["layers"] if row["eta_eff_a"] != row["eta_eff_b"]],
        ),
    ]
    return [table for table in tables if table.rows]


def change(pair: dict[str, Any]) -> str:
    """After minus before with its sign; nothing where one of them is missing."""
    before, after = pair["a"], pair["b"]
    if before is None or after is None:
        return "-"
    return "" if before == after else signed(float(after) - float(before))


def _concept(row: dict[str, Any]) -> tuple[Any, ...]:
    values = (row[name] for name in ("base_b", "change_a", "error_a", "change_b", "error_b", "z"))
    verdict = "differs" if row.get("beyond_noise", abs(row["z"] or 0.0) > NOISE) else WITHIN_NOISE
    return (row["feature"], *values, verdict, row["label"] or "unnamed")


def _value(value: Any) -> str:
    return "not set" if value is None else str(value)


def first_rows(rows: list[int]) -> str:
    """Row numbers with commas between them, and how many more there are."""
    more = len(rows) - SHOWN_ROWS
    return ", ".join(str(row) for row in rows[:SHOWN_ROWS]) + (f" and {more} more" if more > 0 else "")
