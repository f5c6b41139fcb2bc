"""Ship or not, before training: the verdict on a finished run, condition by condition."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foretune.flows.commands.options import Json, Quiet, Root, RunName, finish, named_run, terminal_for
from foretune.flows.commands.terminal import Terminal, styled

if TYPE_CHECKING:
    from foretune.storage.runs import Run
    from foretune.tasks.report.shipping import Check, Decision

COLOURS = {"SHIP": "bold green", "DON'T": "bold red", "INCONCLUSIVE": "bold yellow"}
WORDS = {"pass": "pass", "fail": "FAIL", "unknown": "open", "not judged": "-"}
NAME = 26  # columns of a condition's
TITLES = ("", "condition", "change", "noise", "interval of the change")


def ship(
    run: RunName,
    gate: Annotated[
        str | None, typer.Option("--gate", metavar="GATE.yaml", help="rules and allowances; local or s3://")
    ] = None,
    junit: Annotated[str | None, typer.Option("--junit", metavar="FILE", help="JUnit XML")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace FILE if it is there")] = False,
    root: Root = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Ship or not, before training, from what a run has measured; exit status 3 unless it says SHIP."""
    from foretune.flows.gate import load_gate
    from foretune.flows.shipping import ship_junit, shipped
    from foretune.storage.outputs import checked_output, write_output

    rules = load_gate(gate) if gate else None
    place = checked_output(junit, gate or "", force) if junit else None
    found = named_run(run, root)
    decision = shipped(found, rules)
    if place is not None:
        write_output(place, ship_junit(found, decision))
    print_ship(terminal_for(quiet), found, decision)
    finish(ship_result(found, decision, gate) | ({"junit": junit} if junit else {}), as_json)
    if decision.verdict != "SHIP":
        raise typer.Exit(3)


def ship_result(run: Run, decision: Decision, gate: str | None) -> dict[str, Any]:
    """What a program reads."""
    from foretune.flows.shipping import remedy_of

    return {
        "run_id": run.run_id,
        "root": run.root,
        "gate": gate,
        "verdict": decision.verdict,
        "reasons": decision.reasons,
        "conditions": [{**asdict(check), "remedy": remedy_of(check.remedy, run)} for check in decision.checks],
        "next": [remedy_of(each, run) for each in decision.remedies],
    }


def print_ship(terminal: Terminal, run: Run, decision: Decision) -> None:
    """The verdict, what decided, every condition with its figures, and what to do next."""
    from foretune.flows.shipping import remedy_of

    terminal.say(
        styled("Ship?", "bold"), "  ", styled(f"{decision.verdict}.", COLOURS[decision.verdict]), f"  {run.run_id}",
        whole=True,
    )  # fmt: skip
    for number, reason in enumerate(decision.reasons, start=1):
        terminal.hanging(f"  {number:<3}", reason)
    terminal.gap()
    terminal.say(styled(_row(*TITLES), "bold"), whole=True)
    for check in decision.checks:
        terminal.say(_row(*_cells(check)), whole=True)
    terminal.gap()
    for line in _notes(decision):
        terminal.hanging("", line)
    if decision.remedies:
        terminal.say("Next")
        for remedy in decision.remedies:
            said = remedy_of(remedy, run)
            if said.startswith("foretune "):  # a command is copied whole
                terminal.say(f"  {said}", whole=True)
            else:
                terminal.hanging("  ", said)


def _cells(check: Check) -> tuple[str, ...]:
    from foretune.tasks.report.numbers import measured, signed
    from foretune.tasks.report.shipping import titled

    said, name = WORDS[check.outcome], titled(check.name.removeprefix("suite.").removeprefix("gate."))
    interval = "" if check.low is None else f"{signed(check.low)} to {signed(check.high)}"
    if check.value is None:
        return said, name, "", "", ""
    noise = measured(check.floor) if check.floor is not None and check.floor_from else "-"
    return said, name, signed(check.value), noise, interval


def _row(*cells: str) -> str:
    """One line of at most 80 columns; a long name is cut."""
    said, name, change, noise, interval = cells
    first = name if len(name) <= NAME else f"{name[: NAME - 1]}…"
    return f"  {said:<5} {first:<{NAME}} {change:>9} {noise:>9}  {interval}".rstrip()


def _notes(decision: Decision) -> list[str]:
    """What the noise is of, a line for each kind."""
    from foretune.tasks.report.shipping import ALLOWED, COUNTS, titled

    kinds: dict[str, list[str]] = {}
    for check in decision.checks:
        if check.floor is not None and check.floor_from:
            of = "suites" if check.name.startswith("suite.") else titled(check.name)
            bare = check.floor_from in (ALLOWED, COUNTS)
            said = check.floor_from if bare else f"the largest change by {check.floor_from}"
            listed = kinds.setdefault(of, [])
            listed += [] if said in listed else [said]
    return [f"Noise of the {of}: {', or '.join(said)}." for of, said in kinds.items()]
