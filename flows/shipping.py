"""Ship or not, for a run that is stored: its figures, and a gate that may say more, to a verdict and its report."""

from __future__ import annotations

import difflib
from dataclasses import asdict
from typing import Any

from foretune.flows.gate import Gate, GateVerdict, apply_gate, crossed_in_words
from foretune.storage.errors import BadInput
from foretune.storage.junit import JUnitCase, junit_document
from foretune.storage.ledger import Ledger
from foretune.storage.results import artifact_of, finished_result
from foretune.storage.runs import Run
from foretune.tasks.report.ship_evidence import READ, ship_evidence
from foretune.tasks.report.shipping import Check, Decision, ShipEvidence, decide

OUTCOMES = {"pass": "pass", "fail": "failure", "unknown": "error", "not judged": "skipped"}
"""Of a check, as JUnit has them: what could not be decided is no failure, and no success."""


def shipped(run: Run, gate: Gate | None = None) -> Decision:
    """The verdict on a finished run; with a gate its rules too, against the last accepted run of the same name.

    BadInput for a run that predicted nothing, and for a gate that names numbers or suites which it does not have.
    """
    result = finished_result(run)
    if "prediction" not in result.get("artifacts", {}):
        raise BadInput(f"run {run.run_id} has no prediction ({result.get('status')}); simulate to its end first")
    made = {name: artifact_of(run, name) for name in READ if name in result["artifacts"]}
    evidence = ship_evidence(run, made, result.get("signals", []))
    if gate is None:
        return decide(evidence)
    accepted = Ledger(run.root, run.name).accepted()
    judged = apply_gate(gate, result, accepted and accepted.get("summary", {}))
    return decided_with(evidence, gate, judged)


def decided_with(evidence: ShipEvidence, gate: Gate, judged: GateVerdict) -> Decision:
    """What a gate fails is a reason against; what it warns of stands in the list and stops nothing."""
    check_suites(evidence, gate)
    return decide(evidence, gate.ship.rules, gate_checks(judged))


def check_suites(evidence: ShipEvidence, gate: Gate) -> None:
    """BadInput for a suite that a gate names and the run never asked."""
    asked = [suite.name for suite in evidence.suites]
    for name in [*gate.ship.allow, *gate.ship.ignore]:
        if name not in asked:
            near = difflib.get_close_matches(name, asked, n=3, cutoff=0.0)
            raise BadInput(f"gate ship: no suite {name} in this run; nearest: {', '.join(near) or 'none was asked'}")


def gate_checks(judged: GateVerdict) -> list[Check]:
    """A check per rule that was crossed, else one for all."""
    found = []
    for crossing in judged.crossings:
        words = crossed_in_words(asdict(crossing))
        failed = crossing.verdict == "fail"
        said = f"the gate {'fails' if failed else 'warns of'} it: {words} ({crossing.reason})"
        value = crossing.value if isinstance(crossing.value, int | float) else None
        found.append(Check(f"gate.{crossing.subject}", "fail" if failed else "pass", said, value))
    skipped = f"; not applied without an accepted run: {', '.join(judged.skipped)}" if judged.skipped else ""
    return found or [Check("gate", "pass", f"no rule of the gate is crossed{skipped}")]


def ship_junit(run: Run, decision: Decision) -> bytes:
    """A test per condition: failed, in error where it is open, skipped where it is not judged."""
    cases = []
    for check in decision.checks:
        outcome: Any = OUTCOMES[check.outcome]
        said = check.reason if not check.remedy else f"{check.reason}\n{remedy_of(check.remedy, run)}"
        kind = {"failure": "fail", "error": "inconclusive"}.get(outcome, "")
        cases.append(JUnitCase("foretune.ship", check.name, outcome, kind, check.reason, said))
    return junit_document("foretune ship", run.run_id, cases, {"verdict": decision.verdict})


def remedy_of(remedy: str, run: Run) -> str:
    """What to do next, with the run's id in its place."""
    return remedy.replace("{run}", run.run_id)
