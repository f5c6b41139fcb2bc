"""The command `gc`: what no kept run refers to, and this machine's old downloads."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from foretune.flows.commands.counted import Counted
from foretune.flows.commands.options import Json, Quiet, Root, finish, root_given, terminal_for


def gc(
    keep_last: Annotated[int | None, typer.Option("--keep-last", min=0, help="newest runs to keep")] = None,
    keep_days: Annotated[float | None, typer.Option("--keep-days", min=0, help="keep runs this young")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="really delete; without it nothing is touched")] = False,
    root: Root = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find, and with --delete remove, what no kept run refers to."""
    from foretune.flows.commands.garbage import collect_garbage, print_garbage, print_total

    terminal = terminal_for(quiet)
    with Counted(terminal) as counted:
        found = collect_garbage(
            root_given(root), keep_last, keep_days, delete, partial(print_garbage, terminal), counted
        )
    print_total(terminal, found)
    finish(found, as_json)
