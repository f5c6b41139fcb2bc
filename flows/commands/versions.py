"""The versions of a dataset one after the other: what each run of a name said, and what changed between neighbours."""

from __future__ import annotations

import math
from collections import Counter
from typing import Annotated, Any

import typer

from foretune.flows.commands.options import Json, Quiet, Root, finish, root_given, terminal_for
from foretune.flows.commands.terminal import Terminal
from foretune.storage.errors import BadInput, StorageFault
from foretune.storage.ledger import Ledger
from foretune.storage.results import artifact_of
from foretune.storage.runs import Run, list_runs, runs_named
from foretune.tasks.report.numbers import measured, signed

LOSSES = ("heldout_loss_base", "heldout_loss_predicted", "heldout_loss_evaluated")
COMPARED = (*LOSSES, "flagged_rows")
SCORES = ("base", "predicted", "change", "low", "high", "n", "verdict")
"""Of each suite of a version."""
NAMES = 8  # of a root, listed where none fits


def history(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a request's name, vetted or not")],
    last: Annotated[int, typer.Option("--last", min=1, help="versions shown, the newest of the name")] = 10,
    root: Root = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The versions of a dataset one after the other: losses, suites, flags, signals, verdicts, rows that came, went."""
    found = versions_of(root_given(root), name, last)
    found |= kept_page(Run(root_given(root), found["versions"][-1]["run_id"]), found)
    print_versions(terminal_for(quiet), found)
    finish(found, as_json)


def versions_of(root: str, name: str, last: int) -> dict[str, Any]:
    """The last finished runs of a name, the oldest first; nothing is written. BadInput where there is none."""
    ledger, runs = Ledger(root, name), []
    for run in runs_named(root, name):
        try:
            runs.append((run, run.read_result()))
        except (FileNotFoundError, BadInput):  # not ended, or no result of ours
            continue
        if len(runs) > last:  # one more, whose rows the first one shown is compared with
            break
    if not runs:
        known = sorted({run.name for run in list_runs(root)})
        listed = f"it has {', '.join(known[:NAMES])}" if known else "it has no runs"
        raise BadInput(f"history {name!r}: no finished run of this name under {root}; {listed}")
    verdicts = {verdict["run_id"]: verdict for verdict in ledger.verdicts()}
    accepted = ledger.accepted()
    ids: Counter[str] | None = None
    versions: list[dict[str, Any]] = []
    for run, result in reversed(runs):
        before, ids = ids, _sample_ids(run)
        versions.append(_version(run, result, verdicts.get(run.run_id), accepted) | _row_changes(before, ids))
    return {
        "name": name,
        "root": root,
        "accepted": accepted and accepted["run_id"],
        "versions": versions[-last:],
    }


def _version(
    run: Run, result: dict[str, Any], verdict: dict[str, Any] | None, accepted: dict[str, Any] | None
) -> dict[str, Any]:
    summary = result.get("summary", {})
    numbers = {name: summary.get(name) for name in COMPARED}
    base = accepted["summary"] if accepted else {}
    deltas = {
        name: value - base[name] for name, value in numbers.items() if value is not None and base.get(name) is not None
    }
    request = result.get("request", {}).get("dataset", {})
    return {
        "run_id": run.run_id,
        "dataset": verdict["dataset"] if verdict else request.get("path"),
        "digest": verdict.get("digest") if verdict else None,
        "rows": summary.get("rows"),
        **numbers,
        "answer": summary.get("answer"),
        "signals": [signal["name"] for signal in result.get("signals", [])],
        "verdict": verdict and verdict["verdict"],
        "accepted": accepted is not None and accepted["run_id"] == run.run_id,
        "against_accepted": deltas,
        **suites_of(result, base),
    }


def suites_of(result: dict[str, Any], accepted: dict[str, Any]) -> dict[str, Any]:
    """Each suite's scores with how far it is from the accepted run's, and the verdict on shipping; None where a run
    is older than they are. Suites whose base scores differ were asked other items or another model: not compared."""
    told = result.get("behaviour")
    suites = {each["suite"]: {name: each.get(name) for name in SCORES} for each in told} if told else None
    for name, suite in (suites or {}).items():
        base, predicted = (accepted.get(f"behaviour.{name}.{side}") for side in ("base", "predicted"))
        same = base is not None and predicted is not None and math.isclose(base, suite["base"], rel_tol=1e-6)
        suite["against_accepted"] = suite["predicted"] - predicted if same else None
    return {"suites": suites, "ship": (result.get("ship") or {}).get("verdict")}


def _sample_ids(run: Run) -> Counter[str] | None:
    """How often each row is there; None where the table is gone."""
    try:
        table = run.store.open(artifact_of(run, "samples")).arrow("samples.parquet", columns=["sample_id"])
    except (BadInput, StorageFault, FileNotFoundError):
        return None
    return Counter(table["sample_id"].to_pylist())


def _row_changes(before: Counter[str] | None, now: Counter[str] | None) -> dict[str, int | None]:
    """Rows that came, went and stayed since the version before; None where there is none, or its table is gone."""
    if before is None or now is None:
        return dict.fromkeys(("rows_added", "rows_removed", "rows_kept"))
    return {
        "rows_added": (now - before).total(),
        "rows_removed": (before - now).total(),
        "rows_kept": (now & before).total(),
    }


def kept_page(run: Run, found: dict[str, Any]) -> dict[str, Any]:
    """history.html in the folder of the newest version; a root that cannot be written has none."""
    from foretune.tasks.report.versions_page import versions_page

    try:
        run.write_history(versions_page(found))
    except (BadInput, StorageFault, OSError):
        return {"page": None}
    return {"page": (run.place / "history.html").uri}


def print_versions(terminal: Terminal, found: dict[str, Any]) -> None:
    """A line per version, the accepted one marked, and below it what changed."""
    for version in found["versions"]:
        losses = [version[name] for name in LOSSES]
        base, predicted, evaluated = ("-" if loss is None else f"{loss:.3f}" for loss in losses)
        said = f"  {version['verdict']}" if version["verdict"] else ""
        standing = "  accepted" if version["accepted"] else ""
        terminal.say(f"{version['run_id']}{said}{standing}", whole=True)
        terminal.say(
            f"  {version['rows'] if version['rows'] is not None else '-'} rows{_changed_rows(version)}; "
            f"held-out loss {base} -> {predicted} predicted, {evaluated} evaluated; "
            f"{version['flagged_rows'] if version['flagged_rows'] is not None else '-'} rows flagged"
        )
        terminal.hanging("  suites  ", suites_in_words(version["suites"]))
        terminal.say(f"  ship    {version['ship'] or '-'}")
        if version["signals"]:
            terminal.say(f"  signals: {', '.join(version['signals'])}")
        if version["against_accepted"] and not version["accepted"]:
            changes = (f"{name.replace('_', ' ')} {value:+.3g}" for name, value in version["against_accepted"].items())
            terminal.say(f"  against the accepted {found['accepted']}: {', '.join(changes)}")
        if moved := suites_against(version["suites"]) if not version["accepted"] else "":
            terminal.hanging("  suites against the accepted: ", moved)
    if found["page"]:
        terminal.say(found["page"], whole=True)


def suites_in_words(suites: dict[str, Any] | None) -> str:
    """Base, predicted and change of every suite, its verdict where it moved; a dash where none was asked."""
    told = []
    for name, each in (suites or {}).items():
        moved = each["verdict"] if each["verdict"] in ("better", "worse", "changed") else ""
        scores = f"{measured(each['base'])} -> {measured(each['predicted'])} ({signed(each['change'])})"
        told.append(" ".join(filter(None, (name.replace("_", " "), scores, moved))))
    return ", ".join(told) or "-"


def suites_against(suites: dict[str, Any] | None) -> str:
    """How far the predicted score of each suite is from the accepted run's."""
    compared = {name: each["against_accepted"] for name, each in (suites or {}).items()}
    return ", ".join(f"{name.replace('_', ' ')} {signed(d)}" for name, d in compared.items() if d is not None)


def _changed_rows(version: dict[str, Any]) -> str:
    if version["rows_kept"] is None:
        return ""
    return f" ({version['rows_added']} added, {version['rows_removed']} removed, {version['rows_kept']} kept)"
