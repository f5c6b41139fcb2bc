"""Publish a run: result.json, the report, signals as events, Prefect artifacts. Never cached."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import prefect

from foretune.storage.event_records import is_whole
from foretune.storage.events import EventLog, read_events
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine import lineage
from foretune.tasks.engine.announcements import announce, escape, publish_markdown
from foretune.tasks.report.address import report_link
from foretune.tasks.report.answers import listed_answers
from foretune.tasks.report.behaviour import behaviour_block
from foretune.tasks.report.behaviour_path import behaviour_path_block
from foretune.tasks.report.causes import causes_block
from foretune.tasks.report.concept_causes import CAUSES_READ, concept_causes_block, opened_concept_causes
from foretune.tasks.report.concepts import moved_concepts
from foretune.tasks.report.feature_page import ANY_RUN, FEATURES_PAGE
from foretune.tasks.report.findings import Findings, collect
from foretune.tasks.report.residual_change import residual_block
from foretune.tasks.report.run_record import Epoch, RunRecord, run_record
from foretune.tasks.report.run_section import with_run
from foretune.tasks.report.ship_evidence import ship_block, ship_evidence
from foretune.tasks.report.shipping import decide


@prefect.task(name="publish", cache_policy=prefect.cache_policies.NO_CACHE, persist_result=False)
def publish(
    run: Run, request: dict[str, Any], made: dict[str, ArtifactRef], submitted: int, saes: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Write result.json last and return it; `submitted` is the number of tasks of the wiring, `saes` what
    `Sources.saes_read` tells.

    The run's page is that of its backtest, where there was one.
    """
    found = collect(run, made, concepts=request["features"]["top"])
    events = EventLog.of(run)
    for signal in found.signals:
        announce(run, "signal", **signal)
    events.flush()  # on S3 the passes' own events may still be gathered here
    record = recorded(run, request, made)
    page = run.store.open(made.get("backtest_report", made["report"])).text("report.html")
    decision = decide(ship_evidence(run, made, found.signals))
    run.write_report(with_run(page, record, commands(run.run_id, found), decision))
    if features := browser_page(run, made["report"]):
        run.write_features(features)
    result = result_of(run, request, made, found, record, submitted) | {"ship": ship_block(decision)}
    if "agreement" in made:
        result["backtest"] = run.store.open(made["agreement"]).json("agreement.json")
    if "answer_agreement" in made:
        result["backtest"]["answers"] = run.store.open(made["answer_agreement"]).json("answers.json")
    if "suite_agreement" in made:
        result["backtest"]["suites"] = run.store.open(made["suite_agreement"]).json("suites.json")
    result |= concept_blocks(run, made, saes, request["features"]["top"])
    if "concept_causes" in made:
        opened = {name: run.store.open(ref) for name, ref in made.items() if name in CAUSES_READ}
        result["concept_causes"] = concept_causes_block(opened_concept_causes(opened))
    if "answers" in made:
        result["answers"] = listed_answers(run.store.open(made["answers"]).arrow("answers.parquet").to_pylist())
    if "behaviour" in made:
        result["behaviour"] = behaviour_block(run.store.open(made["behaviour"]).json("summary.json"))
    if "behaviour_path" in made:
        result["behaviour_path"] = behaviour_path_block(run.store.open(made["behaviour_path"]).json("summary.json"))
    if "causes" in made:
        effects = run.store.open(made["cause_effects"]).json("summary.json") if "cause_effects" in made else None
        result["causes"] = causes_block(run.store.open(made["causes"]).json("summary.json"), effects)
    if lineage.is_on():
        flagged = run.store.open(made["quality"]).json("summary.json")
        lineage.run_made(run, made, flagged["rows"], flagged["counts"])
    announce(run, "run_finished", status="completed", answer=found.answer)
    events.close()
    run.write_result(result)
    publish_markdown("foretune-verdict", verdict_markdown(result, report_link(run)), run.run_id)
    return result


def concept_blocks(run: Run, made: dict[str, ArtifactRef], saes: dict[str, Any] | None, listed: int) -> dict[str, Any]:
    """What is told of concepts: which SAEs read them, each one's summary, and what stands for them without one."""
    blocks: dict[str, Any] = {"sae": saes} if saes and (saes["saes"] or saes["notes"]) else {}
    first, *more = saes["saes"] if saes and saes["saes"] else [{}]
    if "concepts" in made:
        blocks["concepts"] = {**run.store.open(made["concepts"]).json("summary.json"), "sae": first}
    others = []
    for number, sae in enumerate(more, start=2):
        held = run.store.open(made[f"concepts_{number}"])
        up, down = moved_concepts(held.arrow("concepts.parquet").to_pylist())
        moved = {"strengthened": up[:listed], "suppressed": down[:listed]}
        others.append({**held.json("summary.json"), **moved, "sae": sae})
    if others:
        blocks["more_concepts"] = others
    if "residual_change" in made:
        held = run.store.open(made["residual_change"])
        lines = held.arrow("directions.parquet").to_pylist()
        blocks["residual_change"] = residual_block(lines, held.json("summary.json"))
    return blocks


def browser_page(run: Run, report: ArtifactRef) -> str | None:
    """The page of the features beside the report's; None for a run without an SAE."""
    stored = run.store.open(report)
    if FEATURES_PAGE not in stored.names():
        return None
    return stored.text(FEATURES_PAGE).replace(ANY_RUN, run.run_id)


def recorded(run: Run, request: dict[str, Any], made: dict[str, ArtifactRef]) -> RunRecord:
    """What the run's events and the manifests of its artefacts say of the run itself."""
    opened = {name: run.store.open(ref) for name, ref in made.items()}
    manifests = {name: artifact.manifest for name, artifact in opened.items()}
    found = [name for name, ref in made.items() if ref.cached]
    return run_record(run, manifests, found, request["training"]["epochs"], Epoch.of(opened["samples"]))


def result_of(
    run: Run, request: dict[str, Any], made: dict[str, ArtifactRef], found: Findings, record: RunRecord, submitted: int
) -> dict[str, Any]:
    """The contract of result.json."""
    timings: dict[str, float] = {}
    finished = [event for event in read_events(run) if event["type"] == "pass_finished" and is_whole(event)]
    for event in finished:
        timings[event["task"]] = round(timings.get(event["task"], 0.0) + event["seconds"], 3)
    return {
        "run_id": run.run_id,
        "status": "completed",
        "request": request,
        "artifacts": {name: {"uri": ref.uri, "sha256": ref.sha256, "cached": ref.cached} for name, ref in made.items()},
        "signals": found.signals,
        "invariants": {each.name: each.held for each in record.invariants},
        "checks": {each.name: asdict(each) for each in record.invariants},
        "cost": asdict(record.cost),
        "timings": timings,
        "tasks": {"run": len(finished), "cached": submitted - len(finished)},
        "summary": {
            "answer": found.answer,
            "reasons": found.reasons,
            **found.summary,
            "harmful_samples": found.harmful,
            "strengthened": found.strengthened,
            "suppressed": found.suppressed,
            "conditions": [asdict(condition) for condition in found.conditions],
            "worth": asdict(found.worth) if found.worth else None,
        },
    }


def commands(run_id: str, found: Findings) -> list[str]:
    """What to type next."""
    cleaned = found.clean.replace("{run}", run_id)
    return [*([cleaned] if cleaned else []), f"foretune export {run_id} ./predicted"]


def verdict_markdown(result: dict[str, Any], link: str = "") -> str:
    """The first screen as Prefect's UI shows it, with a link to the report; dataset text is kept out of it."""
    summary = result["summary"]
    reasons = "\n".join(f"{number}. {escape(reason)}" for number, reason in enumerate(summary["reasons"], start=1))
    return (
        f"## Should I train? {escape(summary['answer'])}\n\n{reasons}\n\n"
        f"Held-out loss {summary['heldout_loss_base']:.3f} → {summary['heldout_loss_evaluated']:.3f} "
        f"(trusted: {escape(summary['trust'])})\n\n{_axes(result)}"
        f"{ship_markdown(result)}Run {escape(result['run_id'])}{link and f' · {link}'}\n"
    )


def ship_markdown(told: dict[str, Any]) -> str:
    """Ship or not, with what decided; nothing where it was not asked."""
    ship = told.get("ship")
    return f"Ship? **{escape(ship['verdict'])}**: {escape('; '.join(ship['reasons']))}\n\n" if ship else ""


def _axes(result: dict[str, Any]) -> str:
    """What a backtest scored, in a line."""
    axes = result.get("backtest", {}).get("axes", [])
    scored = [f"{escape(axis['axis'])} {axis['simulation']['mean']:.3f}" for axis in axes if axis["simulation"]]
    return f"Against real training: {', '.join(scored)}\n\n" if scored else ""
