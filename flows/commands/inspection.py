"""The command `inspect`: rows as the trainer sees them, and what would be trained without anybody's wish."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foretune.flows.commands.options import Json, Overrides, Quiet, finish, terminal_for
from foretune.flows.commands.terminal import Terminal, styled
from foretune.storage.errors import BadInput

if TYPE_CHECKING:
    from rich.text import Text

    from foretune.tasks.samples.inspection import Inspection
    from foretune.tasks.samples.supervision import Piece, SeenRow
    from foretune.tasks.samples.trl_check import TrlCheck

SHOWN_ROWS = 3
"""Rows that are shown where none is asked for."""
LONGEST_PIECE = 600
"""Characters of a piece: of a longer one both ends are shown, and how much lies between. `--row` shows it whole."""
NAMED_ROWS = 12
STYLES = {"trained": "green", "masked": "dim", "cut_off": "red strike"}
MARKS = {"trained": ("{+", "+}"), "masked": ("", ""), "cut_off": ("[-", "-]")}
LEGEND = "trained {+so+}, cut off [-so-], the rest is read and not trained on"


def inspect(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="a file, or a folder or glob of its parts")],
    model: Annotated[str, typer.Option("--model", metavar="M", help="hub id or folder; its weights are not opened")],
    row: Annotated[int | None, typer.Option("--row", metavar="N", min=0, help="show this row, whole")] = None,
    flag: Annotated[str | None, typer.Option("--flag", metavar="RULE", help="show the rows that a rule found")] = None,
    check: Annotated[bool, typer.Option("--check", help="compare a sample of rows with the installed TRL")] = False,
    overrides: Overrides = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Rows as the trainer sees them: tokens trained, masked and cut off, and what would be learned by mistake."""
    from foretune.flows.commands.options import say_other_splits
    from foretune.tasks.loading.settings import ModelSettings
    from foretune.tasks.samples.inspection import inspect_dataset

    if not model.strip():
        raise BadInput("--model is empty; give a hub id or a folder")
    if row is not None and flag is not None:
        raise BadInput("--row and --flag: give one of them")
    settings = dataset_settings(dataset, overrides or [])
    found = inspect_dataset(settings, ModelSettings(name_or_path=model))
    say_other_splits(settings)
    wanted = wanted_rows(found, row, flag)
    checked = compared(found, None if row is None else [row]) if check else None
    terminal = terminal_for(quiet)
    print_inspection(terminal, found, wanted, whole=row is not None)
    if checked is not None:
        print_check(terminal, checked)
    finish(as_result(found, wanted, checked, dataset, model, whole=row is not None), as_json)


def dataset_settings(dataset: str, overrides: Sequence[str]) -> Any:
    """The `dataset` part of a request, of which nothing is held out. BadInput in one line for a wrong setting."""
    import pydantic

    from foretune.flows.request import apply_override
    from foretune.flows.settings_files import first_fault
    from foretune.tasks.samples.table import DatasetSettings

    content: dict[str, Any] = {}
    for override in overrides:
        if not override.startswith("dataset."):
            raise BadInput(f"--set {override}: inspect reads a dataset alone; give dataset.NAME=VALUE")
        apply_override(content, override)
    given = content.get("dataset", {}) | {"path": dataset}
    try:
        return DatasetSettings.model_validate(given)
    except pydantic.ValidationError as error:
        raise BadInput(f"--set: {first_fault(error, DatasetSettings, 'dataset')}") from None


def compared(found: Inspection, rows: list[int] | None) -> TrlCheck:
    """The comparison with TRL, of a sample or of these rows."""
    from foretune.tasks.samples.trl_check import check_against_trl

    if found.seen.marks_missing:
        raise BadInput("--check: trl refuses assistant_only_loss without {% generation %} marks, as a run here does")
    return check_against_trl(found.seen, found.folder, rows)


def wanted_rows(found: Inspection, row: int | None, flag: str | None) -> list[SeenRow]:
    """The rows that are to be shown. BadInput for a row that is not there."""
    rows = found.seen.rows
    if row is not None:
        if row >= len(rows):
            raise BadInput(f"--row {row}: the dataset has {len(rows):,} rows, numbered from 0")
        return [rows[row]]
    if flag is not None:
        numbers = set(found.rows_of(flag))
        return [each for each in rows if each.row in numbers]
    return rows


def print_inspection(terminal: Terminal, found: Inspection, wanted: Sequence[SeenRow], whole: bool) -> None:
    """Counts, findings, then rows."""
    counts = found.seen.counts()
    terminal.say(
        f"{len(found.seen.rows):,} rows, {counts['tokens']:,} tokens: {counts['trained']:,} trained, "
        f"{counts['masked']:,} masked, {counts['cut_off']:,} cut off"
    )
    for finding in found.findings:
        number = "every row" if finding.rows is None else f"{_rows(finding.rows)} ({_named(finding.rows)})"
        style = {"critical": "red", "warn": "yellow", "info": "dim"}[finding.severity]
        terminal.say(styled(f"  {finding.severity:<8} {finding.rule}", style), f"  {number}")
        terminal.hanging("           ", f"{finding.says}; {finding.remedy}")
    if not found.findings:
        terminal.say("  nothing found")
    shown = wanted if whole else wanted[:SHOWN_ROWS]
    if shown and not _coloured(terminal):
        terminal.gap()
        terminal.say(LEGEND)
    for row in shown:
        _print_row(terminal, row, found, whole)
    if len(wanted) > len(shown):
        terminal.gap()
        terminal.say(f"{len(shown)} of {len(wanted):,} rows shown; --row N shows another one, whole")


def _rows(rows: Sequence[int]) -> str:
    return "1 row" if len(rows) == 1 else f"{len(rows):,} rows"


def _named(rows: Sequence[int]) -> str:
    more = len(rows) - NAMED_ROWS
    return ", ".join(map(str, rows[:NAMED_ROWS])) + (f" and {more:,} more" if more > 0 else "")


def _coloured(terminal: Terminal) -> bool:
    return terminal.console.is_terminal and terminal.console.color_system is not None


def _print_row(terminal: Terminal, row: SeenRow, found: Inspection, whole: bool) -> None:
    from foretune.tasks.samples.supervision import pieces

    for sequence in row.sequences:
        counts = sequence.counts()
        name = "" if sequence.name == "row" else f" {sequence.name}"
        terminal.gap()
        terminal.say(
            styled(f"row {row.row}{name}", "bold"),
            f"  {counts['trained']:,} trained, {counts['masked']:,} masked, {counts['cut_off']:,} cut off",
        )
        parts = pieces(sequence, found.seen.tokenizer)
        for line in _lines(parts, _coloured(terminal), None if whole else LONGEST_PIECE):
            terminal.say("  ", *line, whole=True)


def _lines(parts: Iterable[Piece], coloured: bool, longest: int | None) -> list[list[Text]]:
    """Pieces as lines of styled text; without colour, marks stand where the treatment changes."""
    from foretune.storage.display import shown

    lines: list[list[Text]] = [[]]
    pieces = list(parts)
    for at, piece in enumerate(pieces):
        style = f"{STYLES[piece.state]}{' bold' if piece.special else ''}" if coloured else ""
        before, after = ("", "") if coloured else MARKS[piece.state]
        before = "" if at and pieces[at - 1].state == piece.state else before
        after = "" if pieces[at + 1 : at + 2] and pieces[at + 1].state == piece.state else after
        text = shown(_folded(piece.text, longest))
        texts = f"{before}{text}{after}".split("\n")
        for number, part in enumerate(texts):
            if number:
                lines.append([])
            if part or number < len(texts) - 1:
                lines[-1] += [styled(part[at : at + 4000], style) for at in range(0, len(part), 4000)]
    return lines


def _folded(text: str, longest: int | None) -> str:
    if longest is None or len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} …({len(text) - 2 * half:,} characters folded)… {text[-half:]}"


def print_check(terminal: Terminal, checked: TrlCheck) -> None:
    """What the comparison with TRL says."""
    terminal.gap()
    compared_rows = f"{len(checked.compared)} rows compared with trl {checked.trl}"
    if not checked.differences:
        terminal.say(f"{compared_rows}: the same tokens and labels")
        return
    terminal.say(styled(f"{compared_rows}: {len(checked.differences)} differ", "red"))
    for difference in checked.differences:
        name = "" if difference.sequence == "row" else f" {difference.sequence}"
        terminal.hanging(f"  row {difference.row}{name}  ", difference.says)


def as_result(
    found: Inspection, wanted: Sequence[SeenRow], checked: TrlCheck | None, dataset: str, model: str, whole: bool
) -> dict[str, Any]:
    """The same for programs; of the rows those that are shown, whole."""
    from dataclasses import asdict

    from foretune.tasks.samples.supervision import pieces

    rows = [
        {
            "row": row.row,
            "form": row.canonical.form,
            "sequences": [
                {
                    "name": sequence.name,
                    **sequence.counts(),
                    "pieces": [asdict(piece) for piece in pieces(sequence, found.seen.tokenizer)],
                }
                for sequence in row.sequences
            ],
        }
        for row in (wanted if whole else wanted[:SHOWN_ROWS])
    ]
    findings = [asdict(finding) for finding in found.findings]
    result = {"dataset": dataset, "model": model, "rows": len(found.seen.rows), "tokens": found.seen.counts()}
    return result | {"findings": findings, "shown": rows, "check": None if checked is None else asdict(checked)}
