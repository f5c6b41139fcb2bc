"""What is stored under a root, a line per run."""

from __future__ import annotations

from typing import Any

from foretune.flows.commands.terminal import Terminal
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


def print_rows(terminal: Terminal, rows: list[dict[str, Any]]) -> None:
    """A table for people."""
    if not rows:
        terminal.say("no runs here; start one with `foretune simulate`")
        return
    lines: list[tuple[Any, str]] = []
    for row in rows:
        losses = [row.get(name) for name in ("heldout_loss_base", "heldout_loss_evaluated")]
        loss = "" if losses[0] is None else " -> ".join("-" if each is None else f"{each:.3f}" for each in losses)
        cells = [row["run_id"], row["status"], row.get("answer"), row.get("rows"), loss, row.get("signals")]
        lines.append((["" if cell is None else cell for cell in cells], ""))
    terminal.table(("run", "status", "answer", "rows", "held-out loss", "signals"), lines)
