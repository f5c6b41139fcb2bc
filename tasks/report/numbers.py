"""Numbers as people read them, on pages and in terminals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

ROWS_NAMED = 5
"""Rows that a line names."""


def number(value: Any) -> str:
    """Four significant digits, thousands separated, a dash for nothing."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-" if value is None or math.isnan(value) else ("∞" if value > 0 else "-∞")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
    return str(value)


def signed(value: float | None) -> str:
    """A change: three significant digits and always a sign."""
    return number(value) if value is None or not math.isfinite(value) else f"{value:+.3g}"


def measured(value: float) -> str:
    """A figure that was measured: three significant digits, and whole ones as they are."""
    if isinstance(value, float) and math.isfinite(value) and abs(value) < 1e3:
        return f"{value:.3g}"
    return number(value)


CHANGES = ("_change", "_change_low", "_change_high", "_sds", "_z")
"""Ends of the names of figures that are read by their sign."""


def difference(name: str, value: float | None) -> str:
    """A figure of the model diff: three significant digits, and its sign where it is a change."""
    return number(value) if value is None else signed(value) if name.endswith(CHANGES) else measured(value)


def percent(share: float) -> str:
    """A share as per cent: whole from ten on, one digit below, two significant ones below one."""
    hundredths = 100 * share
    if not math.isfinite(hundredths) or hundredths == 0:
        return number(hundredths) if hundredths else "0"
    size = abs(hundredths)
    if size < 1:
        return f"{hundredths:.2g}"
    return f"{hundredths:,.0f}" if size >= 10 else f"{hundredths:.1f}".removesuffix(".0")


def seconds(value: float) -> str:
    """A time: whole seconds from ten on, two significant digits below."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def error_of(value: float | None) -> str:
    """An error or the half of an interval: two significant digits, more would be a claim."""
    return number(value if value is None or not math.isfinite(value) else float(f"{value:.2g}"))


def plain(value: Any) -> str:
    """Four significant digits of a fraction, everything else as it is: whole numbers may name a row or a feature."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def fixed(value: float | None, digits: int) -> str:
    """`digits` after the point. Events carry null for what was not a finite number."""
    return "not finite" if value is None else f"{value:.{digits}f}"


def spread(scores: dict[str, float] | None) -> str:
    """Mean, and in brackets from the lowest to the highest where they differ; nothing without scores."""
    if scores is None:
        return ""
    low, mean, high = scores["low"], scores["mean"], scores["high"]
    return f"{mean:.3f}" if low == high else f"{mean:.3f} ({low:.3f}–{high:.3f})"


def named_rows(rows: Sequence[int]) -> str:
    """The first rows by number and how many more: `row 3`, `rows 3, 7 and 12 more`."""
    shown = ", ".join(str(row) for row in rows[:ROWS_NAMED])
    more = f" and {len(rows) - ROWS_NAMED:,} more" if len(rows) > ROWS_NAMED else ""
    return f"row{'' if len(rows) == 1 else 's'} {shown}{more}"
