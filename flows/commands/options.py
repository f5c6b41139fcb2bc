"""What several commands take, and how it is read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foretune.flows.server import check_server
from foretune.storage.errors import BadInput
from foretune.storage.roots import root_to_read

if TYPE_CHECKING:
    from foretune.flows.commands.terminal import Terminal
    from foretune.flows.request import Request
    from foretune.storage.runs import Run
    from foretune.tasks.samples.table import DatasetSettings

RequestFile = Annotated[str, typer.Argument(metavar="REQUEST.yaml", help="the request; local or s3://")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="run id, its beginning, a request's name, or latest")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="change a setting; repeatable")]
Root = Annotated[str | None, typer.Option("--root", help="storage root: a folder or s3://bucket/prefix")]
Open = Annotated[bool, typer.Option("--open", help="open it in the browser")]
Json = Annotated[bool, typer.Option("--json", help="the last line of stdout is one JSON object")]
Quiet = Annotated[bool, typer.Option("--quiet", help="print nothing but errors (and the JSON object)")]
Everything = Annotated[bool, typer.Option("--all", help="every artefact with what it read")]
Grid = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C,D", help="values to try; repeatable")]
Evaluate = Annotated[
    bool | None, typer.Option("--evaluate/--no-evaluate", help="forward passes on every setting, or on none")
]
WithoutRows = Annotated[str | None, typer.Option("--without", metavar="N,N", help="predict the run without these rows")]
WithoutCauses = Annotated[
    list[str] | None,
    typer.Option("--without-causes", metavar="SUITE", help="without the rows that erode this suite; repeatable"),
]

DEFAULT_ROOT = "./.foretune"


def check_inputs(request: Request, run: Run) -> None:
    """Find bad input, a missing bucket of the root's too, before an engine is started for it."""
    from foretune.flows.dag.costs import checked_sources

    root_to_read(run.root)
    checked_sources(request)
    say_other_splits(request.dataset)
    check_server()


def say_other_splits(dataset: DatasetSettings) -> None:
    """Once, what a folder holds beside the training rows, which are all that is read of it."""
    from foretune.flows.commands.terminal import write_notice
    from foretune.tasks.samples.unread import unread_splits

    others = unread_splits(dataset)
    if others:
        write_notice(
            f"{dataset.path}: its training rows are read, not {' and '.join(others)}; to predict the loss on those, "
            "set dataset.heldout.path to the same folder"
        )


def whole_numbers(option: str, text: str | None) -> list[int] | None:
    """`1,2,3` as numbers; BadInput, naming the option, for anything else."""
    try:
        return [int(part) for part in text.split(",")] if text else None
    except ValueError:
        raise BadInput(f"{option} {text}: not whole numbers with commas between them, as in 1,2,3") from None


def with_root(overrides: list[str] | None, root: str | None) -> list[str]:
    """The overrides, the storage root's among them: quoted, as its characters may mean something in YAML."""
    return [*(overrides or []), *([f"runtime.root={json.dumps(root_given(root))}"] if root is not None else [])]


def root_given(root: str | None) -> str:
    """The storage root; BadInput for an empty one, which is a shell's variable that is not set."""
    if root is not None and not root.strip():
        raise BadInput("--root is empty; give a folder or s3://bucket/prefix")
    return DEFAULT_ROOT if root is None else root


def named_run(name: str, root: str | None) -> Run:
    """The run that a user means."""
    from foretune.storage.runs import resolve_run

    return resolve_run(root_given(root), name)


def terminal_for(quiet: bool) -> Terminal:
    """The terminal; silent when asked to be."""
    from foretune.flows.commands.terminal import Terminal

    return Terminal(quiet)


def finish(result: dict[str, Any], as_json: bool) -> None:
    """The result as the last line of stdout, for programs."""
    if as_json:
        from foretune.flows.commands.terminal import write_json

        write_json(result)
