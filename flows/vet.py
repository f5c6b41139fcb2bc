"""May this dataset be trained on? Nightly, or whenever a new version is published."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import prefect
from prefect import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from foretune.flows.commands.plan import make_plan
from foretune.flows.compare import attach_comparison, compare_runs
from foretune.flows.dag.costs import checked_sources
from foretune.flows.failures import ending_in_one_line, engine_log_silenced, finished
from foretune.flows.gate import Gate, apply_gate, crossed_in_words
from foretune.flows.request import Request, RuntimeSettings
from foretune.flows.shipping import shipped
from foretune.flows.simulate import simulate
from foretune.storage.digests import digest_of
from foretune.storage.display import one_line
from foretune.storage.errors import BadInput
from foretune.storage.events import run_status
from foretune.storage.ledger import Ledger
from foretune.storage.runs import Run, new_run_id
from foretune.storage.versions import newest_version
from foretune.tasks.engine.announcements import escape, name_flow_run, publish_markdown, tell
from foretune.tasks.engine.keys import identity
from foretune.tasks.inputs.sources import Sources
from foretune.tasks.report.address import report_address, report_link
from foretune.tasks.report.comparison import change
from foretune.tasks.report.numbers import plain
from foretune.tasks.report.publish import ship_markdown
from foretune.tasks.report.ship_evidence import ship_block

EVENT = "foretune.vetting.finished"
ACCEPTED, WARNED, REFUSED = "Accepted", "Warned", "Refused"


@prefect.flow(name="foretune-vet", validate_parameters=True, log_prints=False)
@ending_in_one_line("foretune.vetting.failed")
def vet(
    request: Request,
    gate: Gate | None = None,
    dataset: str | None = None,
    run_id: str | None = None,
    published: str | None = None,
) -> State:
    """Vet the newest version of a dataset.

    1. Resolve the version: the newest below `dataset`, or below the request's own path. Started by the event of a
       published dataset, `published` is its resource: it must be the request's own, and come with a place.
    2. Look the verdict up; the same content was judged before by the same request and gate.
    3. Simulate.
    4. Compare with the last accepted run.
    5. Apply the gate; without one, critical signals fail.
    6. Publish: artifact, event, ledger. The accepted pointer moves only on `pass`, or also on `warn` where the
       gate accepts that.

    Ends in the state Accepted, in Warned (trained on if you like, but not what later versions are measured by), or
    in Refused (a failure, so that what waits for this run stops too).
    """
    gate, ledger = gate or Gate(), Ledger(request.runtime.root, request.run_name)
    if published is not None:
        check_published(request, published, dataset)
    version = newest_version(request.dataset_at(dataset))
    wanted = request.model_copy(update={"dataset": request.dataset.model_copy(update={"path": version})})
    sources = checked_sources(wanted)
    key = verdict_key(wanted, gate, sources)
    stored = ledger.verdict(key)
    if stored is not None:
        return announced(ledger, {**stored, "repeated": True})
    accepted = ledger.accepted()
    run = Run(ledger.root, run_id or new_run_id(datetime.now(UTC), ledger.name))
    result = finished(run, lambda: simulate(along_accepted(wanted, accepted), run_id=run.run_id))
    compared = compared_with(accepted, run)
    judged = apply_gate(gate, result, accepted and accepted.get("summary", {}))
    verdict = {
        "name": ledger.name,
        "dataset": version,
        "digest": sources.rows["train"].digest,
        "run_id": result["run_id"],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "repeated": False,
        **judged.as_dict(),
        "accepted": judged.accepted_by(gate),
        "answer": result["summary"]["answer"],
        "ship": ship_block(shipped(run, gate)),
        "accepted_before": accepted and accepted["run_id"],
        "comparison": compared and changes(compared),
    }
    keep(ledger, key, verdict, result["summary"])
    return announced(ledger, verdict)


def check_published(request: Request, published: str, dataset: str | None) -> None:
    """BadInput for the event of another dataset, or one that says no place: neither is judged by this request."""
    if published != f"dataset.{request.run_name}":
        raise BadInput(
            f"event of {published}: this request vets dataset.{request.run_name}; give each dataset a deployment and a "
            "trigger that matches its own resource"
        )
    if not dataset:
        raise BadInput(f"event of {published}: no uri in its payload; emit it with payload={{'uri': 's3://…'}}")


def verdict_key(request: Request, gate: Gate, sources: Sources) -> str:
    """What the verdict depends on: the bytes of every input, the request without its place and name, the gate."""
    settings = request.model_copy(update={"name": None, "runtime": RuntimeSettings(pass_minutes=None)})
    files = [sources.gguf, sources.model, sources.tokenizer, sources.sae, sources.labels]
    files += [each.handle for each in sources.more_saes]
    return digest_of(
        {
            "rows": {role: identity(file) for role, file in sources.rows.items()},
            "files": identity(files),
            "request": identity(settings),
            "gate": gate.identity,
        }
    )[:40]


def along_accepted(request: Request, accepted: dict[str, Any] | None) -> Request:
    """The request with the accepted run in the place of the latest one, whose version may have been refused."""
    if request.prediction.along != "latest":
        return request
    kept = accepted is not None and run_status(Run(request.runtime.root, accepted["run_id"])) == "completed"
    along = accepted["run_id"] if accepted is not None and kept else None
    return request.model_copy(update={"prediction": request.prediction.model_copy(update={"along": along})})


def vetting_plan(request: Request) -> dict[str, Any]:
    """The plan of a request as it is vetted: along the accepted run."""
    return make_plan(along_accepted(request, Ledger(request.runtime.root, request.run_name).accepted()))


def compared_with(accepted: dict[str, Any] | None, run: Run) -> dict[str, Any] | None:
    """The comparison with the accepted run, added to the new run's report; None when that run is gone."""
    if accepted is None:
        return None
    before = Run(run.root, accepted["run_id"])
    if run_status(before) != "completed":
        return None
    compared = compare_runs(before, run)
    attach_comparison(run, compared)
    return compared


def changes(compared: dict[str, Any]) -> dict[str, Any]:
    """A comparison in a few counts, and the numbers of both runs."""
    samples = compared["samples"]
    counts = {name: len(samples[name]) for name in ("added", "removed", "flipped")}
    numbers = {name: pair for name, pair in compared["numbers"].items() if pair["a"] is not None}
    return {"with": compared["a"], **counts, "signals": compared["signals"], "numbers": numbers}


def keep(ledger: Ledger, key: str, verdict: dict[str, Any], summary: dict[str, Any]) -> None:
    """Move the pointer, then store the verdict: a crash in between only means that the version is vetted again."""
    if verdict["accepted"]:
        kept = {name: verdict[name] for name in ("run_id", "dataset", "digest", "time")}
        ledger.accept({**kept, "summary": summary})
    ledger.keep(key, verdict)


def announced(ledger: Ledger, verdict: dict[str, Any]) -> State:
    """Publish the verdict to Prefect, every time, and end the run by it."""
    run, name = Run(ledger.root, verdict["run_id"]), ledger.name
    name_flow_run(run.run_id)
    publish_markdown("foretune-vetting", f"{verdict_table(verdict)}\n{report_link(run)}\n", run.run_id)
    resource = {"prefect.resource.id": f"foretune.dataset.{name}", "prefect.resource.name": name}
    tell(EVENT, {**resource, "foretune.verdict": verdict["verdict"]}, verdict)
    line, where = one_line(f"{verdict['dataset']}: {verdict['verdict']}"), f"Report: {report_address(run)}"
    get_run_logger().info("%s", f"{line}. {where}")
    if verdict["verdict"] == "fail":
        engine_log_silenced()
        said = one_line(f"{line} ({reasons(verdict, 'fail')}). {where}")
        return Failed(name=REFUSED, message=said, data=verdict)
    if verdict["verdict"] == "warn":
        line = one_line(f"{line} ({reasons(verdict, 'warn')})")
    return Completed(name=ACCEPTED if verdict["accepted"] else WARNED, message=f"{line}. {where}", data=verdict)


def stored_verdict(run: Run, name: str) -> dict[str, Any] | None:
    """The verdict that was passed on this run, or None."""
    return next((each for each in Ledger(run.root, name).verdicts() if each["run_id"] == run.run_id), None)


def reasons(verdict: dict[str, Any], grade: str) -> str:
    """What was crossed, with its value and the reason for the threshold."""
    crossed = [crossing for crossing in verdict["crossings"] if crossing["verdict"] == grade]
    return "; ".join(f"{crossed_in_words(each)}: {each['reason']}" for each in crossed)


def verdict_table(verdict: dict[str, Any]) -> str:
    """The verdict as Prefect's UI shows it."""
    lines = [f"## {escape(verdict['dataset'])}: {verdict['verdict']}", ""]
    if verdict["crossings"]:
        lines += ["| rule | value | threshold | verdict | reason |", "|---|---|---|---|---|"]
    for crossing in verdict["crossings"]:
        cells = [crossing[name] for name in ("subject", "value", "threshold", "verdict", "reason")]
        lines.append("| " + " | ".join(escape(cell) for cell in cells) + " |")
    if verdict["comparison"]:
        lines += against_accepted(verdict["comparison"])
    return "\n".join([*lines, "", f"{ship_markdown(verdict)}Run {escape(verdict['run_id'])}", ""])


def against_accepted(comparison: dict[str, Any]) -> list[str]:
    """What changed since the accepted run, a table of numbers first; verdicts of before may lack that."""
    lines, numbers = [], comparison.get("numbers", {})
    if numbers:
        lines += ["", f"| | accepted {escape(comparison['with'])} | this version | change |", "|---|---|---|---|"]
    for name, pair in numbers.items():
        cells = (name.replace("_", " "), plain(pair["a"]), plain(pair["b"]), change(pair))
        lines.append("| " + " | ".join(escape(cell) for cell in cells) + " |")
    for word in ("appeared", "vanished"):
        if comparison.get("signals", {}).get(word):
            lines += ["", f"Signals that {word}: {', '.join(map(escape, comparison['signals'][word]))}."]
    counted = f"{comparison['added']} rows added, {comparison['removed']} removed"
    flipped = f"{comparison['flipped']} flipped between helping and harming"
    return [*lines, "", f"Against {escape(comparison['with'])}: {counted}, {flipped}."]
