"""The differences of two runs in the terminal."""

from __future__ import annotations

from typing import Any

from foretune.flows.commands.terminal import Terminal, styled
from foretune.storage.display import one_line
from foretune.tasks.report.comparison import comparison_lines, comparison_tables, first_rows, flips_line
from foretune.tasks.report.numbers import plain

LISTED = 8  # rows of one table
WHOLE = ("Numbers", "Settings that differ", "Inputs that differ")
CELL = 60  # characters


def print_comparison(terminal: Terminal, compared: dict[str, Any]) -> None:
    """The lines and tables of the report's section, the most telling rows of each."""
    terminal.say(f"{compared['a']} before, {compared['b']} after", whole=True)
    for line in comparison_lines(compared):
        terminal.say(line)
    samples = compared["samples"]
    for word in ("added", "removed"):
        terminal.say(f"Rows {word}: {first_rows(samples[word]) or 'none'}")
    terminal.say(flips_line(compared))
    for table in comparison_tables(most_telling(compared)):
        terminal.gap()
        listed = len(table.rows) if table.caption in WHOLE else LISTED
        more = len(table.rows) - listed
        terminal.say(styled(table.caption, "bold"), f", {more} more in comparison.json" if more > 0 else "")
        cells = ([one_line(plain(value), CELL) for value in row] for row in table.rows[:listed])
        terminal.table(table.titles, [(row, "") for row in cells])


def most_telling(compared: dict[str, Any]) -> dict[str, Any]:
    """The comparison with numbers that neither run has left out, and the tensors that moved most first."""
    known = {n: pair for n, pair in compared["numbers"].items() if pair["a"] is not None or pair["b"] is not None}
    return {**compared, "numbers": known, "layers": most_moved(compared["layers"])}


def most_moved(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tensors whose effective learning rate differs, the largest change first."""
    both = [row for row in layers if row["eta_eff_a"] is not None and row["eta_eff_b"] is not None]
    moved = [row for row in both if row["eta_eff_a"] != row["eta_eff_b"]]
    return sorted(moved, key=lambda row: -abs(row["eta_eff_b"] - row["eta_eff_a"]))
