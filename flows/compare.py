"""Two saved runs side by side: what a change of the data or of the request did to everything that was predicted."""

from __future__ import annotations

import math
from typing import Annotated, Any

import prefect
from pydantic import Field

from foretune.flows.commands.lineage import SAE, lineage_of, outside_inputs
from foretune.flows.commands.nearest import differing_settings
from foretune.flows.failures import ending_in_one_line
from foretune.storage.display import one_line
from foretune.storage.results import artifact_of, finished_result, task_and_key
from foretune.storage.runs import Run, resolve_run
from foretune.tasks.engine.announcements import escape, name_flow_run, publish_markdown
from foretune.tasks.report.address import report_link
from foretune.tasks.report.comparison import (
    comparison_lines,
    comparison_section,
    comparison_tables,
    first_rows,
    flips_line,
    with_comparison,
)
from foretune.tasks.report.concepts import NOISE
from foretune.tasks.report.facts import method_in_words

NUMBERS = (
    "heldout_loss_base",
    "heldout_loss_predicted",
    "heldout_loss_evaluated",
    "train_loss_base",
    "sharpness",
    "noise_scale_tokens",
    "flagged_rows",
    "samples_that_harm",
    "samples_that_help",
)
LISTED = 20


RunName = Annotated[str, Field(pattern=r"^\S", examples=["helpdesk", "latest", "20261129-0912"])]


@prefect.flow(name="foretune-compare", validate_parameters=True, log_prints=False)
@ending_in_one_line("foretune.comparison.failed")
def compare(run_a: RunName, run_b: RunName = "latest", root: str = "./.foretune") -> dict[str, Any]:
    """Compare two saved runs.

    1. Find them: by id, by its beginning, by a request's name, or `latest`.
    2. Compare everything that was predicted.
    3. Add the comparison to the second run: comparison.json, and a section of its report.

    Args:
        run_a: The earlier run: the name of a request (its newest run), a run's id or its beginning, or `latest`.
        run_b: The later run, whose report gets the comparison; named in the same ways.
        root: The storage root of both, a folder or s3://bucket/prefix.
    """
    a, b = (resolve_run(root, name) for name in (run_a, run_b))
    compared = compare_runs(a, b)
    attach_comparison(b, compared)
    name_flow_run(one_line(f"{a.run_id} and {b.run_id}"))
    publish_markdown("foretune-comparison", f"{comparison_markdown(compared)}\n\n{report_link(b)}\n", b.run_id)
    return compared


def compare_runs(a: Run, b: Run) -> dict[str, Any]:
    """What differs between two runs. BadInput when one of them has no result."""
    results = [finished_result(run) for run in (a, b)]
    summaries = [result["summary"] for result in results]
    inputs = [outside_inputs(lineage_of(run)["artifacts"]) for run in (a, b)]
    apart = concepts_apart(results, inputs)
    ranked_apart = influence_apart(a, b)
    return {
        "a": a.run_id,
        "b": b.run_id,
        "identical": identical(*results),
        "request": differing_settings(results[0].get("request", {}), results[1].get("request", {})),
        "inputs": [
            {"input": name, "a": inputs[0].get(name), "b": inputs[1].get(name)}
            for name in dict.fromkeys([*inputs[0], *inputs[1]])
            if inputs[0].get(name) != inputs[1].get(name)
        ],
        "numbers": {n: {"a": summaries[0].get(n), "b": summaries[1].get(n)} for n in NUMBERS},
        "horizon": {"a": summaries[0].get("horizon"), "b": summaries[1].get("horizon")},
        "signals": _signals(*results),
        "losses_apart": losses_apart(a, b),
        "influence_apart": ranked_apart,
        "samples": _samples(a, b, flips=ranked_apart is None),
        "quality": _quality(a, b),
        "concepts_apart": apart,
        "features": _features(a, b) if apart is None and _all_have(results, "sae_diff") else [],
        "tensors": _tensors(a, b),
        "layers": _layers(a, b),
    }


def identical(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether every artefact of two runs has the same key."""
    keys = [{name: task_and_key(each["uri"]) for name, each in run.get("artifacts", {}).items()} for run in (a, b)]
    return bool(keys[0]) and keys[0] == keys[1]


def concepts_apart(results: list[dict[str, Any]], inputs: list[dict[str, str]]) -> str | None:
    """Why the concepts of two runs are not the same things; None where they are, or where no run has any."""
    had = [result for result in results if "sae_diff" in result["artifacts"]]
    if len(had) == 1:
        return f"run {next(r['run_id'] for r in results if r not in had)} has no SAE"
    before, after = (found.get(SAE) for found in inputs)
    if had and before != after:
        named = " and ".join((digest or "-")[:12] for digest in (before, after))
        return f"the runs read different SAEs, {named}, whose features of one number are different things"
    return None


def influence_apart(a: Run, b: Run) -> str | None:
    """Why the scores of two runs' rows are not the same quantity; None where they are."""
    solved = [run.store.open(artifact_of(run, "influence")).json("solver.json") for run in (a, b)]
    ways = [f"{method_in_words(each)} ({each.get('target')}, {each.get('unit')})" for each in solved]
    measured = [(each.get("ranked_by", each.get("method")), each.get("target"), each.get("unit")) for each in solved]
    return None if measured[0] == measured[1] else f"rows were ranked by {ways[0]} before, by {ways[1]} after"


def losses_apart(a: Run, b: Run) -> str | None:
    """Why the held-out losses of two runs are not those of the same tokens; None where they are."""
    read = (run.store.open(artifact_of(run, "prediction")).manifest.inputs for run in (a, b))
    before, after = (inputs.get("evaluation") for inputs in read)
    if before is None or after is None or before == after:  # an older version did not record them
        return None
    if before["ids"] != after["ids"]:
        return "they are of different held-out rows"
    return "the same held-out rows are encoded differently (model, template or dataset.max_length)"


def attach_comparison(run: Run, compared: dict[str, Any]) -> None:
    """Keep the comparison with `run`, the later of the two: comparison.json, and a section of its report."""
    run.write_comparison(compared)
    try:
        report = run.read_report()
    except FileNotFoundError:  # somebody took it away; comparison.json says the same
        return
    run.write_report(with_comparison(report, comparison_section(compared)))


def comparison_markdown(compared: dict[str, Any]) -> str:
    """Everything that the comparison found as Prefect's UI shows it, foreign text escaped."""
    parts = [
        f"{escape(compared['a'])} before, {escape(compared['b'])} after.",
        *map(escape, comparison_lines(compared)),
        *(f"Rows {word}: {first_rows(compared['samples'][word]) or 'none'}." for word in ("added", "removed")),
        escape(flips_line(compared)),
        *(f"**{each.caption}**\n\n{_table(each.titles, each.rows)}" for each in comparison_tables(compared)),
    ]
    return "\n\n".join(part for part in parts if part)


def _table(titles: list[str], rows: list[tuple[Any, ...]]) -> str:
    """A Markdown table; nothing without rows."""
    lines = [titles, ["---"] * len(titles), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else ""


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else escape(value)


def _all_have(results: list[dict[str, Any]], name: str) -> bool:
    return all(name in result["artifacts"] for result in results)


def _signals(a: dict[str, Any], b: dict[str, Any]) -> dict[str, list[str]]:
    before, after = ({signal["name"] for signal in result["signals"]} for result in (a, b))
    return {"appeared": sorted(after - before), "vanished": sorted(before - after)}


def _rows(run: Run, name: str, file: str) -> list[dict[str, Any]]:
    return run.store.open(artifact_of(run, name)).arrow(file).to_pylist()


def _samples(a: Run, b: Run, flips: bool = True) -> dict[str, Any]:
    """Rows that came and went, and, where scores are comparable, those that flipped between helping and harming."""
    before, after = ({row["sample_id"]: row for row in _rows(run, "influence", "influence.parquet")} for run in (a, b))
    flipped = [
        {
            "sample_id": sample_id,
            "row_a": before[sample_id]["row"],
            "row_b": row["row"],
            "verdict_a": before[sample_id]["verdict"],
            "verdict_b": row["verdict"],
            "score_a": before[sample_id]["score"],
            "score_b": row["score"],
        }
        for sample_id, row in after.items()
        if flips and sample_id in before and {row["verdict"], before[sample_id]["verdict"]} == {"helps", "harms"}
    ]
    return {
        "added": sorted(after[i]["row"] for i in after.keys() - before.keys()),
        "removed": sorted(before[i]["row"] for i in before.keys() - after.keys()),
        "flipped": sorted(flipped, key=lambda row: -abs(row["score_b"] - row["score_a"])),
    }


def _quality(a: Run, b: Run) -> dict[str, dict[str, int]]:
    """Rules whose count of flagged rows differs."""
    counts = [run.store.open(artifact_of(run, "quality")).json("summary.json")["counts"] for run in (a, b)]
    names = sorted({*counts[0], *counts[1]})
    pairs = {name: {"a": counts[0].get(name, 0), "b": counts[1].get(name, 0)} for name in names}
    return {name: pair for name, pair in pairs.items() if pair["a"] != pair["b"]}


def _features(a: Run, b: Run) -> list[dict[str, Any]]:
    """Features whose measured change differs most for its standard error, with what was measured in either run, and
    whether they differ beyond noise; those that do come first."""
    before, after = (_rows(run, "sae_diff", "features.parquet") for run in (a, b))
    labels = {row["feature"]: row["label"] for row in _rows(b, "features", "features.parquet")}
    found = []
    for x, y in zip(before, after, strict=False):
        if x["change"] == y["change"]:
            continue
        errors = [abs(each["change"] / each["z"]) if each["z"] else 0.0 for each in (x, y)]
        spread = math.hypot(*errors)
        measured = {
            f"{name}_{side}": row[name] for side, row in (("a", x), ("b", y)) for name in ("base", "new", "change", "z")
        }
        found.append(
            {
                "feature": y["feature"],
                "label": labels.get(y["feature"]),
                **measured,
                "error_a": errors[0],
                "error_b": errors[1],
                "z": (y["change"] - x["change"]) / spread if spread else None,
                "beyond_noise": bool(spread) and abs(y["change"] - x["change"]) > NOISE * spread,
            }
        )
    return sorted(found, key=lambda row: -abs(row["z"] or 0.0))[:LISTED]


def _tensors(a: Run, b: Run) -> dict[str, list[str]]:
    """Tensors that only one of the runs adapts."""
    before, after = ({row["module"] for row in _rows(run, "prediction", "layers.parquet")} for run in (a, b))
    return {"added": sorted(after - before), "removed": sorted(before - after)}


def _layers(a: Run, b: Run) -> list[dict[str, Any]]:
    """eta_eff and delta norm of every tensor that both runs adapt."""
    before = {row["module"]: row for row in _rows(a, "prediction", "layers.parquet")}
    return [
        {
            "module": row["module"],
            "eta_eff_a": before[row["module"]]["eta_eff"],
            "eta_eff_b": row["eta_eff"],
            "norm_a": before[row["module"]]["norm"],
            "norm_b": row["norm"],
        }
        for row in _rows(b, "prediction", "layers.parquet")
        if row["module"] in before
    ]
