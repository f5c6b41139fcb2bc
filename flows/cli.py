"""The `foretune` command. Heavy libraries are imported by the command that needs them: `--help` stays instant."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foretune.flows.commands.ask import ask
from foretune.flows.commands.changes import diff
from foretune.flows.commands.circuit import circuit
from foretune.flows.commands.cleaning import clean
from foretune.flows.commands.collection import gc
from foretune.flows.commands.counted import Counted
from foretune.flows.commands.export import export
from foretune.flows.commands.features import features
from foretune.flows.commands.inspection import inspect
from foretune.flows.commands.last_line import fail, leave, unforeseen
from foretune.flows.commands.options import (
    Evaluate,
    Everything,
    Grid,
    Json,
    Open,
    Overrides,
    Quiet,
    RequestFile,
    Root,
    RunName,
    WithoutCauses,
    WithoutRows,
    check_inputs,
    finish,
    named_run,
    root_given,
    say_other_splits,
    terminal_for,
    whole_numbers,
    with_root,
)
from foretune.flows.commands.quality import quality
from foretune.flows.commands.remaining import planner
from foretune.flows.commands.serve import serve
from foretune.flows.commands.ship import ship
from foretune.flows.commands.terminal import Terminal, styled, take_any_encoding, write_help
from foretune.flows.commands.versions import history
from foretune.flows.environment import prepare
from foretune.flows.interruption import INTERRUPTED, STOPPED, stop_at_signals
from foretune.flows.server import open_prefect
from foretune.flows.temporary_server import temporary_server_kept
from foretune.storage.errors import BadInput

if TYPE_CHECKING:
    from foretune.flows.request import Request
    from foretune.storage.runs import Run

app = typer.Typer(
    name="foretune",
    help="Tell what fine-tuning a language model on a dataset would do, before anything is trained.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from foretune import __version__

        write_help(__version__)
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and exit")
]


@app.callback(invoke_without_command=True)
def without_command(context: typer.Context, version: Version = False) -> None:
    """`foretune` alone asks for help."""
    if context.invoked_subcommand is None:
        write_help(context.get_help())


def started(
    request: str, overrides: list[str] | None, root: str | None, quiet: bool, title: str = "", suffix: str = ""
) -> tuple[Request, Run, Terminal]:
    """The request, a new run of it (its id ends the request's name with `suffix`) and the terminal.

    With a title the terminal says what is about to run. Nothing is written.
    """
    from datetime import UTC, datetime

    open_prefect()
    from foretune.flows.request import load_request
    from foretune.storage.runs import Run, new_run_id

    wanted = load_request(request, with_root(overrides, root))
    run = Run(wanted.runtime.root, new_run_id(datetime.now(UTC), f"{wanted.run_name}{suffix}"))
    terminal = terminal_for(quiet)
    if title:
        terminal.say(styled(title, "bold"), "  ", wanted.line())
    return wanted, run, terminal


@app.command()
def simulate(
    request: RequestFile, overrides: Overrides = None, root: Root = None, as_json: Json = False, quiet: Quiet = False
) -> None:
    """Run the simulation: quality, landscape, influence, prediction, checkpoint, report."""
    from foretune.flows.commands.answer import print_answer
    from foretune.flows.commands.console import LivePasses

    wanted, run, terminal = started(request, overrides, root, quiet, title="foretune")
    check_inputs(wanted, run)
    from foretune.flows.failures import finished
    from foretune.flows.simulate import simulate as flow

    with temporary_server_kept(), LivePasses(run, terminal, planner(wanted)):
        result = finished(run, lambda: flow(wanted, run_id=run.run_id))
    print_answer(terminal, result, run)
    finish(result, as_json)


@app.command()
def plan(
    request: RequestFile, overrides: Overrides = None, root: Root = None, as_json: Json = False, quiet: Quiet = False
) -> None:
    """Run nothing: which tasks are cached, which would run and why, what each costs, and what the real run would."""
    open_prefect()
    from foretune.flows.commands.plan import make_plan, print_plan
    from foretune.flows.request import load_request

    wanted = load_request(request, with_root(overrides, root))
    planned = make_plan(wanted)
    say_other_splits(wanted.dataset)
    print_plan(terminal_for(quiet), planned)
    finish(planned, as_json)


app.command()(export)
app.command()(ask)
app.command()(circuit)


@app.command()
def report(run: RunName, show: Open = False, root: Root = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Print where a run's report lies."""
    from foretune.storage.events import run_status

    found = named_run(run, root)
    place = found.place / "report.html"
    if not place.exists():
        raise BadInput(f"run {found.run_id} has no report ({run_status(found)}); run it again")
    terminal_for(quiet).say(place.uri, whole=True)
    if show:
        typer.launch(place.uri)
    finish({"run_id": found.run_id, "report": place.uri}, as_json)


app.command()(serve)
app.command()(features)


@app.command()
def runs(root: Root = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """List the runs under a storage root."""
    from foretune.flows.commands.listing import list_rows, print_rows

    rows = list_rows(root_given(root))
    print_rows(terminal_for(quiet), rows)
    finish({"root": root_given(root), "runs": rows}, as_json)


app.command()(history)


@app.command()
def compare(run_a: RunName, run_b: RunName, root: Root = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Two saved runs side by side: flipped samples, rows, concepts, layers, losses, signals."""
    open_prefect()
    from foretune.flows.commands.comparison import print_comparison
    from foretune.flows.compare import attach_comparison, compare_runs

    a, b = named_run(run_a, root), named_run(run_b, root)
    compared = compare_runs(a, b)
    attach_comparison(b, compared)
    print_comparison(terminal_for(quiet), compared)
    finish(compared, as_json)


@app.command()
def vet(
    request: RequestFile,
    gate: Annotated[str | None, typer.Option("--gate", metavar="GATE.yaml", help="thresholds; local or s3://")] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", metavar="URI", help="a file, a folder or a glob")] = None,
    overrides: Overrides = None,
    root: Root = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Simulate the newest version of a dataset and apply the gate; exit status 3 when it says no."""
    from foretune.flows.commands.console import LivePasses, print_verdict
    from foretune.flows.gate import Gate, load_gate
    from foretune.storage.versions import newest_version

    wanted, run, terminal = started(request, overrides, root, quiet)
    rules = load_gate(gate) if gate else Gate()
    dataset = newest_version(wanted.dataset_at(dataset))
    versioned = wanted.model_copy(update={"dataset": wanted.dataset.model_copy(update={"path": dataset})})
    check_inputs(versioned, run)
    from foretune.flows.failures import finished
    from foretune.flows.vet import REFUSED, stored_verdict, vetting_plan
    from foretune.flows.vet import vet as flow

    def judged() -> Any:
        state = flow(wanted, rules, dataset, run_id=run.run_id, return_state=True)
        return state.result(raise_on_failure=state.name != REFUSED)

    with temporary_server_kept(), LivePasses(run, terminal, partial(vetting_plan, versioned)):
        verdict = finished(run, judged, partial(stored_verdict, name=wanted.run_name))
    print_verdict(terminal, verdict)
    finish(verdict, as_json)
    if verdict["verdict"] == "fail":
        raise typer.Exit(3)


@app.command()
def backtest(
    request: RequestFile,
    seeds: Annotated[str | None, typer.Option("--seeds", metavar="S,S", help="orders of the rows to train on")] = None,
    retrain: Annotated[int, typer.Option("--retrain", min=0, help="random halves to retrain on; 0 or 4 and more")] = 0,
    overrides: Overrides = None,
    root: Root = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Simulate, really train, and score the simulation on six axes."""
    from foretune.flows.commands.console import LivePasses, print_backtest, print_training_plan

    orders = whole_numbers("--seeds", seeds)
    wanted, run, terminal = started(request, overrides, root, quiet, title="foretune backtest", suffix="-backtest")
    check_inputs(wanted, run)
    from foretune.flows.backtest import backtest as flow
    from foretune.flows.backtest import checked_seeds, training_plan
    from foretune.flows.failures import finished

    orders = checked_seeds(orders or [wanted.training.seed], retrain)
    planned = training_plan(run, wanted, orders, retrain)
    print_training_plan(terminal, planned)
    with temporary_server_kept(), LivePasses(run, terminal, lambda: planned):
        result = finished(run, lambda: flow(wanted, orders, retrain, run_id=run.run_id))
    print_backtest(terminal, result, run)
    finish(result, as_json)


app.command()(ship)
app.command()(clean)
app.command()(quality)
app.command()(diff)


app.command()(inspect)


@app.command()
def watch(run: RunName, root: Root = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Follow the events of a running run, or show those of a finished one."""
    from foretune.flows.commands.console import LivePasses
    from foretune.storage.events import read_events, run_status

    found = named_run(run, root)
    with LivePasses(found, terminal_for(quiet)) as live:
        live.until_finished()
    finish({"run_id": found.run_id, "status": run_status(found), "events": len(read_events(found))}, as_json)


@app.command()
def lineage(
    run: RunName, everything: Everything = False, root: Root = None, as_json: Json = False, quiet: Quiet = False
) -> None:
    """Which inputs made a run: data, model, SAE, versions, code; and which run computed what."""
    from foretune.flows.commands.lineage import lineage_of, print_lineage

    traced = lineage_of(named_run(run, root))
    print_lineage(terminal_for(quiet), traced, everything)
    finish(traced, as_json)


app.command()(gc)


@app.command()
def whatif(
    run: RunName,
    grid: Grid = None,
    evaluate: Evaluate = None,
    without: WithoutRows = None,
    without_causes: WithoutCauses = None,
    root: Root = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Predict other settings, or the run without some rows, from the gradients that it has stored."""
    open_prefect()
    if without or without_causes:
        if grid:
            raise BadInput("whatif: --set and --without are two questions; ask one at a time")
        from foretune.flows.commands.leaving_out import leave_out

        rows, found = whole_numbers("--without", without), named_run(run, root)
        finish(leave_out(terminal_for(quiet), found, rows, without_causes or []), as_json)
        return
    from foretune.flows.commands.whatif import print_planned, print_whatif
    from foretune.flows.commands.whatif import whatif as tried

    terminal = terminal_for(quiet)
    with Counted(terminal) as counted:
        result = tried(named_run(run, root), grid or [], evaluate, counted, partial(print_planned, terminal))
    print_whatif(terminal, result)
    finish(result, as_json)


def main() -> None:
    """Exit status: 0 done, 1 the run failed, 2 bad input, 3 the gate, ship or quality says no, 130 a signal."""
    take_any_encoding()
    stop_at_signals()
    prepare(command_line=True)
    try:
        status = app(standalone_mode=False)  # typer turns its Exit, and an interrupt, into a number
    except BadInput as error:
        fail(str(error), 2)
    except typer.Abort:
        fail("stopped", INTERRUPTED)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a library in Rust is none of Exception's
        usage = getattr(error, "format_message", None)  # a usage error of the command line
        if usage:
            fail(usage(), 2)
        fail(unforeseen(error), 1)
    if status == INTERRUPTED:
        fail(STOPPED, INTERRUPTED)
    leave(status or 0)


if __name__ == "__main__":
    main()
