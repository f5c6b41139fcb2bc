"""The command `quality`: a dataset vetted by itself, without a model, as a linter does it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from foretune.flows.commands.options import Json, Quiet, finish, terminal_for
from foretune.flows.commands.terminal import Terminal, styled
from foretune.storage.errors import BadInput

Baseline = Annotated[str | None, typer.Option("--baseline", metavar="FILE", help="findings that are known: not shown")]
FIXABLE = "exact copies, encodings, control and zero-width characters, white space at the ends"


def quality(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="rows; local or s3://")],
    rules: Annotated[
        str | None, typer.Option("--rules", metavar="FILE", help="YAML: own, disabled, suppressed, any quality setting")
    ] = None,
    off: Annotated[
        list[str] | None, typer.Option("--disable", metavar="RULE", help="switch a rule off; repeatable")
    ] = None,
    fail_on: Annotated[
        str, typer.Option("--fail-on", help="exit status 3 from this severity on, or never")
    ] = "critical",
    most: Annotated[int, typer.Option("--most", min=0, metavar="N", help="findings of it that are let pass")] = 0,
    baseline: Baseline = None,
    write_baseline: Annotated[
        str | None, typer.Option("--write-baseline", metavar="FILE", help="keep what is found as known")
    ] = None,
    heldout: Annotated[
        list[str] | None, typer.Option("--heldout", metavar="FILE", help="held-out rows, looked for in DATASET")
    ] = None,
    benchmark: Annotated[
        list[str] | None, typer.Option("--benchmark", metavar="FILE", help="looked for in DATASET; repeatable")
    ] = None,
    findings: Annotated[
        str | None, typer.Option("--findings", metavar="FILE", help="every finding, as Parquet")
    ] = None,
    sarif: Annotated[str | None, typer.Option("--sarif", metavar="FILE", help="SARIF 2.1.0")] = None,
    junit: Annotated[str | None, typer.Option("--junit", metavar="FILE", help="JUnit XML")] = None,
    annotations: Annotated[bool, typer.Option("--annotations", help="as GitHub's workflow commands")] = False,
    fix: Annotated[bool, typer.Option("--fix", help=f"with -o: {FIXABLE}")] = False,
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="FILE", help="JSONL file of --fix")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace files that are there, never DATASET")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Vet a dataset without a model; exit status 3 when it holds what --fail-on says."""
    from foretune.flows.quality import Wanted, quality_of, write_reports

    if fail_on not in ("info", "warn", "critical", "never"):
        raise BadInput(f"--fail-on {fail_on}: give info, warn, critical or never")
    if fix != (output is not None):
        raise BadInput("--fix writes another file: give both --fix and -o FILE")
    wanted = Wanted(dataset, rules, tuple(off or ()), baseline, tuple(heldout or ()), tuple(benchmark or ()))
    found = quality_of(wanted, fail_on, most)
    reports = {"baseline": write_baseline, "findings": findings, "sarif": sarif, "junit": junit}
    result = found.result | {"written": write_reports(found, reports, force)}
    terminal = terminal_for(quiet)
    if fix and output is not None:
        from foretune.flows.quality import write_fixed

        result["fixed"] = write_fixed(found, output, force)
    print_quality(terminal, result)
    if annotations:
        from foretune.flows.commands.terminal import write_lines
        from foretune.tasks.quality.reports import annotation_lines

        write_lines(annotation_lines(found.linting.findings, dataset, found.settings))
    finish(result, as_json)
    if result["verdict"] == "fail":
        raise typer.Exit(3)


def print_quality(terminal: Terminal, result: dict[str, Any]) -> None:
    """A line per rule that was found, the worst first, with how far it is to be believed."""
    terminal.say(styled(result["dataset"], "bold"), f"  {result['rows']:,} rows, {result['flagged_rows']:,} flagged")
    for each in result["rules"]:
        where = ", ".join(str(row) for row in each["first_rows"])
        rows = f"rows {where}" if where else "the whole dataset"
        terminal.say(
            f"  {each['severity']:<8} {each['rule']:<22} {each['count']:>7,}  ",
            f"{each['says']} ({rows})",
        )
        if each["measured"]:
            terminal.say(styled(f"{'':<42}{each['measured']}", "dim"))
    if result["known"]:
        terminal.say(f"  {result['known']:,} findings of the baseline are not counted")
    if result["willing_harm"]["count"]:
        terminal.say(f"  {result['willing_harm']['count']:,} rows ask for harm and answer willingly")
    if fixed := result.get("fixed"):
        said = ", ".join(f"{count:,} {what}" for what, count in fixed["changes"].items()) or "nothing to mend"
        terminal.say(f"  {fixed['file']}: {fixed['rows']:,} rows; {said}", whole=True)
    for kind, path in result["written"].items():
        terminal.say(f"  {kind}: {path}", whole=True)
    terminal.say(result["line"])
