"""The command `diff`: what changed between two versions of a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from foretune.flows.commands.options import Json, Quiet, Root, finish, named_run, terminal_for
from foretune.flows.commands.terminal import Terminal

if TYPE_CHECKING:
    from foretune.storage.runs import Run

SHOWN = 20


def diff(
    old: Annotated[str, typer.Argument(metavar="OLD", help="a version of a dataset")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="a later one")],
    run: Annotated[str | None, typer.Option("--run", metavar="RUN", help="a run whose influence is known")] = None,
    rules: Annotated[str | None, typer.Option("--rules", metavar="FILE", help="as of quality")] = None,
    root: Root = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Rows added, changed and removed between two versions of a dataset, and what is known of them."""
    from foretune.flows.quality import quality_settings
    from foretune.tasks.quality.changes import dataset_changes

    known = influence_of(named_run(run, root)) if run else {}
    changes = dataset_changes(old, new, quality_settings(rules))
    for kind in ("added", "changed", "removed"):
        for row in changes[kind]:
            if row["sample_id"] in known:
                row["influence"] = known[row["sample_id"]]
    print_changes(terminal_for(quiet), changes)
    finish(changes, as_json)


def influence_of(run: Run) -> dict[str, dict[str, Any]]:
    """sample_id -> rank, verdict and score (nats of held-out loss) of a run's rows."""
    from foretune.storage.results import artifact_of

    table = run.store.open(artifact_of(run, "influence")).arrow("influence.parquet")
    return {row["sample_id"]: {name: row[name] for name in ("rank", "verdict", "score")} for row in table.to_pylist()}


def print_changes(terminal: Terminal, changes: dict[str, Any]) -> None:
    """The counts, then a line per row."""
    counted = ", ".join(f"{len(changes[kind]):,} {kind}" for kind in ("added", "changed", "removed"))
    terminal.say(f"{changes['kept']:,} rows kept, {counted}")
    for kind in ("added", "changed", "removed"):
        for row in changes[kind][:SHOWN]:
            flags = ", ".join(row["flags"]) or "no flag"
            had = f" (had {', '.join(row['had']) or 'none'})" if "had" in row else ""
            known = row.get("influence")
            moved = f"; {known['verdict']}, rank {known['rank']}, {known['score']:+.5f} nats" if known else ""
            terminal.say(f"  {kind:<8} row {row['row']:<6} {flags}{had}{moved}")
        if len(changes[kind]) > SHOWN:
            terminal.say(f"  {kind:<8} and {len(changes[kind]) - SHOWN:,} more; --json has them all")
    for rule, counts in changes["counts"].items():
        terminal.say(f"  {rule}: {counts['old']:,} -> {counts['new']:,}")
