"""What is stored under a root, a line per run."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from foretune.storage.errors import BadInput
from foretune.storage.events import run_status
from foretune.storage.runs import Run, list_runs


def list_rows(root: str) -> list[dict[str, Any]]:
    """One row per run, newest first; runs without a result are listed with their status."""
    return [_row(run) for run in reversed(list_runs(root))]


def _row(run: Run) -> dict[str, Any]:
    row: dict[str, Any] = {"run_id": run.run_id, "status": run_status(run)}
    try:
        result = run.read_result()
    except (FileNotFoundError, BadInput):
        return row
    summary = result.get("summary", {})
    return row | {
        "answer": summary.get("answer"),
        "rows": summary.get("rows"),
        "heldout_loss_base": summary.get("heldout_loss_base"),
        "heldout_loss_evaluated": summary.get("heldout_loss_evaluated"),
        "signals": len(result.get("signals", [])),
    }


def print_rows(console: Console, rows: list[dict[str, Any]]) -> None:
    """A table for people."""
    table = Table(box=None, header_style="bold")
    for column in ("run", "status", "answer", "rows", "held-out loss", "signals"):
        table.add_column(column)
    for row in rows:
        loss = (
            ""
            if row.get("heldout_loss_base") is None
            else (f"{row['heldout_loss_base']:.3f} -> {row['heldout_loss_evaluated']:.3f}")
        )
        cells = [row["run_id"], row["status"], row.get("answer"), row.get("rows"), loss, row.get("signals")]
        table.add_row(*("" if cell is None else str(cell) for cell in cells))
    console.print(table if rows else "no runs here; start one with `foretune simulate`")
