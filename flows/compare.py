"""Two saved runs side by side: what a change of the data or of the request did to everything that was predicted."""

from __future__ import annotations

from typing import Any

import prefect

from foretune.flows.failures import ending_in_one_line
from foretune.storage.results import artifact_of, finished_result
from foretune.storage.runs import Run, resolve_run
from foretune.tasks.engine.announcements import escape, publish_markdown
from foretune.tasks.report.comparison import comparison_section, first_rows, with_comparison

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


@prefect.flow(name="foretune-compare", validate_parameters=True, log_prints=False)
@ending_in_one_line("foretune.comparison.failed")
def compare(run_a: str, run_b: str = "latest", root: str = "./.foretune") -> dict[str, Any]:
    """Compare two saved runs.

    1. Find them: by id, by its beginning, by a request's name, or `latest`.
    2. Compare everything that was predicted.
    3. Add the comparison to the second run: comparison.json, and a section of its report.
    """
    a, b = (resolve_run(root, name) for name in (run_a, run_b))
    compared = compare_runs(a, b)
    attach_comparison(b, compared)
    publish_markdown("foretune-comparison", comparison_markdown(compared), b.run_id)
    return compared


def compare_runs(a: Run, b: Run) -> dict[str, Any]:
    """Differences of `b` against `a`. BadInput when one of them has no result."""
    results = [finished_result(run) for run in (a, b)]
    summaries = [result["summary"] for result in results]
    return {
        "a": a.run_id,
        "b": b.run_id,
        "numbers": {n: {"a": summaries[0].get(n), "b": summaries[1].get(n)} for n in NUMBERS},
        "horizon": {"a": summaries[0].get("horizon"), "b": summaries[1].get("horizon")},
        "signals": _signals(*results),
        "samples": _samples(a, b),
        "quality": _quality(a, b),
        "features": _features(a, b) if _all_have(results, "features") else [],
        "layers": _layers(a, b),
    }


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
    samples, signals = compared["samples"], compared["signals"]
    numbers = {**compared["numbers"], "horizon": compared["horizon"]}
    parts = [
        _table(
            ["", escape(compared["a"]), escape(compared["b"])],
            [(n.replace("_", " "), p["a"], p["b"]) for n, p in numbers.items()],
        ),
        *(f"Rows {word}: {first_rows(samples[word]) or 'none'}." for word in ("added", "removed")),
        f"Rows flipped between helping and harming: {len(samples['flipped'])}.",
        *(
            f"Signals {word}: {', '.join(map(escape, signals[word]))}."
            for word in ("appeared", "vanished")
            if signals[word]
        ),
        _table(
            ["row before", "row after", "before", "after", "score before", "score after"],
            [
                tuple(row[name] for name in ("row_a", "row_b", "verdict_a", "verdict_b", "score_a", "score_b"))
                for row in samples["flipped"][:LISTED]
            ],
        ),
        _table(["rule", "before", "after"], [(rule, p["a"], p["b"]) for rule, p in compared["quality"].items()]),
        _table(
            ["feature", "score before", "score after", "label"],
            [(row["feature"], row["score_a"], row["score_b"], row["label"] or "") for row in compared["features"]],
        ),
        _table(
            ["tensor", "eta_eff before", "eta_eff after", "delta before", "delta after"],
            [
                tuple(row[name] for name in ("module", "eta_eff_a", "eta_eff_b", "norm_a", "norm_b"))
                for row in compared["layers"]
            ],
        ),
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


def _samples(a: Run, b: Run) -> dict[str, Any]:
    """Rows that came and went, and samples that flipped between helping and harming."""
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
        if sample_id in before and {row["verdict"], before[sample_id]["verdict"]} == {"helps", "harms"}
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
    """Features whose score moved most; empty when the two runs read different SAEs."""
    before, after = (_rows(run, "features", "features.parquet") for run in (a, b))
    if len(before) != len(after):
        return []
    moved = [
        {"feature": y["feature"], "label": y["label"], "score_a": x["score"], "score_b": y["score"]}
        for x, y in zip(before, after, strict=True)
    ]
    return sorted(moved, key=lambda row: -abs(row["score_b"] - row["score_a"]))[:LISTED]


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
