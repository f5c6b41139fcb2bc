"""The command `clean`: the dataset of a run without some of its rows."""

from __future__ import annotations

from typing import Annotated

import typer

from foretune.flows.commands.options import Json, Quiet, Root, RunName, finish, named_run, terminal_for, whole_numbers
from foretune.flows.commands.terminal import write_notice


def clean(
    run: RunName,
    output: Annotated[str, typer.Option("-o", "--output", metavar="FILE", help="JSONL file to write")],
    drop_worst: Annotated[int, typer.Option("--drop-worst", metavar="N", min=0, help="rows of the N worst ranks")] = 0,
    drop_harmful: Annotated[int, typer.Option("--drop-harmful", metavar="N", min=0, hidden=True)] = 0,
    drop_flagged: Annotated[list[str] | None, typer.Option("--drop-flagged", metavar="RULE", help="repeatable")] = None,
    drop_rows: Annotated[str | None, typer.Option("--drop-rows", metavar="N,N", help="rows by their number")] = None,
    drop_causes: Annotated[
        list[str] | None,
        typer.Option("--drop-causes", metavar="SUITE", help="rows that erode a watched suite; repeatable"),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="replace FILE, never the dataset itself; drop all rows")
    ] = False,
    root: Root = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the dataset of a run without the rows that rank worst by influence, or that carry a flag."""
    from foretune.flows.commands.cleaned_rows import print_cleaned, write_cleaned

    found = named_run(run, root)
    numbers = whole_numbers("--drop-rows", drop_rows)
    cleaned = write_cleaned(
        found, output, max(drop_worst, drop_harmful), drop_flagged or [], force, numbers, drop_causes or []
    )
    if drop_harmful:  # said of what was done: a fault's line stands alone
        write_notice("--drop-harmful is now --drop-worst: it drops the worst ranks, not what reads as harmful")
    print_cleaned(terminal_for(quiet), cleaned, output)
    finish(
        {"run_id": found.run_id, "file": output, "rows": len(cleaned["kept"]), "dropped": cleaned["dropped"]}, as_json
    )
