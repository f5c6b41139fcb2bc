"""A run's dataset without some of its samples."""

from __future__ import annotations

from typing import Any

from foretune.flows.commands.terminal import Terminal
from foretune.storage.datasets import dataset_digest, read_rows
from foretune.storage.drafts import json_line
from foretune.storage.errors import BadInput
from foretune.storage.outputs import checked_output, write_output
from foretune.storage.results import artifact_of
from foretune.storage.runs import Run

MISMATCH = "answer_mismatch"  # of the prompt gain; every other flag is quality's


def cleaned_rows(
    run: Run,
    drop_worst: int,
    drop_flagged: list[str],
    drop_rows: list[int] | None = None,
    drop_causes: list[str] | None = None,
) -> dict[str, Any]:
    """The dataset's rows without the samples of the worst ranks, those that carry a flag, those of given numbers and
    those that erode a watched suite.

    Returns the kept rows and the dropped row numbers with the reason. BadInput when the dataset's file is no
    longer the one that the run read, a flag is unknown or a row is none of its training rows.
    """
    uri = dataset_of(run)
    samples = artifact_of(run, "samples")
    manifest = run.store.manifest(samples.task, samples.key)
    if manifest is None or _source_digest(manifest.inputs) != dataset_digest(uri):
        raise BadInput(f"{uri}: not the bytes that run {run.run_id} read; simulate it again first")
    dropped: dict[int, list[str]] = {}
    ranked = run.store.open(artifact_of(run, "influence")).arrow("influence.parquet").to_pylist()
    for row in ranked[:drop_worst]:
        dropped.setdefault(row["row"], []).append(f"rank {row['rank']}, {row['verdict']}, {row['score']:+.5f} nats")
    quality = run.store.open(artifact_of(run, "quality"))
    known = [*quality.json("summary.json")["counts"], MISMATCH]
    for flag in drop_flagged:
        if flag not in known:
            raise BadInput(f"--drop-flagged {flag}: no such rule; known are {', '.join(sorted(known))}")
    for row in quality.arrow("samples.parquet", columns=["row", "flags"]).to_pylist():
        for flag in set(row["flags"]) & set(drop_flagged):
            dropped.setdefault(row["row"], []).append(f"flagged {flag}")
    if MISMATCH in drop_flagged:
        gains = run.store.open(artifact_of(run, "prompt_gain")).arrow("prompt_gain.parquet").to_pylist()
        for row in gains:
            if row["mismatched"]:
                dropped.setdefault(row["row"], []).append(f"{MISMATCH}, gain {row['gain']:+.2f} nats")
    _drop_named(run, drop_rows or [], dropped)
    for suite in drop_causes or []:
        for row in causes_of(run, suite, "--drop-causes"):
            dropped.setdefault(row["row"], []).append(f"moves {suite} by {row['score']:+.5f}, z {row['z']:+.1f}")
    rows = read_rows(uri)
    return {
        "kept": [row for number, row in enumerate(rows) if number not in dropped],
        "dropped": [{"row": number, "why": "; ".join(reasons)} for number, reasons in sorted(dropped.items())],
    }


def _drop_named(run: Run, numbers: list[int], dropped: dict[int, list[str]]) -> None:
    """Add rows that a person names; BadInput for one that the run did not train on."""
    if not numbers:
        return
    table = run.store.open(artifact_of(run, "samples")).arrow("samples.parquet", columns=["row"])
    unknown = sorted(set(numbers) - set(table["row"].to_pylist()))
    if unknown:
        raise BadInput(f"--drop-rows {unknown[0]}: run {run.run_id} has no such training row; the report lists them")
    for number in numbers:
        dropped.setdefault(number, []).append("named")


def causes_of(run: Run, suite: str, option: str) -> list[dict[str, Any]]:
    """The rows that stand out on a watched suite; BadInput for one that the run did not watch."""
    try:
        summary = run.store.open(artifact_of(run, "causes")).json("summary.json")
    except BadInput:
        raise BadInput(
            f"{option} {suite}: run {run.run_id} watched no suite; set influence.watch and simulate"
        ) from None
    watched = {each["suite"]: each["rows"] for each in summary["suites"]}
    if suite not in watched:
        raise BadInput(f"{option} {suite}: run {run.run_id} did not watch it; it watched {', '.join(watched)}")
    return watched[suite]


def _source_digest(inputs: dict[str, Any]) -> Any:
    source = inputs.get("source")
    return source.get("digest") if isinstance(source, dict) else None


def write_cleaned(
    run: Run,
    output: str,
    drop_worst: int,
    drop_flagged: list[str],
    force: bool = False,
    drop_rows: list[int] | None = None,
    drop_causes: list[str] | None = None,
) -> dict[str, Any]:
    """`cleaned_rows`, the kept ones written to `output`. BadInput for the dataset itself, under whatever name, and,
    without `force`, for a file that exists or when no row would be left."""
    source = dataset_of(run)
    checked_output(output, source, force)  # before anything is read
    cleaned = cleaned_rows(run, drop_worst, drop_flagged, drop_rows, drop_causes)
    if not cleaned["kept"] and not force:
        raise BadInput(f"all {len(cleaned['dropped'])} rows would be dropped; drop fewer, or say --force")
    write_rows(cleaned["kept"], output, source, force)
    return cleaned


def print_cleaned(terminal: Terminal, cleaned: dict[str, Any], output: str) -> None:
    """Each row that was dropped with the reason, and how many are left."""
    for row in cleaned["dropped"]:
        terminal.hanging(f"  row {row['row']}  ", row["why"])
    terminal.say(f"{len(cleaned['kept'])} rows in {output}, {len(cleaned['dropped'])} dropped", whole=True)


def dataset_of(run: Run) -> str:
    """Where the rows lay that a run read. BadInput when the run never wrote its request."""
    from foretune.flows.request import stored_request

    try:
        return stored_request(run).dataset.path
    except FileNotFoundError:
        raise BadInput(f"run {run.run_id} has no request; simulate it again") from None


def write_rows(rows: list[dict[str, Any]], uri: str, source: str = "", force: bool = False) -> None:
    """One JSON object a line, local or on S3; BadInput as for `checked_output`."""
    text = "".join(map(json_line, rows))
    write_output(checked_output(uri, source, force), text.encode(errors="surrogatepass"))
