"""What a simulation answers in the terminal: the verdict with its reasons, what moved, what it costs, what to type.

Every fact stands once. What one copies (commands, places) has a line of its own and is never broken.
"""

from __future__ import annotations

from typing import Any

from foretune.flows.commands.remaining import duration, passes_in_words
from foretune.flows.commands.terminal import Terminal, styled
from foretune.storage.display import one_line
from foretune.storage.runs import Run
from foretune.tasks.report.behaviour import behaviour_lines
from foretune.tasks.report.behaviour_path import behaviour_path_lines
from foretune.tasks.report.causes import causes_command, causes_lines
from foretune.tasks.report.conditions import Condition, clean_command
from foretune.tasks.report.residual_change import residual_lines

CONCEPTS = 5  # of each direction; result.json lists `features.top`


def print_answer(terminal: Terminal, result: dict[str, Any], run: Run) -> None:
    """The verdict and its reasons, rows that harm, moving concepts, the predicted loss, the price, the next steps."""
    summary = result["summary"]
    terminal.gap()
    terminal.say(styled("Should I train?", "bold"), "  ", styled(f"{summary['answer']}.", "bold"))
    for number, reason in enumerate(summary["reasons"], start=1):
        terminal.hanging(f"  {number:<3}", reason)
    for signal in result["signals"]:
        if signal["severity"] == "info":
            terminal.hanging("  -  ", f"{signal['name'].replace('_', ' ')}: {signal['advice']}")
    _print_rows(terminal, summary)
    for note in result.get("sae", {}).get("notes", []):
        terminal.gap()
        terminal.hanging("", note)
    _print_concepts(terminal, summary)
    for more in result.get("more_concepts", []):
        _print_concepts(terminal, more, f" by {more['sae']['name']} at {more['sae']['hook']}")
    _print_residual_change(terminal, result.get("residual_change"))
    terminal.gap()
    terminal.say(
        f"Held-out loss  {summary['heldout_loss_base']:.3f} -> {summary['heldout_loss_evaluated']:.3f} on the "
        f"predicted weights"
    )
    terminal.hanging("Trusted        ", summary["trust"])
    if summary.get("answers_asked"):
        terminal.hanging("Answers        ", answers_in_words(summary))
    causes = result.get("causes")
    told = [*behaviour_lines(result.get("behaviour", [])), *behaviour_path_lines(result.get("behaviour_path"))]
    for number, line in enumerate(told):
        terminal.hanging(" " * 15 if number else "Behaviour      ", line)
    for number, line in enumerate(causes_lines(causes)):
        terminal.hanging(" " * 15 if number else "Causes         ", line)
    if ship := result.get("ship"):
        more = f" (and {len(ship['reasons']) - 1} more)" if len(ship["reasons"]) > 1 else ""
        terminal.hanging("Ship?          ", f"{ship['verdict']}: {ship['reasons'][0]}{more}")
    terminal.hanging("Cost           ", cost_in_words(result["cost"]))
    counts = result["tasks"]
    terminal.say(f"Passes         {passes_in_words(counts)}")
    cleaned = clean_command([Condition(**each) for each in summary["conditions"]])
    asks = f'foretune ask {run.run_id} "..."' if summary.get("answers_asked") else ""
    ships = f"foretune ship {run.run_id}" if result.get("ship") else ""
    without = causes_command(causes, run.run_id)
    if cleaned or without or asks or ships:
        terminal.say("Next")
    for command in filter(None, (cleaned.replace("{run}", run.run_id), without, asks, ships)):
        terminal.say(f"  {command}", whole=True)
    terminal.say("Report")
    terminal.say(f"  {(run.place / 'report.html').uri}", whole=True)
    terminal.say("Model")
    terminal.say(f"  {result['artifacts']['checkpoint']['uri']}", whole=True)


def answers_in_words(summary: dict[str, Any]) -> str:
    """How many prompts the predicted model answers differently from the base."""
    asked, changed = summary["answers_asked"], summary["answers_changed"]
    prompts = "1 prompt is" if asked == 1 else f"{asked:,} prompts are"
    return f"{changed:,} of {prompts} answered differently by the predicted model"


def cost_in_words(cost: dict[str, Any]) -> str:
    """Seconds and forward passes over the training rows, here and in the real run, and what is saved."""
    real = f"the real run takes {cost['real_forward_passes']:.3g} forward passes"
    if cost["real_seconds"] is not None:
        real += f" and about {duration(cost['real_seconds'])}{_between(cost)} on this machine"
    if not cost["forward_passes"]:
        return f"{duration(cost['seconds'])}, no forward pass; {real}"
    here = f"{duration(cost['seconds'])} and {cost['forward_passes']:.3g} forward passes over the rows"
    saved = cost["real_forward_passes"] - cost["forward_passes"]
    told = f"{saved:.3g} forward passes saved" if saved > 0 else f"{-saved:.3g} forward passes more than training"
    return f"{here}; {real}: {told}"


def _between(cost: dict[str, Any]) -> str:
    """From the fastest to the slowest part of what was timed; nothing where it had one part."""
    fastest, slowest = cost.get("real_seconds_from"), cost.get("real_seconds_to")
    return "" if fastest is None or slowest is None else f" ({duration(fastest)} to {duration(slowest)})"


def _print_rows(terminal: Terminal, summary: dict[str, Any]) -> None:
    """The first of the rows that harm; how many there are is said above."""
    harming = [row for row in summary["harmful_samples"] if row["verdict"] in ("harms", "raises")]
    if harming:
        _heading(terminal, "Rows of the worst ranks", "nats of held-out loss, with their standard error")
    for row in harming:
        error = f" ± {row['error']:.5f}" if row.get("error") is not None else ""
        terminal.say(_cut(terminal, f"  row {row['row']:<5} {row['score']:+.5f}{error}  {one_line(row['text'], 120)}"))


def _print_concepts(terminal: Terminal, summary: dict[str, Any], by: str = "") -> None:
    """By measured change beyond noise; a line is a family. What the estimates said stands in result.json."""
    for title, name, sign in (("strengthened", "strengthened", "+"), ("faded", "suppressed", "-")):
        if summary[name]:
            units = "change on held-out text ± standard error; z over rows, among null deltas; tokens it fires on"
            _heading(terminal, f"Concepts {title}{by}", units)
        for concept in summary[name][:CONCEPTS]:
            terminal.say(_cut(terminal, f"  {sign} {concept_line(concept)}"))
    within = summary.get("features_within_noise")
    if within is not None:
        terminal.say(f"  {within:,} features that fire are not beyond noise: nothing is said of them.")


def _print_residual_change(terminal: Terminal, block: dict[str, Any] | None) -> None:
    """What moves without an SAE's names; nothing where it was not read."""
    lines = residual_lines(block)
    if block is not None and lines:
        _heading(terminal, "The residual stream moves", f"at {block['hook']}, read by the logit lens")
    for line in lines:
        terminal.say(_cut(terminal, f"  {one_line(line, 240)}"))


def concept_line(concept: dict[str, Any]) -> str:
    """Number, change, how sure, where it fires, and the name; of runs of before version 2 what they have."""
    relative = "   new" if concept["relative"] is None else f"{concept['relative']:+6.0%}"
    error = f" ± {concept['error']:.4f}" if concept.get("error") is not None else ""
    null = f", {concept['z_null']:+.1f}" if concept.get("z_null") is not None else ""
    alike = f" and {concept['members'] - 1:,} like it" if (concept.get("members") or 1) > 1 else ""
    fires = ""
    if concept.get("fires_new") is not None:
        fires = f"  {concept['fires_new']:.1%}, was {concept['fires_base']:.1%}"
    tested = f" ({concept['label_source']} {concept['confidence']:.2f})" if concept.get("confidence") else ""
    name = f"{one_line(concept['label'] or 'unnamed', 120)}{tested}{alike}"
    moved = f"{concept['feature']:<6} {concept['change']:+.4f}{error} {relative}  z {concept['z']:+.1f}{null}"
    return f"{moved}{fires}  {name}"


def _cut(terminal: Terminal, line: str) -> str:
    """A line that is only looked at, cut where the terminal ends."""
    return line if len(line) <= terminal.width else f"{line[: terminal.width - 1]}…"


def _heading(terminal: Terminal, title: str, units: str) -> None:
    terminal.gap()
    terminal.say(styled(title, "bold"), " ", styled(f"({units})", "dim"))
