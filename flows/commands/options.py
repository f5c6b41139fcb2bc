"""What several commands take, and how it is read."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foretune.storage.errors import BadInput

if TYPE_CHECKING:
    from rich.console import Console

    from foretune.flows.request import Request
    from foretune.storage.runs import Run

RequestFile = Annotated[str, typer.Argument(metavar="REQUEST.yaml", help="the request; local or s3://")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="run id, its beginning, a request's name, or latest")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="change a setting; repeatable")]
Root = Annotated[str | None, typer.Option("--root", help="storage root: a folder or s3://bucket/prefix")]
Json = Annotated[bool, typer.Option("--json", help="the last line of stdout is one JSON object")]
Quiet = Annotated[bool, typer.Option("--quiet", help="print nothing but errors (and the JSON object)")]

DEFAULT_ROOT = "./.foretune"


def check_inputs(request: Request, run: Run) -> None:
    """Find bad input, a missing bucket of the root's too, before an engine is started for it."""
    from foretune.flows.dag.costs import checked_sources

    run.place.exists()
    checked_sources(request)


def whole_numbers(option: str, text: str | None) -> list[int] | None:
    """`1,2,3` as numbers; BadInput, naming the option, for anything else."""
    try:
        return [int(part) for part in text.split(",")] if text else None
    except ValueError:
        raise BadInput(f"{option} {text}: not whole numbers with commas between them, as in 1,2,3") from None


def with_root(overrides: list[str] | None, root: str | None) -> list[str]:
    """The overrides, the storage root's among them."""
    return [*(overrides or []), *([f"runtime.root={root}"] if root else [])]


def named_run(name: str, root: str | None) -> Run:
    """The run that a user means."""
    from foretune.storage.runs import resolve_run

    return resolve_run(root or DEFAULT_ROOT, name)


def console_for(quiet: bool) -> Console:
    """The terminal; silent when asked to be."""
    from rich.console import Console

    return Console(quiet=quiet, highlight=False)


def finish(result: dict[str, Any], as_json: bool) -> None:
    """The result as the last line of stdout, for programs."""
    if as_json:
        sys.stdout.flush()
        print(json.dumps(result, ensure_ascii=False, default=str), flush=True)
