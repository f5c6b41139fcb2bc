"""The command `features`: what every feature of the SAE does on a run's rows, as a list, one by one, or as a page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from foretune.flows.commands.options import Json, Quiet, Root, RunName, finish, named_run, terminal_for
from foretune.flows.commands.serve import serve_report
from foretune.flows.commands.terminal import Terminal, styled
from foretune.storage.errors import BadInput
from foretune.storage.runs import Run

if TYPE_CHECKING:
    from foretune.tasks.report.feature_table import FeatureTable

LISTED = 20
"""Features of a list; the page and the Parquet file have all."""
PUSHING = 5
"""Rows at either end that push a feature most."""
PARQUET, HTML = ".parquet", ".html"


def features(
    run: RunName,
    search: Annotated[
        str | None, typer.Option("--search", metavar="TEXT", help="by name, promoted or firing token, or number")
    ] = None,
    index: Annotated[
        int | None,
        typer.Option(
            "--index", metavar="N", min=0, help="one feature, and the rows that push it (a forward, a backward)"
        ),
    ] = None,
    served: Annotated[bool, typer.Option("--serve", help="show the page to this machine alone, until stopped")] = False,
    output: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="write the page (.html) or the table (.parquet)")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace FILE")] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="of --serve; 0: any that is free")] = 0,
    root: Root = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Look through the SAE's features on a run's rows: names, contexts, changes, neighbours, rows that push one."""
    if search is not None and index is not None:
        raise BadInput("features: --search and --index are two questions; ask one at a time")
    found = named_run(run, root)
    table, terminal = stored_table(found), terminal_for(quiet)
    if index is not None:
        result = one_feature(found, table, index)
        print_feature(terminal, result)
    else:
        result = listed_features(table, search or "")
        print_features(terminal, result)
    result = {"run_id": found.run_id, **result}
    if output is not None:
        result["file"] = written(found, table, output, force)
        terminal.say(result["file"], whole=True)
    if not served:
        finish(result, as_json)
        return
    from foretune.tasks.report.feature_page import feature_page

    def ready(address: str) -> None:
        anchor = "" if index is None else f"#feature-{index}"
        terminal.say(f"{address}{anchor}  (Ctrl-C stops it)", whole=True)
        finish({**result, "address": f"{address}{anchor}"}, as_json)

    serve_report(found, port, ready, feature_page(table, found.run_id))


def stored_table(run: Run) -> FeatureTable:
    """The table of a finished run's artefacts. BadInput for a run without an SAE, or of before they were stored."""
    from foretune.flows.request import stored_request
    from foretune.storage.results import artifact_of, finished_result
    from foretune.tasks.report.feature_table import READ, feature_table

    made = finished_result(run).get("artifacts", {})
    missing = [name for name in READ if name not in made]
    if missing:
        reason = "is of before features could be browsed; simulate again" if "concepts" in made else "has no SAE"
        raise BadInput(f"run {run.run_id} {reason} (no {missing[0]} is stored)")
    sae = stored_request(run).sae
    opened = {name: run.store.open(artifact_of(run, name)) for name in READ}
    return feature_table(opened, sae.neuronpedia_id if sae else None)


def listed_features(table: FeatureTable, search: str) -> dict[str, Any]:
    """The first features that the text finds, what moved first, and how many there are."""
    from foretune.tasks.report.feature_table import found_places, short_record

    places = found_places(table, search)
    records = [short_record(table, place) for place in places[:LISTED]]
    return {"search": search, "count": len(places), "total": len(table), "features": records}


def one_feature(run: Run, table: FeatureTable, number: int) -> dict[str, Any]:
    """Everything of one feature, and the training rows that push it most. BadInput for one that does not fire."""
    from foretune.tasks.report.feature_table import feature_record

    places = table.rows.index[table.rows["feature"] == number].tolist()
    if not places:
        raise BadInput(f"--index {number}: no such feature fires on the rows of run {run.run_id}; --search lists those")
    return {**feature_record(table, places[0]), **pushed_by(run, number)}


def pushed_by(run: Run, number: int) -> dict[str, Any]:
    """`rows_up` and `rows_down`, which push the feature most; without them, and why, where that cannot be told."""
    from foretune.flows.commands.history import History
    from foretune.flows.commands.plan import Planned
    from foretune.flows.commands.whatif import content_of
    from foretune.flows.dag.costs import checked_sources
    from foretune.flows.dag.wiring import Wiring
    from foretune.flows.request import parse_request
    from foretune.tasks.influence.pushes import pushing_rows

    request = parse_request(content_of(run), where=f"run {run.run_id}")
    try:
        wiring = Wiring(Planned(run, History(run.store)), request, checked_sources(request))
    except BadInput as reason:
        return {"rows_up": [], "rows_down": [], "rows_missing": str(reason)}
    train, sae = wiring.landscape("train"), wiring.sources.sae
    if sae is None or not all(each.uri for each in (*train.blocks, train.gradient)):
        missing = "its gradients are not stored, or its dataset, model or code have changed since"
        return {"rows_up": [], "rows_down": [], "rows_missing": missing}
    pushed = pushing_rows(
        run,
        number,
        wiring.tables["train"],
        train.blocks,
        train.gradient,
        wiring.evaluation_rows(),
        wiring.model,
        sae,
        request.adapter,
        request.training,
        request.model.dtype,
    )
    if pushed is None:
        missing = "its rows were not kept one by one (LoRA, landscape.row_gradients)"
        return {"rows_up": [], "rows_down": [], "rows_missing": missing}
    up = [each for each in pushed[:PUSHING] if each["push"] > 0]
    down = [each for each in reversed(pushed[-PUSHING:]) if each["push"] < 0]
    return {"rows_up": up, "rows_down": down, "rows_missing": None}


def written(run: Run, table: FeatureTable, output: str, force: bool) -> str:
    """Write the page or the table, by the name's end; BadInput for another."""
    from foretune.storage.outputs import checked_output, write_output
    from foretune.tasks.report.feature_page import feature_page
    from foretune.tasks.report.feature_rows import parquet_bytes

    kind = next((kind for kind in (PARQUET, HTML) if output.lower().endswith(kind)), None)
    if kind is None:
        raise BadInput(f"--out {output}: end the name in {HTML} for the page or {PARQUET} for the table")
    place = checked_output(output, "", force)
    write_output(place, feature_page(table, run.run_id).encode() if kind == HTML else parquet_bytes(table))
    return place.uri


def print_features(terminal: Terminal, result: dict[str, Any]) -> None:
    """A line per feature."""
    from foretune.tasks.report.concepts import UNCLEAR, firing_words

    asked = f" hold {result['search']!r}" if result["search"] else ""
    terminal.say(f"{result['count']:,} of {result['total']:,} features that fire{asked}; what moved comes first")
    lines: list[tuple[Any, str]] = []
    for each in result["features"]:
        z = "-" if each["z"] is None else f"{each['z']:+.1f}"
        cells = (each["feature"], each["label"] or UNCLEAR, f"{each['change']:+.3g}", z, firing_words(each))
        lines.append((cells, "" if each["verdict"] == "not beyond noise" else "bold"))
    if lines:
        terminal.table(("feature", "name", "change", "z", ""), lines)


def print_feature(terminal: Terminal, one: dict[str, Any]) -> None:
    """One feature: its figures, what it favours, its contexts, the rows that push it."""
    from foretune.tasks.report.concepts import UNCLEAR, firing_words

    terminal.say(styled(one["label"] or UNCLEAR, "bold"), f"  feature {one['feature']}, name from {one['named']}")
    terminal.say(f"{one['verdict']}  change {_signed(one['change'])} (standard error {_plain(one['error'])}, z "
                 f"{_signed(one['z'])}, among null deltas {_signed(one['z_null'])}); {firing_words(one)}")  # fmt: skip
    for name in ("promoted", "suppressed"):
        terminal.hanging(f"{name:<12}", " · ".join(one[name]) or "-")
    near = ", ".join(
        f"{each['feature']} {each['label'] or UNCLEAR} ({each['cosine']:.2f})" for each in one["neighbours"]
    )
    terminal.hanging(f"{'neighbours':<12}", near or "none that fires")
    for context in one["contexts"]:
        where = "held-out" if context["row"] is None else f"row {context['row']}"
        figures = f"{context['base']:.3g}, predicted {context['new']:.3g}"
        terminal.hanging(f"{where:<12}", f"{figures}: {' '.join(context['text'].split())}")
    if one["rows_missing"]:
        terminal.say(f"Rows that push it: not told; {one['rows_missing']}")
    for name, title in (("rows_up", "raised by"), ("rows_down", "lowered by")):
        rows = ", ".join(f"row {each['row']} ({each['push']:+.2g})" for each in one[name])
        if rows:
            terminal.hanging(f"{title:<12}", rows)


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3g}"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
